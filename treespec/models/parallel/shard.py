"""Which part of each weight of a Llama-like model a process holds, and which models cannot be divided."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from treespec.errors import ModelError, listed
from treespec.models.parallel.team import Team
from treespec.models.support import FUSED

COLUMNS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
"""Linear layers of which each process computes some columns of the result: rows of the weight, and of the bias."""
ROWS = ("o_proj", "down_proj")
"""Linear layers that read what these have computed: columns of the weight. Their results are added up; the first process adds the bias."""
HEAD = "lm_head"
"""The product with the vocabulary, of which each process computes some columns. The weight is filled up with rows of zeros."""


@dataclass(frozen=True)
class Shard:
    """The part of a model that this process holds."""

    team: Team
    vocabulary: int
    """The width of the logits, which all processes have whole."""
    parameters: int
    """The number of weights of the whole model."""
    planned: bool = False
    """Whether transformers divided it by its own plan, and not treeopt by `part_of`."""


@dataclass(frozen=True)
class Part:
    """The indices `start` to `stop` of dimension `dim` of a weight in the files, filled up with zeros to `size` indices."""

    dim: int
    start: int
    stop: int
    size: int


def is_sliced(kind: type[Any]) -> bool:
    """Return whether models of a class of transformers are divided here; others are by transformers' own plan."""
    return kind.__name__ in FUSED and kind.__module__.startswith("transformers.")


def require_divisible(config: PreTrainedConfig, processes: int, name: str, *, sliced: bool) -> None:
    """Raise ModelError, naming the numbers of processes that would do, if a model cannot be divided over so many."""
    text = config.get_text_config(decoder=True)
    kinds = [("num_key_value_heads", "K/V heads"), ("num_attention_heads", "attention heads")]
    if sliced:
        kinds.append(("intermediate_size", "inner dimensions of its MLPs"))
    counts = [(label, int(count)) for key, label in kinds if (count := getattr(text, key, None)) is not None]
    for label, count in counts:
        if count % processes:
            common = math.gcd(*(number for _, number in counts))
            fitting = [str(number) for number in range(1, common + 1) if common % number == 0]
            raise ModelError(
                f"`tensor_parallel` {processes} does not divide the {count} {label} of {name}; pass a number that does: {listed(fitting)}"
            )


def config_of_part(config: PreTrainedConfig, processes: int) -> PreTrainedConfig:
    """Return the configuration of the module that holds one part: with fewer heads of the same width, and narrower MLPs."""
    own = copy.deepcopy(config)
    own.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    own.num_attention_heads = config.num_attention_heads // processes
    own.num_key_value_heads = config.num_key_value_heads // processes
    own.intermediate_size = config.intermediate_size // processes
    own.tie_word_embeddings = False  # the embedding is whole in every process, and the head is not
    return own


def rows_of_head(vocabulary: int, processes: int) -> int:
    """Return how many rows of the vocabulary's product each process holds.

    >>> rows_of_head(97, 2), rows_of_head(96, 4)
    (49, 24)
    """
    return -(-vocabulary // processes)


def part_of(name: str, shape: tuple[int, ...], rank: int, processes: int) -> Part | None:
    """Return the part of a weight of this shape that a process holds; None if it holds the whole weight.

    >>> part_of("model.layers.0.self_attn.q_proj.weight", (8, 4), 1, 2)
    Part(dim=0, start=4, stop=8, size=4)
    >>> part_of("model.layers.0.mlp.down_proj.weight", (4, 8), 0, 4)
    Part(dim=1, start=0, stop=2, size=2)
    >>> part_of("lm_head.weight", (97, 4), 1, 2)
    Part(dim=0, start=49, stop=97, size=49)
    """
    layer, _, kind = name.rpartition(".")
    last = layer.rpartition(".")[2]
    if last in COLUMNS:
        size = shape[0] // processes
        return Part(0, rank * size, (rank + 1) * size, size)
    if last in ROWS and kind == "weight":
        size = shape[1] // processes
        return Part(1, rank * size, (rank + 1) * size, size)
    if last in ROWS:
        return None if rank == 0 else Part(0, 0, 0, shape[0])
    if last == HEAD:
        size = rows_of_head(shape[0], processes)
        return Part(0, min(shape[0], rank * size), min(shape[0], (rank + 1) * size), size)
    return None


def join_outputs(module: PreTrainedModel, team: Team, vocabulary: int) -> None:
    """Have the layers of a module that holds one part add up, or join, what all processes have computed."""
    for name, layer in _layers(module):
        if name in ROWS:
            layer.register_forward_hook(lambda _, inputs, output: team.sum(output))
        elif name == HEAD:
            layer.register_forward_hook(lambda _, inputs, output: team.joined(output, vocabulary))


def _layers(module: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    for name, layer in module.named_modules():
        yield name.rpartition(".")[2], layer
