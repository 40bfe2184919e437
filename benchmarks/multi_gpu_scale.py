"""What `benchmarks.multi_gpu` measures and how much of it: large shapes on GPUs, or tiny ones on the CPU."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from transformers import LlamaConfig

from benchmarks.inflate import SHAPES, Shape


@dataclass(frozen=True)
class Scale:
    """What a run measures, and how much of it."""

    device: str
    dtype: torch.dtype
    shapes: Mapping[str, Shape]
    draft: Shape
    large: LlamaConfig
    """The configuration of the stage `70b`."""
    sizes: tuple[int, ...]
    """The tree sizes that are timed, from which the tuned tree is chosen; those after the first are passes of the report."""
    widths: tuple[int, ...]
    tree: tuple[int, int]
    """Size and depth of the tree whose step is timed everywhere."""
    context: int
    prompts: int
    gen_len: int
    profiled: int
    batch: int
    """Prompts of a profile that share a pass: fewer than by default, so that there are as many batches for each process."""
    turns: int
    repetitions: int
    """Samples of each pass."""


def llama(vocabulary: int, shape: Shape, kv_heads: int) -> LlamaConfig:
    """Return the configuration of a Llama of a shape, in which no token ends a text."""
    known = {**asdict(shape), "num_key_value_heads": kv_heads, "vocab_size": vocabulary, "max_position_embeddings": 4096}
    return LlamaConfig(**known, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None, pad_token_id=None)


FULL = Scale(
    device="cuda",
    dtype=torch.float16,
    shapes={"7b": SHAPES["llama-2-7b"], "13b": SHAPES["llama-2-13b"]},
    draft=SHAPES["llama-68m"],
    large=llama(32_000, Shape(8192, 80, 64, 28_672), 8),
    sizes=(1, 16, 32, 64, 128, 256),
    widths=(1, 2, 4, 8, 16, 32),
    tree=(64, 7),
    context=192,
    prompts=8,
    gen_len=128,
    profiled=192,
    batch=16,
    turns=9,
    repetitions=12,
)
SMALL = Scale(
    device="cpu",
    dtype=torch.float32,
    shapes={"7b": Shape(256, 12, 2, 256), "13b": Shape(320, 12, 4, 256)},
    draft=Shape(128, 1, 2, 384),
    large=llama(64, Shape(32, 2, 4, 64), 2),
    sizes=(1, 4, 8),
    widths=(1, 2, 4),
    tree=(8, 3),
    context=16,
    prompts=2,
    gen_len=8,
    profiled=4,
    batch=1,
    turns=1,
    repetitions=1,
)
