"""Distributions of whole rows of logits, with temperature and top-p, in two launches, or three with top-p.

The first kernel writes the largest logit and the sum of weights of each tile of a row; the second adds up the row's sums and writes the
probabilities. Top-p needs the probabilities of a row in order, but not sorted: one program per row finds the least probability that stays
by comparing the mass above a few candidates at a time, and among those that are equal the smaller tokens stay.
`reference_distribution` defines the result.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from treespec.kernels.dependent_launch import launch_options, overlaps, wait_for_inputs
from treespec.kernels.plain import distribution as reference_distribution
from treespec.kernels.racing import TILE, decoded, log2_scale
from treespec.kernels.vocabulary import _check, _ordered

__all__ = ["distribution", "reference_distribution", "tile_sums"]

_ROUNDS = 16
"""Each round of the search for the least probability that stays divides the rest of 2^32 floats by 4."""


def distribution(logits: Tensor, temperature: float, top_p: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return (the probabilities, float32 [rows, vocabulary], at a temperature above 0; the largest logit of each row, float32 [rows]).

    `logits` as in `vocabulary.top_tokens`. Top-p as in `reference_distribution`; it compares sums of float32, whose rounding may keep or
    drop a token at the edge. A row with NaN or +inf has no distribution; its largest logit shows it. No host synchronisation.
    """
    _check(logits, 1)
    rows, vocabulary = logits.shape
    tops, sums = tile_sums(logits, temperature)
    tiles = tops.shape[1]
    largest = torch.empty(rows, dtype=torch.float32, device=logits.device)
    probabilities = torch.empty(rows, vocabulary, dtype=torch.float32, device=logits.device)
    overlap, options = overlaps(logits.device), launch_options(logits.device)
    _softmax_kernel[(rows, tiles)](
        logits,
        tops,
        sums,
        probabilities,
        largest,
        log2_scale(temperature),
        logits.stride(0),
        vocabulary,
        TILES=triton.next_power_of_2(tiles),
        TILE=TILE,
        OVERLAP=overlap,
        num_warps=4,
        **options,
    )
    if top_p < 1.0:
        block = min(8192, triton.next_power_of_2(vocabulary))
        _nucleus_kernel[(rows,)](
            probabilities, vocabulary, top_p, BLOCK=block, ROUNDS=_ROUNDS, OVERLAP=overlap, num_warps=16 if block > 4096 else 4, **options
        )
    return probabilities, largest


def tile_sums(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the largest logit of each tile, as an `_ordered` int32, and the sum of exp((l - largest) / temperature), float64 [rows, tiles]."""
    rows, vocabulary = logits.shape
    tiles = triton.cdiv(vocabulary, TILE)
    tops = torch.empty(rows, tiles, dtype=torch.int32, device=logits.device)
    sums = torch.empty(rows, tiles, dtype=torch.float64, device=logits.device)
    _sums_kernel[(rows, tiles)](
        logits,
        tops,
        sums,
        log2_scale(temperature),
        logits.stride(0),
        vocabulary,
        TILE=TILE,
        OVERLAP=overlaps(logits.device),
        num_warps=4,
        **launch_options(logits.device),
    )
    return tops, sums


@triton.jit
def _sums_kernel(
    logits_ptr: "Any",
    tops_ptr: "Any",
    sums_ptr: "Any",
    scale: "Any",
    stride_row: "Any",
    vocabulary: "Any",
    TILE: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Write the largest logit and the sum of weights of one tile of one row.

    Reads early: nothing.
    """
    row, tile = tl.program_id(0), tl.program_id(1)
    column = tile * TILE + tl.arange(0, TILE)
    # Above: arithmetic on launch arguments alone.
    wait_for_inputs(OVERLAP)
    logits = tl.load(logits_ptr + row.to(tl.int64) * stride_row + column, mask=column < vocabulary, other=float("-inf")).to(tl.float32)
    top = tl.max(_ordered(logits), 0)
    place = row * tl.num_programs(1) + tile
    tl.store(tops_ptr + place, top)
    tl.store(sums_ptr + place, tl.sum(weights(logits, decoded(top), scale).to(tl.float64), 0))


@triton.jit
def weights(logits: "Any", largest: "Any", scale: "Any") -> "Any":
    """Return exp((l - largest) / temperature), float32; 0 for a logit of -inf, whatever the largest is."""
    return tl.where(logits == float("-inf"), 0.0, tl.exp2((logits - largest) * scale))


@triton.jit
def row_total(tops_ptr: "Any", sums_ptr: "Any", scale: "Any", row: "Any", tiles: "Any", TILES: tl.constexpr) -> "Any":
    """Return the largest logit of a row, and its sum of weights, float64."""
    tile = tl.arange(0, TILES)
    tops = tl.load(tops_ptr + row * tiles + tile, mask=tile < tiles, other=-0x80000000)
    sums = tl.load(sums_ptr + row * tiles + tile, mask=tile < tiles, other=0.0)
    largest = decoded(tl.max(tops, 0))
    parts = tl.where(tile < tiles, weights(decoded(tops), largest, scale), 0.0)
    return largest, tl.sum(sums * parts.to(tl.float64), 0)


@triton.jit
def _softmax_kernel(
    logits_ptr: "Any",
    tops_ptr: "Any",
    sums_ptr: "Any",
    out_ptr: "Any",
    largest_ptr: "Any",
    scale: "Any",
    stride_row: "Any",
    vocabulary: "Any",
    TILES: tl.constexpr,
    TILE: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Write the probabilities of one tile of one row; the first tile's program writes the row's largest logit.

    Reads early: nothing.
    """
    row, tile, tiles = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    column = tile * TILE + tl.arange(0, TILE)
    mask = column < vocabulary
    # Above: arithmetic on launch arguments alone.
    wait_for_inputs(OVERLAP)
    logits = tl.load(logits_ptr + row.to(tl.int64) * stride_row + column, mask=mask, other=float("-inf")).to(tl.float32)
    largest, total = row_total(tops_ptr, sums_ptr, scale, row, tiles, TILES)
    out = weights(logits, largest, scale) * (1 / total).to(tl.float32)
    tl.store(out_ptr + row.to(tl.int64) * vocabulary + column, out, mask=mask)
    if tile == 0:
        tl.store(largest_ptr + row, largest)


@triton.jit
def _mass_above(row_ptr: "Any", vocabulary: "Any", a: "Any", b: "Any", c: "Any", BLOCK: tl.constexpr) -> "Any":
    """Return the masses of a row's probabilities above each of three numbers."""
    above_a, above_b, above_c = (
        tl.zeros((BLOCK,), dtype=tl.float32),
        tl.zeros((BLOCK,), dtype=tl.float32),
        tl.zeros((BLOCK,), dtype=tl.float32),
    )
    for start in range(0, vocabulary, BLOCK):
        column = start + tl.arange(0, BLOCK)
        p = tl.load(row_ptr + column, mask=column < vocabulary, other=0.0)
        above_a += tl.where(p > a, p, 0.0)
        above_b += tl.where(p > b, p, 0.0)
        above_c += tl.where(p > c, p, 0.0)
    return tl.sum(above_a, 0), tl.sum(above_b, 0), tl.sum(above_c, 0)


@triton.jit
def _float(bits: "Any") -> "Any":
    return bits.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _nucleus_kernel(
    p_ptr: "Any", vocabulary: "Any", top_p: "Any", BLOCK: tl.constexpr, ROUNDS: tl.constexpr, OVERLAP: tl.constexpr
) -> None:
    """Keep the nucleus of one row of probabilities in place: the fewest most likely tokens with a mass of `top_p`, normalised.

    A probability stays if the mass above it is below `top_p`. `least`, the smallest one that stays, lies in (low, high] by its bits,
    which order positive floats; each round compares three numbers in between.
    Reads early: nothing.
    """
    row_ptr = p_ptr + tl.program_id(0).to(tl.int64) * vocabulary
    # Above: arithmetic on launch arguments alone.
    wait_for_inputs(OVERLAP)
    low, high = tl.full((), -1, dtype=tl.int64), tl.full((), 0x3F800000, dtype=tl.int64)
    for _ in range(ROUNDS):
        quarter = (high - low + 3) // 4
        first, second, third = tl.minimum(low + quarter, high), tl.minimum(low + 2 * quarter, high), tl.minimum(low + 3 * quarter, high)
        mass_first, mass_second, mass_third = _mass_above(row_ptr, vocabulary, _float(first), _float(second), _float(third), BLOCK)
        is_first, is_second, is_third = mass_first < top_p, mass_second < top_p, mass_third < top_p
        new_high = tl.where(is_first, first, tl.where(is_second, second, tl.where(is_third, third, high)))
        low = tl.where(is_first, low, tl.where(is_second, first, tl.where(is_third, second, third)))
        high = new_high
    least = _float(high)
    above, _, _ = _mass_above(row_ptr, vocabulary, least, least, least, BLOCK)
    # Of those that are equal to `least`, the j-th stays if the mass above and j of them are below `top_p`; the first always does.
    equal = tl.maximum(tl.ceil((top_p - above) / least), 1.0)
    kept, seen = tl.zeros((BLOCK,), dtype=tl.float32), 0
    for start in range(0, vocabulary, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = column < vocabulary
        p = tl.load(row_ptr + column, mask=mask, other=0.0)
        same = (mask & (p == least)).to(tl.int32)
        p = tl.where((p > least) | ((same == 1) & (seen + tl.cumsum(same, 0) <= equal)), p, 0.0)
        seen += tl.sum(same, 0)
        kept += p
        tl.store(row_ptr + column, p, mask=mask)
    whole = 1 / tl.sum(kept, 0)
    tl.debug_barrier()  # every thread's numbers are written before any is read again
    for start in range(0, vocabulary, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = column < vocabulary
        tl.store(row_ptr + column, tl.load(row_ptr + column, mask=mask, other=0.0) * whole, mask=mask)
