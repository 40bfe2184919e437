"""Distributions of whole rows of logits, with temperature and top-p, in two launches, or three with top-p.

The first kernel writes the largest logit and the sum of weights of each tile of a row; the second adds up the row's sums and writes the
probabilities. Top-p needs the probabilities of a row in order, but not sorted: the programs of a row find the smallest probability that stays by
comparing the mass above three candidates at a time (see `exchange`), and among those that equal it the smaller tokens stay.
`reference_distribution` defines the result.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from treespec.kernels.dependent_launch import launch_options, overlaps, wait_for_inputs
from treespec.kernels.exchange import receive, receive_all, send, splits_of, take_ticket
from treespec.kernels.keys import from_ordered, to_ordered
from treespec.kernels.plain import distribution as reference_distribution
from treespec.kernels.racing import log2_scale
from treespec.kernels.vocabulary import TILE, check_rows

__all__ = ["distribution", "reference_distribution", "tile_sums"]

_ROUNDS = 16
"""Each round of the search for the smallest probability that stays divides the rest of 2^30 floats by 4."""
_LEAST_MASS = 1e-30
"""Below it, too, the most likely token stays alone; a kernel's float32 would take the least numbers for 0, and no token would stay."""
_BLOCK, _WARPS = 4096, 8
"""Tokens that a program of the nucleus keeps in registers, and its warps."""


def distribution(logits: Tensor, temperature: float, top_p: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return (the probabilities, float32 [rows, vocabulary], at a temperature above 0; the largest logit of each row, float32 [rows]).

    `logits` as in `vocabulary.top_tokens`. Top-p as in `reference_distribution`; it compares sums of float32, whose rounding may keep or
    drop a token at the edge. A row with NaN or +inf has no distribution; its largest logit shows it. No host synchronisation.
    """
    check_rows(logits, 1)
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
        splits, block, warps = splits_of(vocabulary, _BLOCK, _WARPS, logits.device)
        words = torch.zeros(1 + rows * (4 * _ROUNDS + 2 + splits), dtype=torch.int64, device=logits.device)
        _nucleus_kernel[(rows * splits,)](
            probabilities,
            words,
            words[1:],
            vocabulary,
            max(top_p, _LEAST_MASS),
            BLOCK=block,
            SPLITS=splits,
            SPLITS_UP=triton.next_power_of_2(splits),
            ROUNDS=_ROUNDS,
            OVERLAP=overlap,
            num_warps=warps,
            **options,
        )
    return probabilities, largest


def tile_sums(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the largest logit of each tile, as an `to_ordered` int32, and the sum of exp((l - largest) / temperature), float64 [rows, tiles]."""
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
    top = tl.max(to_ordered(logits), 0)
    place = row * tl.num_programs(1) + tile
    tl.store(tops_ptr + place, top)
    tl.store(sums_ptr + place, tl.sum(weights(logits, from_ordered(top), scale).to(tl.float64), 0))


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
    largest = from_ordered(tl.max(tops, 0))
    parts = tl.where(tile < tiles, weights(from_ordered(tops), largest, scale), 0.0)
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
def _float(bits: "Any") -> "Any":
    return bits.to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["vocabulary", "top_p"])
def _nucleus_kernel(
    p_ptr: "Any",
    ticket_ptr: "Any",
    words_ptr: "Any",
    vocabulary: "Any",
    top_p: "Any",
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
    SPLITS_UP: tl.constexpr,
    ROUNDS: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Keep the nucleus of one row of probabilities in place, over one part of the vocabulary, and normalise it.

    A probability stays if the mass above it is below `top_p`. The smallest one that stays lies in (low, high] by its bits, which order
    positive floats; each round compares three numbers in between. Words of memory, int64, 0 at first: the ticket; per row, four sums for each
    round, the mass above the smallest, the mass that is kept, and per part the number of those that equal the smallest, and 1.
    Reads early: nothing.
    """
    # Above: nothing.
    wait_for_inputs(OVERLAP)
    ticket = take_ticket(ticket_ptr)
    row, split = ticket // SPLITS, ticket % SPLITS
    words_ptr += row * (4 * ROUNDS + 2 + SPLITS)
    column = split * BLOCK + tl.arange(0, BLOCK)
    mask = column < vocabulary
    row_ptr = p_ptr + row.to(tl.int64) * vocabulary
    p = tl.load(row_ptr + column, mask=mask, other=0.0)
    # The tokens of at most `least` have more than 1 - top_p together, so `least` is at least an equal share of that. Half of it, for rounding:
    low, high = ((1 - top_p) * (0.5 / vocabulary)).to(tl.int32, bitcast=True), 0x3F800000  # of 1
    lane = tl.arange(0, 4)
    for turn in range(ROUNDS):
        if high - low > 1:  # the same for all programs of the row
            quarter = (high - low + 3) // 4
            first, second, third = tl.minimum(low + quarter, high), tl.minimum(low + 2 * quarter, high), tl.minimum(low + 3 * quarter, high)
            above_first = tl.sum(tl.where(p > _float(first), p, 0.0), 0)
            above_second = tl.sum(tl.where(p > _float(second), p, 0.0), 0)
            above_third = tl.sum(tl.where(p > _float(third), p, 0.0), 0)
            above = tl.where(lane == 0, above_first, tl.where(lane == 1, above_second, tl.where(lane == 2, above_third, 0.0)))
            send(words_ptr + 4 * turn + lane, above)
            chosen = tl.min(tl.where(receive_all(words_ptr + 4 * turn + lane, SPLITS) < top_p, lane, 3), 0)  # the first that may stay
            low, high = (
                tl.minimum(low + chosen * quarter, high),
                tl.where(chosen == 3, high, tl.minimum(low + (chosen + 1) * quarter, high)),
            )
    least = _float(high)
    # Of those that equal `least`, the j-th stays if the mass above and j of them are below `top_p`; the first always does.
    word = words_ptr + 4 * ROUNDS
    send(word, tl.sum(tl.where(p > least, p, 0.0), 0))
    same = (mask & (p == least)).to(tl.int32)
    tl.atomic_add(word + 2 + split, (tl.sum(same, 0).to(tl.int64) << 1) | 1, sem="relaxed")
    equal = tl.maximum(tl.ceil((top_p - receive(word, SPLITS)) / least), 1.0)
    part = tl.arange(0, SPLITS_UP)
    counts = tl.load(word + 2 + part, mask=part < split, other=1, volatile=True)
    while tl.min(counts, 0) == 0:
        counts = tl.load(word + 2 + part, mask=part < split, other=1, volatile=True)
    before = tl.sum(counts >> 1, 0)
    p = tl.where((p > least) | ((same == 1) & (before + tl.cumsum(same, 0) <= equal)), p, 0.0)
    send(word + 1, tl.sum(p, 0))
    tl.store(row_ptr + column, p / receive(word + 1, SPLITS), mask=mask)
