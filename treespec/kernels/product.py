"""The shared parts of products of few rows with streamed weights: operands, the loop over the weights, and split-K.

`linear` and `qkv` are this product with different rows of weights and different epilogues. Each of their programs computes one tile of
columns, or with split-K one slice of its inner dimension. The parts run in this order:

1. `prefetch_weights`, and whatever else is older than the pass; then `wait_for_inputs`.
2. `stream_product` multiplies the slice, and leaves its partial sums in the workspace where there are several.
3. The last program of each tile goes on: `sum_splits` adds the partial sums in a fixed order, and the epilogue follows.

`product_tiles` chooses the tiles.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

LARGEST = 64
"""These kernels are used for up to this many rows; for more, cuBLAS is faster."""
SMALL = 4_000_000
"""Up to this many bytes, a matrix takes less time to read than its product takes to launch and start."""
_COUNTERS = 1 << 14


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


class Partials(NamedTuple):
    """Pointers to what the programs of one tile share in split-K."""

    partial_ptr: Any
    """float32 [tiles, splits, 1 or 2, BLOCK_ROWS, BLOCK_COLUMNS], or None: their partial sums."""
    counters_ptr: Any
    """int32 [tiles or more]: how many programs of a tile have left theirs."""


class Tile(NamedTuple):
    """The constants of a product's compilation."""

    BLOCK_ROWS: int
    ROW_BLOCKS: bool
    """Whether there are several blocks of rows, each of which is another program's."""
    COLUMNS: int
    """Columns of a tile, any number."""
    BLOCK_COLUMNS: int
    """COLUMNS rounded up to a power of two, which is what the tensor cores multiply."""
    BLOCK_INNER: int
    NUM_STAGES: int
    SPLIT: bool
    PAIRED: bool
    """Whether each column has a second one, whose weights are streamed with its own."""
    EVEN: bool
    """Whether the inner dimension is a multiple of BLOCK_INNER."""
    PREFETCHED: int
    """The numbers of each row of weights that are prefetched into L2 before the inputs are there."""
    PRECISION: str


@dataclass(frozen=True)
class Workspace:
    """Counters and partial sums that launches on one CUDA stream share.

    Rule: counters are zero between launches. The last program of each tile sets its counter back. A launch that is aborted does not, but it
    takes the CUDA context with it, and so this workspace.
    """

    device: torch.device
    counters: Tensor = field(init=False)
    partial: dict[int, Tensor] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "counters", torch.zeros(_COUNTERS, dtype=torch.int32, device=self.device))

    def floats(self, count: int) -> Tensor:
        """Return float32 [>= count]; it is the same memory at every call for the same size, so captured launches stay valid."""
        rounded = 1 << (count - 1).bit_length()
        if rounded not in self.partial:
            self.partial[rounded] = torch.empty(rounded, dtype=torch.float32, device=self.device)
        return self.partial[rounded]

    def partials(self, tiles: int, splits: int, tile: Tile) -> Partials:
        """Return what `splits` programs of each of `tiles` tiles share. Raises ValueError if there are more tiles than counters."""
        if splits == 1:
            return Partials(None, self.counters)
        if tiles > _COUNTERS:
            raise ValueError(
                f"split-K over {tiles:,} tiles needs as many counters, and the workspace has {_COUNTERS:,}; use wider tiles or one split"
            )
        return Partials(self.floats(tiles * splits * tile.BLOCK_ROWS * tile.BLOCK_COLUMNS * (2 if tile.PAIRED else 1)), self.counters)


def block_of(rows: int) -> int:
    """Return the number of rows that a program multiplies: 16, or 64, the tensor cores' own number (32 would take longer than 64)."""
    return 16 if rows <= 16 else LARGEST


@triton.jit
def rows_of(TILE: tl.constexpr) -> "Any":
    """Return the rows that this program multiplies, [BLOCK_ROWS]."""
    row = tl.arange(0, TILE.BLOCK_ROWS)
    if TILE.ROW_BLOCKS:
        row += tl.program_id(2) * TILE.BLOCK_ROWS
    return row


@triton.jit
def _shared_tile(TILE: tl.constexpr) -> "Any":
    """Return the number of this program's tile, which it shares with the other slices of the inner dimension."""
    tile = tl.program_id(0)
    if TILE.ROW_BLOCKS:
        tile += tl.program_id(2) * tl.num_programs(0)
    return tile


@triton.jit
def prefetch(rows_at: "Any", first: "Any", stop: "Any", LINES: tl.constexpr) -> None:
    """Prefetch into L2 the two-byte numbers first .. stop of the rows that `rows_at` points to, LINES of 128 bytes at a time."""
    for start in range(first, stop, 64 * LINES):
        column = tl.minimum(start + tl.arange(0, LINES) * 64, stop - 1)
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [rows_at[:, None] + column[None, :]], dtype=tl.int32, is_pure=False, pack=1
        )


@triton.jit
def prefetch_weights(main_at: "Any", other_at: "Any", first: "Any", stop: "Any", TILE: tl.constexpr) -> None:
    """Prefetch the first numbers of a slice of the rows of weights at `main_at`, and of those at `other_at` if PAIRED."""
    if TILE.PREFETCHED > 0:
        LINES: tl.constexpr = TILE.PREFETCHED // 64 if TILE.PREFETCHED < 1024 else 16
        until = tl.minimum(stop, first + TILE.PREFETCHED)
        prefetch(main_at, first, until, LINES)
        if TILE.PAIRED:
            prefetch(other_at, first, until, LINES)


@triton.jit
def silu(x: "Any") -> "Any":
    """Return x sigmoid(x), in float32."""
    return x / (1 + tl.exp(-x))


@triton.jit
def slice_of(inner: "Any", split: "Any", splits: "Any", TILE: tl.constexpr) -> "Any":
    """Return (first, stop), the slice of the inner dimension that `split` multiplies. It is empty (stop <= first) for the last splits."""
    steps = tl.cdiv(tl.cdiv(inner, TILE.BLOCK_INNER), splits)
    first = split * steps * TILE.BLOCK_INNER
    return first, tl.minimum(first + steps * TILE.BLOCK_INNER, inner)


@triton.jit
def stream_product(
    x_ptr: "Any",
    main_at: "Any",
    other_at: "Any",
    partials: "Any",
    rows: "Any",
    inner: "Any",
    splits: "Any",
    first: "Any",
    stop: "Any",
    column_mask: "Any",
    TILE: tl.constexpr,
) -> "Any":
    """Return (main, other, is_last): the product over first .. stop, and whether this program must go on with `sum_splits`.

    `main`, `other` float32 [BLOCK_ROWS, BLOCK_COLUMNS] are x [rows, inner] times the weights at `main_at`, and at `other_at` if PAIRED (else
    zeros). `main_at`, `other_at` [BLOCK_COLUMNS] point to rows of `inner` weights; those of `column_mask` are read once.
    """
    main, other = _multiply(x_ptr, main_at, other_at, rows, inner, first, stop, column_mask, TILE)
    is_last = True
    if TILE.SPLIT:
        is_last = _leave_partial_sums(main, other, partials, splits, TILE)
    return main, other, is_last


@triton.jit
def _multiply(
    x_ptr: "Any",
    main_at: "Any",
    other_at: "Any",
    rows: "Any",
    inner: "Any",
    first: "Any",
    stop: "Any",
    column_mask: "Any",
    TILE: tl.constexpr,
) -> "Any":
    """Return the two products of `stream_product`."""
    BLOCK_ROWS: tl.constexpr = TILE.BLOCK_ROWS
    BLOCK_COLUMNS: tl.constexpr = TILE.BLOCK_COLUMNS
    row, step_column = rows_of(TILE), tl.arange(0, TILE.BLOCK_INNER)
    row_mask, weight_mask = (row < rows)[:, None], column_mask[:, None]
    main = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
    other = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
    x_at = x_ptr + row[:, None] * inner
    for step in tl.range(0, tl.cdiv(stop - first, TILE.BLOCK_INNER), num_stages=TILE.NUM_STAGES):
        at = (first + step * TILE.BLOCK_INNER + step_column)[None, :]
        if TILE.EVEN:
            x = tl.load(x_at + at, mask=row_mask, other=0.0)
            weights = tl.load(main_at[:, None] + at, mask=weight_mask, other=0.0, eviction_policy="evict_first")
        else:
            x = tl.load(x_at + at, mask=row_mask & (at < inner), other=0.0)
            weights = tl.load(main_at[:, None] + at, mask=weight_mask & (at < inner), other=0.0, eviction_policy="evict_first")
        main = tl.dot(x, tl.trans(weights), main, input_precision=TILE.PRECISION)
        if TILE.PAIRED:
            if TILE.EVEN:
                weights = tl.load(other_at[:, None] + at, mask=weight_mask, other=0.0, eviction_policy="evict_first")
            else:
                weights = tl.load(other_at[:, None] + at, mask=weight_mask & (at < inner), other=0.0, eviction_policy="evict_first")
            other = tl.dot(x, tl.trans(weights), other, input_precision=TILE.PRECISION)
    return main, other


@triton.jit
def _leave_partial_sums(main: "Any", other: "Any", partials: "Any", splits: "Any", TILE: tl.constexpr) -> "Any":
    """Store the partial sums of one split; return whether all others of the tile have stored theirs."""
    tile, split = _shared_tile(TILE), tl.program_id(1)
    BLOCK: tl.constexpr = TILE.BLOCK_ROWS * TILE.BLOCK_COLUMNS
    STRIDE: tl.constexpr = BLOCK * (2 if TILE.PAIRED else 1)
    block = tl.arange(0, TILE.BLOCK_ROWS)[:, None] * TILE.BLOCK_COLUMNS + tl.arange(0, TILE.BLOCK_COLUMNS)[None, :]
    own = partials.partial_ptr + (tile * splits + split).to(tl.int64) * STRIDE
    tl.store(own + block, main)
    if TILE.PAIRED:
        tl.store(own + BLOCK + block, other)
    tl.debug_barrier()  # all threads have stored before one of them counts
    return tl.atomic_add(partials.counters_ptr + tile, 1, sem="acq_rel") == splits - 1


@triton.jit
def sum_splits(main: "Any", other: "Any", partials: "Any", splits: "Any", TILE: tl.constexpr) -> "Any":
    """Return (main, other) of the whole tile: the partial sums of all splits, added in their order. Sets the counter back to zero."""
    if TILE.SPLIT:
        BLOCK_ROWS: tl.constexpr = TILE.BLOCK_ROWS
        BLOCK_COLUMNS: tl.constexpr = TILE.BLOCK_COLUMNS
        BLOCK: tl.constexpr = BLOCK_ROWS * BLOCK_COLUMNS
        STRIDE: tl.constexpr = BLOCK * (2 if TILE.PAIRED else 1)
        tile = _shared_tile(TILE)
        tl.store(partials.counters_ptr + tile, 0)
        block = tl.arange(0, BLOCK_ROWS)[:, None] * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)[None, :]
        base = partials.partial_ptr + (tile * splits).to(tl.int64) * STRIDE
        main = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
        other = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
        for split in range(splits):
            main += tl.load(base + split * STRIDE + block, cache_modifier=".cg")
            if TILE.PAIRED:
                other += tl.load(base + split * STRIDE + BLOCK + block, cache_modifier=".cg")
    return main, other


@triton.jit
def load_squares(squares_ptr: "Any", rows: "Any", parts: "Any", TILE: tl.constexpr, BLOCK_PARTS: tl.constexpr) -> "Any":
    """Load squares [rows, parts] of a `Stream`, padded, for `norm_factors`; do it before the product to hide latency."""
    row, part = rows_of(TILE), tl.arange(0, BLOCK_PARTS)
    mask = (row < rows)[:, None] & (part < parts)[None, :]
    return tl.load(squares_ptr + row[:, None] * parts + part[None, :], mask=mask, other=0.0)


@triton.jit
def norm_factors(squares: "Any", inner: "Any", epsilon: "Any") -> "Any":
    """Return the factor of each row in RMSNorm, float32 [BLOCK_ROWS, 1]."""
    return (1 / tl.sqrt(tl.sum(squares, axis=1) / inner + epsilon))[:, None]
