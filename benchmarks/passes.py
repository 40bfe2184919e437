"""Compare single captured passes with the time that the memory needs for them, also for random models with grouped K/V heads."""

import statistics
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen3Config

from treespec.models.tree_model import TreeModel
from treespec.trees.placement import Placement, Prefix
from treespec.trees.tree import SpeculationTree

GQA: dict[str, PreTrainedConfig] = {
    "Llama-3.1-8B": LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131_072,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        tie_word_embeddings=False,
    ),
    "Qwen3-8B": Qwen3Config(
        vocab_size=151_936,
        hidden_size=4096,
        intermediate_size=12_288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40_960,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=False,
    ),
}


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    milliseconds: float
    floor_ms: float | None = None
    goal: str = ""
    note: str = ""


def read_bandwidth(device: torch.device) -> float:
    """Return the bytes per second of reading 4 GB with one reduction, the best of several."""
    block = torch.ones(1 << 29, dtype=torch.int64, device=device)
    best = min(_event_seconds(block.sum) for _ in range(8))
    return block.nbytes / best


def _event_seconds(work: Any) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def weight_bytes(module: torch.nn.Module) -> int:
    """Return the bytes of the weights that a pass multiplies: all parameters except the embedding, of which it reads a few rows."""
    embedding: Any = module.get_input_embeddings()  # type: ignore[operator]
    return sum(p.nbytes for p in module.parameters() if p is not embedding.weight)


def pass_seconds(model: TreeModel, tree: SpeculationTree, context: int, repetitions: int = 12) -> float:
    """Return the median seconds of one captured target pass over a tree after `context` tokens, over consecutive replays."""
    device = model.device
    ids = torch.randint(model.vocabulary_size, (context + tree.size,), generator=torch.Generator().manual_seed(0)).to(device)
    model.allocate(context + tree.size + 1)
    model.prefill(ids[:context])
    prefix = Prefix(torch.full((1,), context, device=device))
    depths = torch.tensor(tree.depths, device=device)
    place = Placement(prefix, depths, torch.arange(tree.size, device=device), torch.tensor(tree.ancestor_mask, device=device))
    tokens = ids[context:]
    graph = torch.cuda.CUDAGraph()
    model.forward(tokens, place)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        model.forward(tokens, place)

    def in_a_row() -> None:
        for _ in range(4):
            graph.replay()

    seconds = []
    for _ in range(repetitions):
        graph.replay()  # keeps the device busy while the host launches those that count
        seconds.append(_event_seconds(in_a_row) / 4)
    return statistics.median(seconds)


def flat(size: int) -> SpeculationTree:
    """Return a tree of a root and its children, `size` nodes in all."""
    return SpeculationTree.from_branches([[size - 1]] if size > 1 else [])


def gqa_rows(name: str, config: PreTrainedConfig, bandwidth: float, device: torch.device) -> list[Row]:
    """Time passes over 64 nodes after short and long contexts, for a model with random weights."""
    make: Any = AutoModelForCausalLM.from_config
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device(device):
            module = make(config)
    finally:
        torch.set_default_dtype(before)
    model = TreeModel(module, name=name)
    rows = []
    text = config.get_text_config()
    for context in (4096, 256):
        kv = 2 * text.num_hidden_layers * text.num_key_value_heads * 128 * 2 * (context + 64)
        floor = (weight_bytes(module) + kv) / bandwidth
        rows.append(Row(f"{name}, 64 nodes, context {context}", 1e3 * pass_seconds(model, flat(64), context), 1e3 * floor, "1.45"))
    return rows[::-1]
