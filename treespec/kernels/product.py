"""The shared parts of products of few rows with streamed weights: operands, tilings, and the loop over the weights with split-K sums."""

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

LARGEST = 64
"""These kernels are used for up to this many rows; for more, cuBLAS is faster."""
MULTIPROCESSORS = 132
"""The number of multiprocessors that tiles and splits are chosen for: that of an H100 or H200."""
SHARED = 209_000
"""Bytes of shared memory that a program may use on Hopper."""
SMALL = 4_000_000
"""Up to this many bytes, a matrix takes less time to read than its product takes to launch and start."""
ALL = 1 << 20
"""A number larger than the length of any row of weights."""
_AHEAD, _AHEAD_OF_ROW = 1 << 16, 512
"""Limits for prefetching a large matrix before the inputs are there: bytes per program, and numbers of each row."""
_TILES = 1 << 14


@dataclass(frozen=True)
class Norm:
    """An RMSNorm over rows."""

    weight: Tensor
    """[inner]"""
    epsilon: float


@dataclass(frozen=True)
class Stream:
    """The residual stream on its way to the next norm."""

    plain: Tensor
    """[rows, inner]"""
    weighted: Tensor
    """[rows, inner]; times the weight of the next norm."""
    squares: Tensor
    """float32 [rows, parts]; sums of squares of `plain` over parts of the inner dimension."""
    epsilon: float
    """The epsilon of the next norm."""


@dataclass(frozen=True)
class Workspace:
    """Counters and partial sums that launches on one CUDA stream share. Rule: counters are zero between launches."""

    device: torch.device
    counters: Tensor = field(init=False)
    partial: dict[int, Tensor] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "counters", torch.zeros(_TILES, dtype=torch.int32, device=self.device))

    def floats(self, count: int) -> Tensor:
        """Return float32 [>= count]; it is the same memory at every call for the same size, so captured launches stay valid."""
        rounded = 1 << (count - 1).bit_length()
        if rounded not in self.partial:
            self.partial[rounded] = torch.empty(rounded, dtype=torch.float32, device=self.device)
        return self.partial[rounded]


@dataclass(frozen=True)
class Tiling:
    """The division of one product over the device."""

    columns: int
    """Columns of a tile: any number; the tensor cores multiply the next power of two."""
    inner: int
    splits: int
    warps: int
    stages: int


def block_of(rows: int) -> int:
    """Return the number of rows that a program multiplies: 16, or 64, the tensor cores' own number (32 would take longer than 64)."""
    return 16 if rows <= 16 else LARGEST


@cache
def shared_bytes(device: torch.device) -> int:
    """Return the bytes of shared memory that a program may use; some are left for what the compiler adds."""
    if device.type != "cuda":
        return SHARED
    properties: Any = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_block_optin) * 9 // 10


def shares(columns: int, most: int) -> int:
    """Return a tile width (at most `most`, a multiple of 4 for wide stores) that gives every multiprocessor the same number of tiles."""
    waves = triton.cdiv(columns, most * MULTIPROCESSORS)
    return 4 * int(triton.cdiv(columns, 4 * waves * MULTIPROCESSORS))


def fitting(plan: Tiling, rows: int, tiles: int, inner: int, pairs: int, shared: int) -> Tiling:
    """Return the tiling with enough splits to fill the device, and with stages that fit into shared memory.

    There are at least three stages, or the plan's number if it has fewer. With many rows, a second wave of a few programs would take as
    long as the first; so several programs share a multiprocessor if three stages of each fit.
    """
    splits, at_once, stages = 1, plan.inner, plan.stages
    width = 2 * (pairs * triton.next_power_of_2(plan.columns) + block_of(rows))
    while tiles * splits < 96 and inner // (splits * 2) >= 512:
        splits *= 2
    while stages > 3 and stages * at_once * width > shared:
        stages -= 1
    while at_once > 32 and stages * at_once * width > shared:
        at_once //= 2
    together = triton.cdiv(tiles * splits, MULTIPROCESSORS)
    fit = (shared * 10 // 9 // together - 1024) // (at_once * width)
    if block_of(rows) == LARGEST and fit >= 3:
        stages = min(stages, fit)
    return replace(plan, inner=at_once, splits=splits, stages=stages)


def small(weight: Tensor, rows: int) -> bool:
    """Return whether the product ends almost as soon as it begins, so that the memory is idle for most of its time."""
    return weight.element_size() == 2 and weight.nbytes <= (4 * SMALL if block_of(rows) < LARGEST else SMALL)


def ahead(weight: Tensor, rows: int, width: int) -> int:
    """Return how many numbers of each of its `width` rows of weights a program prefetches into L2 while it waits for its inputs.

    For a small matrix these are all; else a power of two, since more would delay the inputs and the first weights (benchmarks/log/prefetch.md).
    """
    if weight.element_size() != 2:
        return 0
    if small(weight, rows):
        return ALL
    return max(64, min(_AHEAD_OF_ROW, 1 << (_AHEAD // (2 * width)).bit_length() - 1))


@triton.jit
def ask(rows: "Any", first: "Any", stop: "Any", LINES: tl.constexpr) -> None:
    """Prefetch into L2 the two-byte numbers first .. stop of the rows that `rows` points to, LINES of 128 bytes at a time."""
    for start in range(first, stop, 64 * LINES):
        at = tl.minimum(start + tl.arange(0, LINES) * 64, stop - 1)
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [rows[:, None] + at[None, :]], dtype=tl.int32, is_pure=False, pack=1
        )


@triton.jit
def silu(x: "Any") -> "Any":
    """Return x sigmoid(x), in float32."""
    return x / (1 + tl.exp(-x))


@triton.jit
def slice_of(inner: "Any", split: "Any", splits: "Any", INNER: tl.constexpr) -> "Any":
    """Return (first, stop), the slice of the inner dimension that `split` multiplies. It is empty (stop <= first) for the last splits."""
    steps = tl.cdiv(tl.cdiv(inner, INNER), splits)
    first = split * steps * INNER
    return first, tl.minimum(first + steps * INNER, inner)


@triton.jit
def multiply(
    x: "Any",
    w_row: "Any",
    u_row: "Any",
    rows: "Any",
    inside: "Any",
    first: "Any",
    stop: "Any",
    inner: "Any",
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    PAIRED: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
) -> "Any":
    """Return two float32 [BLOCK, COLUMNS]: x times the weights at `w_row`, and at `u_row` if PAIRED (else zeros), over first .. stop.

    x [rows, inner]; `w_row`, `u_row` [COLUMNS] point to rows of `inner` weights; those that are `inside` are read once.
    EVEN: `inner` is a multiple of INNER.
    """
    row, place = tl.arange(0, BLOCK), tl.arange(0, INNER)
    there = row < rows
    main = tl.zeros((BLOCK, COLUMNS), dtype=tl.float32)
    other = tl.zeros((BLOCK, COLUMNS), dtype=tl.float32)
    x_row = x + row[:, None] * inner
    for step in tl.range(0, tl.cdiv(stop - first, INNER), num_stages=STAGES):
        at = first + step * INNER + place
        if EVEN:
            read = tl.load(x_row + at[None, :], mask=there[:, None], other=0.0)
            weights = tl.load(w_row[:, None] + at[None, :], mask=inside[:, None], other=0.0, eviction_policy="evict_first")
        else:
            read = tl.load(x_row + at[None, :], mask=there[:, None] & (at < inner)[None, :], other=0.0)
            weights = tl.load(
                w_row[:, None] + at[None, :], mask=inside[:, None] & (at < inner)[None, :], other=0.0, eviction_policy="evict_first"
            )
        main = tl.dot(read, tl.trans(weights), main, input_precision=PRECISION)
        if PAIRED:
            if EVEN:
                ups = tl.load(u_row[:, None] + at[None, :], mask=inside[:, None], other=0.0, eviction_policy="evict_first")
            else:
                ups = tl.load(
                    u_row[:, None] + at[None, :], mask=inside[:, None] & (at < inner)[None, :], other=0.0, eviction_policy="evict_first"
                )
            other = tl.dot(read, tl.trans(ups), other, input_precision=PRECISION)
    return main, other


@triton.jit
def deposit(
    main: "Any",
    other: "Any",
    partial: "Any",
    counters: "Any",
    tile: "Any",
    split: "Any",
    splits: "Any",
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    PAIRED: tl.constexpr,
) -> "Any":
    """Store the partial sums of one split; return whether this is the last program of the tile, which must then `collect`."""
    grid = tl.arange(0, BLOCK)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    WIDE: tl.constexpr = BLOCK * COLUMNS * (2 if PAIRED else 1)
    mine = partial + (tile * splits + split).to(tl.int64) * WIDE
    tl.store(mine + grid, main)
    if PAIRED:
        tl.store(mine + BLOCK * COLUMNS + grid, other)
    tl.debug_barrier()
    return tl.atomic_add(counters + tile, 1, sem="acq_rel") == splits - 1


@triton.jit
def collect(
    partial: "Any", counters: "Any", tile: "Any", splits: "Any", BLOCK: tl.constexpr, COLUMNS: tl.constexpr, PAIRED: tl.constexpr
) -> "Any":
    """Return the sums over all splits of a tile, added in their order. Sets the counter back to zero."""
    tl.store(counters + tile, 0)
    grid = tl.arange(0, BLOCK)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    WIDE: tl.constexpr = BLOCK * COLUMNS * (2 if PAIRED else 1)
    base = partial + (tile * splits).to(tl.int64) * WIDE
    main = tl.zeros((BLOCK, COLUMNS), dtype=tl.float32)
    other = tl.zeros((BLOCK, COLUMNS), dtype=tl.float32)
    for each in range(splits):
        main += tl.load(base + each * WIDE + grid, cache_modifier=".cg")
        if PAIRED:
            other += tl.load(base + each * WIDE + BLOCK * COLUMNS + grid, cache_modifier=".cg")
    return main, other


@triton.jit
def load_squares(squares: "Any", rows: "Any", parts: "Any", BLOCK: tl.constexpr, PARTS: tl.constexpr) -> "Any":
    """Load squares [rows, parts] of a `Stream` as float32 [BLOCK, PARTS] for `norm_factors`; do it before the product to hide latency."""
    row, part = tl.arange(0, BLOCK), tl.arange(0, PARTS)
    there = (row < rows)[:, None] & (part < parts)[None, :]
    return tl.load(squares + row[:, None] * parts + part[None, :], mask=there, other=0.0)


@triton.jit
def norm_factors(loaded: "Any", inner: "Any", epsilon: "Any") -> "Any":
    """Return the factor of each row in RMSNorm, float32 [BLOCK]."""
    return 1 / tl.sqrt(tl.sum(loaded, axis=1) / inner + epsilon)
