"""Measure time and memory of a LLaVA-1.5-7B shape with a llava-1.5-160m shape as its draft, both with random weights.

`python -m benchmarks.vision --out FILE` needs a CUDA GPU and no network. With random weights almost nothing is accepted, so this
measures the cost of a picture and of a step, not the tokens per step.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from treespec.decoding.engine import Engine
from treespec.decoding.loop import Request, decode_autoregressive, decode_speculative
from treespec.evaluation.ties import closeness
from treespec.files.provenance import Provenance
from treespec.files.writing import write_json
from treespec.models.tree_model import TreeModel
from treespec.models.vision import Vision, text_module
from treespec.trees.tree import SpeculationTree

TREE = SpeculationTree.k_chains(9, 7)
"""A tree of 64 nodes."""


def llava_config(layers: int, hidden: int, intermediate: int, heads: int) -> LlavaConfig:
    """Return the configuration of a LLaVA 1.5 with the tower CLIP ViT-L/14 at 336 pixels: 576 embeddings per picture."""
    tower = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336, patch_size=14
    )
    text = LlamaConfig(
        vocab_size=32_064,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    return LlavaConfig(vision_config=tower, text_config=text, image_token_index=32_000, vision_feature_layer=-2)


SHAPES = {"llava-1.5-7b": (32, 4096, 11_008, 32), "llava-1.5-160m": (12, 768, 3072, 12)}


def random_llava(name: str, device: str) -> Any:
    """Return a model with random weights in fp16, made on its device."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    torch.manual_seed(0)
    try:
        with torch.device(device):
            module: Any = LlavaForConditionalGeneration(llava_config(*SHAPES[name]))
    finally:
        torch.set_default_dtype(before)
    return module.eval()


def seconds_of(work: Callable[[], Any], times: int = 5) -> float:
    """Return the seconds of some work, device time included, the best of several runs."""
    found = []
    for _ in range(times):
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return min(found)


def decode_seconds(records: Any) -> tuple[list[int], float]:
    """Return (tokens, seconds per step without the prompt pass) of a decoding."""
    tokens = list(next(records).tokens)
    torch.cuda.synchronize()
    started = time.perf_counter()
    steps = list(records)
    torch.cuda.synchronize()
    return [*tokens, *(t for s in steps for t in s.tokens)], (time.perf_counter() - started) / len(steps)


@torch.inference_mode()
def run(gen_len: int) -> dict[str, Any]:
    """Run all measurements and return them as data."""
    modules = {name: random_llava(name, "cuda") for name in SHAPES}
    weights = torch.cuda.memory_allocated()
    target, draft = (TreeModel(text_module(m), name=name, vision=Vision(m, name)) for name, m in modules.items())
    assert target.vision is not None
    torch.cuda.reset_peak_memory_stats()
    torch.manual_seed(1)
    pixels = torch.randn(1, 3, 336, 336, device="cuda")
    rows = target.vision.shape.rows
    ids = torch.tensor([1, *range(300, 306), *[32_000] * rows, *range(400, 424)], device="cuda")
    request = Request(tuple(ids.tolist()), gen_len, pixels=pixels)
    engine = Engine(target, draft, notice=print)
    outputs: dict[str, list[int]] = {}
    figures: dict[str, Any] = {"prompt_tokens": len(ids), "picture_rows": rows}
    decoders: dict[str, Callable[[], Any]] = {
        "tree": lambda: decode_speculative(target, draft, TREE, request, engine=engine),
        "autoregressive": lambda: decode_autoregressive(target, request, engine=engine),
    }
    for name, decode in decoders.items():
        list(decode())  # compiles and captures
        outputs[name], seconds = decode_seconds(decode())
        figures[f"{name}_step_ms"] = 1e3 * seconds
    for name, model in (("target", target), ("draft", draft)):
        assert model.vision is not None
        figures[f"{name}_picture_ms"] = 1e3 * seconds_of(partial(model.vision.rows, pixels))
        figures[f"{name}_prompt_ms"] = 1e3 * seconds_of(partial(model.prefill, ids, pixels))
    module: Any = modules["llava-1.5-7b"]
    inputs = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None], "pixel_values": pixels}
    whole = {
        n: seconds_of(partial(module.generate, **inputs, max_new_tokens=n, min_new_tokens=n, do_sample=False), 2) for n in (1, gen_len)
    }
    figures["transformers_prompt_ms"] = 1e3 * whole[1]
    figures["transformers_token_ms"] = 1e3 * (whole[gen_len] - whole[1]) / (gen_len - 1)
    same = outputs["tree"] == outputs["autoregressive"]
    at = next((i for i, (a, b) in enumerate(zip(*outputs.values(), strict=True)) if a != b), gen_len)
    gap = None if same else closeness(target, [*request.prompt, *outputs["autoregressive"][:at]], [], pixels).logit_gap
    cache = target.cache_bytes + draft.cache_bytes
    return {
        **figures,
        "outputs_equal": same,
        "first_difference": None if same else [at, gap],
        "memory_bytes": {"weights": weights, "kv": cache, "peak_reserved": torch.cuda.max_memory_reserved()},
        "provenance": Provenance.collect(models={name: f"{name} shape, random weights" for name in SHAPES}, dtype="float16").to_json(),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gen-len", type=int, default=64)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    figures = run(arguments.gen_len)
    table = Table("figure", "value", title="LLaVA-1.5-7B shape, llava-1.5-160m shape as draft, fp16, 64 nodes")
    for name, value in figures.items():
        if name != "provenance":
            table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value))
    Console(width=130).print(table)
    if arguments.out:
        write_json(arguments.out, figures)


if __name__ == "__main__":
    main()
