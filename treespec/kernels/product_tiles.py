"""Tilings of the products in `linear` and `qkv`: tiles of columns, splits of the inner dimension, and what is prefetched.

LINEAR and QKV are the whole choice, with the measurement that made each: the first line whose condition holds is used, and `fitting` adds
splits and takes stages away. Only shapes decide, because launches are captured.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from treespec.kernels.dependent_launch import overlaps
from treespec.kernels.device import Gpu
from treespec.kernels.product import LARGEST, SMALL, Tile, block_of

_ALL = 1 << 20
"""A number larger than the length of any row of weights."""
_PREFETCHED_BYTES, _PREFETCHED_NUMBERS = 1 << 16, 512
"""Limits for prefetching a large matrix before the inputs are there: bytes per program, and numbers of each row."""
_NARROW = 640
"""Up to this many columns, or numbers of the inner dimension, two blocks of 16 rows are faster than one of 64 (benchmarks/log/products.md)."""
SHARE = 0
"""In place of a tiling's columns: as many as give all multiprocessors the same number of tiles."""


@dataclass(frozen=True)
class Tiling:
    """The division of one product over the device."""

    columns: int
    """Columns of a tile: any number; the tensor cores multiply the next power of two."""
    inner: int
    splits: int
    warps: int
    stages: int
    rows: int | None = None
    """Rows of a block, each of which is another program's; None: as `block_of` says, for all rows in one block."""


@dataclass(frozen=True)
class Work:
    """The product to divide."""

    rows: int
    columns: int
    """Columns of the result; of Q/K/V, pairs of columns that are rotated together."""
    inner: int
    share: int
    """The columns that SHARE stands for."""
    paired: bool
    """Whether a column of the result takes two rows of weights."""
    float32: bool

    @property
    def bytes(self) -> int:
        """Bytes of the weights."""
        return self.columns * self.inner * (2 if self.paired else 1) * (4 if self.float32 else 2)

    @property
    def block(self) -> int:
        """Rows that a program multiplies. In narrow models, two programs multiply up to 32 rows, 16 each, and both read the weights."""
        narrow = self.bytes <= SMALL and min(self.columns, self.inner) <= _NARROW
        return 16 if narrow and self.rows <= 32 and not self.float32 else block_of(self.rows)

    @property
    def low(self) -> bool:
        """Whether a program multiplies 16 rows, not 64."""
        return self.block < LARGEST


class Choice(NamedTuple):
    """One line of LINEAR or QKV."""

    when: Callable[[Work], bool]
    tiling: Tiling
    log: str
    """The entry of benchmarks/log/products.md, by its first words, or why there is none."""


FLOAT32 = "Not measured: models run in float32 on the way to other types only."
SWEEP = "Kept: the deferred norm"
LINEAR = (
    Choice(lambda work: work.float32 and work.paired, Tiling(16, 32, 1, 4, 2), FLOAT32),
    Choice(lambda work: work.float32, Tiling(32, 32, 1, 4, 2), FLOAT32),
    # gates
    Choice(lambda work: work.paired and work.share > 32 and work.low, Tiling(SHARE, 128, 1, 8, 5), "Kept: tiles of any number of columns"),
    Choice(lambda work: work.paired and work.share > 32, Tiling(SHARE, 64, 1, 8, 5), "Kept: tiles of any number of columns"),
    Choice(lambda work: work.paired and work.low, Tiling(32, 128, 1, 4, 6), "Kept: tilings of small products"),
    Choice(lambda work: work.paired, Tiling(32, 128, 1, 4, 4), SWEEP),
    # the vocabulary, and other products of many columns
    Choice(lambda work: work.columns >= 16_384 and work.low, Tiling(64, 128, 1, 4, 5), SWEEP),
    Choice(lambda work: work.columns >= 16_384, Tiling(128, 128, 1, 8, 4), SWEEP),
    # up to 16 rows
    Choice(lambda work: work.low and work.columns > 8192, Tiling(SHARE, 128, 1, 4, 5), "Kept: tiles of any number of columns"),
    Choice(lambda work: work.low and work.share > 16 and work.inner >= 2048, Tiling(64, 256, 1, 4, 4), SWEEP),
    Choice(lambda work: work.low and work.share > 16, Tiling(64, 128, 1, 4, 4), SWEEP),
    Choice(lambda work: work.low and work.inner >= 2048, Tiling(32, 256, 1, 4, 6), "Kept: tilings of small products"),
    Choice(lambda work: work.low, Tiling(32, 128, 1, 4, 6), "Kept: tilings of small products"),
    # up to 64 rows
    Choice(lambda work: work.share > 64, Tiling(SHARE, 128, 1, 8, 5), "Kept: tiles of any number of columns"),
    Choice(lambda work: work.share > 32, Tiling(SHARE, 128, 1, 4, 5), "Kept: a tile per head for Q/K/V of 96 heads"),
    Choice(lambda work: work.inner > 8192, Tiling(64, 128, 1, 4, 5), "Kept: down products of more than 8,192 inner"),
    Choice(lambda work: work.share > 16 and work.inner >= 2048, Tiling(32, 256, 1, 4, 4), SWEEP),
    Choice(lambda work: work.share > 16, Tiling(32, 128, 1, 4, 4), SWEEP),
    Choice(lambda work: work.inner >= 2048, Tiling(16, 128, 1, 4, 6), "Kept: tilings of small products"),
    Choice(lambda work: True, Tiling(32, 256, 1, 4, 3), "Kept: tilings of small products"),
)
"""Tilings of `linear` and `linear_add`, measured on an H100 and an H200."""
QKV = (
    Choice(lambda work: work.float32, Tiling(16, 32, 1, 4, 2), FLOAT32),
    Choice(lambda work: work.share > 32, Tiling(SHARE, 128, 1, 4, 4), "Kept: Q/K/V of 12,288 columns in 128 tiles of 48 pairs"),
    Choice(lambda work: work.share >= 24, Tiling(SHARE, 128, 1, 4, 5), "Kept: Q/K/V of 12,288 columns in 128 tiles of 48 pairs"),
    Choice(lambda work: work.low, Tiling(32, 128, 1, 4, 6), "Kept: tilings of small products"),
    Choice(lambda work: True, Tiling(16, 128, 1, 4, 6), "Kept: tilings of small products"),
)
"""Tilings of `qkv.project`, in pairs of columns, measured on an H100 and an H200."""


@lru_cache(1024)  # a launch asks again for the same shapes
def linear_tiling(rows: int, columns: int, inner: int, gated: bool, dtype: torch.dtype, gpu: Gpu | None = None) -> Tiling:
    """Return tiles for `linear` and `linear_add` that keep the device's memory busy, with stages that fit into its shared memory."""
    gpu = gpu or Gpu()
    return _choose(LINEAR, Work(rows, columns, inner, shares(columns, 128, gpu), gated, dtype == torch.float32), gpu)


@lru_cache(1024)
def qkv_tiling(rows: int, heads: int, dim: int, inner: int, dtype: torch.dtype, gpu: Gpu | None = None) -> Tiling:
    """Return tiles for `qkv.project` that keep the device's memory busy. `heads` counts the heads of queries, keys and values."""
    gpu, pairs = gpu or Gpu(), heads * (dim // 2)
    return _choose(QKV, Work(rows, pairs, inner, shares(pairs, 64, gpu), True, dtype == torch.float32), gpu)


def _choose(table: tuple[Choice, ...], work: Work, gpu: Gpu) -> Tiling:
    plan = next(choice.tiling for choice in table if choice.when(work))
    if plan.columns == SHARE:
        plan = replace(plan, columns=work.share)
    return plan if work.float32 else replace(fitting(plan, work, gpu), rows=work.block)


def shares(columns: int, most: int, gpu: Gpu) -> int:
    """Return a tile width (at most `most`, a multiple of 4 for wide stores) that gives every multiprocessor the same number of tiles."""
    waves = triton.cdiv(columns, most * gpu.multiprocessors)
    return 4 * int(triton.cdiv(columns, 4 * waves * gpu.multiprocessors))


def fitting(plan: Tiling, work: Work, gpu: Gpu) -> Tiling:
    """Return the tiling with enough splits to fill the device, and with stages that fit into shared memory.

    There are at least three stages, or the plan's number if it has fewer. With many rows, a second wave of a few programs would take as
    long as the first; so several programs share a multiprocessor if three stages of each fit.
    """
    splits, inner, stages = 1, plan.inner, plan.stages
    tiles = triton.cdiv(work.columns, plan.columns) * triton.cdiv(work.rows, work.block)
    width = 2 * ((2 if work.paired else 1) * triton.next_power_of_2(plan.columns) + work.block)
    while tiles * splits < gpu.multiprocessors * 8 // 11 and work.inner // (splits * 2) >= 512:
        splits *= 2
    while stages > 3 and stages * inner * width > gpu.shared_bytes:
        stages -= 1
    while inner > 32 and stages * inner * width > gpu.shared_bytes:
        inner //= 2
    at_once = triton.cdiv(tiles * splits, gpu.multiprocessors)
    fit = (gpu.shared_bytes * 10 // 9 // at_once - 1024) // (inner * width)
    if not work.low and fit >= 3:
        stages = min(stages, fit)
    return replace(plan, inner=inner, splits=splits, stages=stages)


def tile_of(plan: Tiling, weight: Tensor, rows: int, *, paired: bool) -> Tile:
    """Return the constants that the product with `weight` [columns, inner] is compiled for."""
    block = plan.rows or block_of(rows)
    return Tile(
        BLOCK_ROWS=block,
        ROW_BLOCKS=rows > block,
        COLUMNS=plan.columns,
        BLOCK_COLUMNS=int(triton.next_power_of_2(plan.columns)),
        BLOCK_INNER=plan.inner,
        NUM_STAGES=plan.stages,
        SPLIT=plan.splits > 1,
        PAIRED=paired,
        EVEN=weight.shape[1] % plan.inner == 0,
        PREFETCHED=prefetched(weight, block, plan.columns * (2 if paired else 1)) if overlaps(weight.device) else 0,
        PRECISION="ieee" if weight.dtype == torch.float32 else "tf32",
    )


def overlap_of(weight: Tensor, block: int) -> int:
    """Return OVERLAP for `wait_for_inputs`: 2 for products of few microseconds (benchmarks/log/launches.md), 0 where nothing overlaps."""
    if not overlaps(weight.device):
        return 0
    return 2 if _is_short(weight, block) and block < LARGEST else 1


def _is_short(weight: Tensor, block: int) -> bool:
    """Return whether the product of a block of rows ends almost as soon as it begins, so that the memory is idle for most of its time."""
    return weight.element_size() == 2 and weight.nbytes <= (4 * SMALL if block < LARGEST else SMALL)


def prefetched(weight: Tensor, block: int, width: int) -> int:
    """Return how many numbers of each of its `width` rows of weights a program prefetches into L2 while it waits for its inputs.

    For a small matrix these are all; else a power of two, since more would delay the inputs and the first weights (benchmarks/log/prefetch.md).
    """
    if weight.element_size() != 2:
        return 0
    if _is_short(weight, block):
        return _ALL
    return max(64, min(_PREFETCHED_NUMBERS, 1 << (_PREFETCHED_BYTES // (2 * width)).bit_length() - 1))
