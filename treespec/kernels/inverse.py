"""Tokens drawn with replacement from softmax(logits / temperature), by the inverse of the distribution, in two launches.

The first kernel sums the weights of each tile (`distribution.tile_sums`). In the second, one program per row and draw finds the tile in which its
uniform number lies, and then the token, by sums of float64. `reference_inverse` defines the result.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from treespec.kernels.dependent_launch import launch_options, overlaps, wait_for_inputs
from treespec.kernels.distribution import row_total, tile_sums, weights
from treespec.kernels.keys import from_ordered
from treespec.kernels.noise import random_words, reference_bits
from treespec.kernels.plain import scaled
from treespec.kernels.racing import log2_scale
from treespec.kernels.vocabulary import TILE, check_rows


def reference_inverse(logits: Tensor, count: int, temperature: float, seed: int) -> Tensor:
    """Define the tokens that are drawn, int64 [rows, count], but for rounding where a number lies between two tokens."""
    totals = scaled(logits.float(), temperature).exp().double().cumsum(-1)
    places = torch.arange(count) * 4
    words = torch.stack([torch.stack([reference_bits(seed, row, places + i) for i in (0, 1)]) for row in range(logits.shape[0])])
    uniforms = (words[:, 0].double() + words[:, 1].double() * 2.0**-32) * 2.0**-32
    return torch.searchsorted(totals, uniforms.to(logits.device) * totals[:, -1:], right=True).clamp_max(logits.shape[1] - 1)


def draw_children(
    logits: Tensor, count: int, temperature: float, seed: Tensor, child_range: tuple[Tensor, Tensor], tokens: Tensor, largest: Tensor
) -> None:
    """Draw the children of each row's node independently; write them into `tokens`, and each row's largest logit into `largest`.

    The parameters are those of `racing.race_children`, but `count` may be any number. A token of weight 0 is never drawn.
    """
    check_rows(logits, 1)
    rows, vocabulary = logits.shape
    tops, sums = tile_sums(logits, temperature)
    first, children = child_range
    _inverse_kernel[(rows, count)](
        logits,
        tops,
        sums,
        seed,
        first,
        children,
        tokens,
        largest,
        log2_scale(temperature),
        logits.stride(0),
        vocabulary,
        tops.shape[1],
        TILES=triton.next_power_of_2(tops.shape[1]),
        TILE=TILE,
        OVERLAP=overlaps(logits.device),
        num_warps=4,
        **launch_options(logits.device),
    )


@triton.jit(do_not_specialize=["tiles"])
def _inverse_kernel(
    logits_ptr: "Any",
    tops_ptr: "Any",
    sums_ptr: "Any",
    seed_ptr: "Any",
    first_ptr: "Any",
    children_ptr: "Any",
    tokens_ptr: "Any",
    largest_ptr: "Any",
    scale: "Any",
    stride_row: "Any",
    vocabulary: "Any",
    tiles: "Any",
    TILES: tl.constexpr,
    TILE: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Draw one child of one row's node; the first child's program writes the row's largest logit.

    Reads early: the ranges of a static tree's children.
    """
    row, rank = tl.program_id(0), tl.program_id(1)
    first, children = tl.load(first_ptr + row), tl.load(children_ptr + row)
    tile = tl.arange(0, TILES)
    # Above: only what is older than the pass: the shape of a static tree.
    wait_for_inputs(OVERLAP)
    largest, total = row_total(tops_ptr, sums_ptr, scale, row, tiles, TILES)
    if rank == 0:
        tl.store(largest_ptr + row, largest)
    if rank < children:
        high, low, _, _ = random_words(tl.load(seed_ptr), row, rank)
        uniform = (high.to(tl.float64) + low.to(tl.float64) * 2.3283064365386963e-10) * 2.3283064365386963e-10
        place = uniform * total
        tops = from_ordered(tl.load(tops_ptr + row * tiles + tile, mask=tile < tiles, other=-0x80000000))
        sums = tl.load(sums_ptr + row * tiles + tile, mask=tile < tiles, other=0.0)
        parts = tl.where(tile < tiles, sums * weights(tops, largest, scale).to(tl.float64), 0.0)
        ends = tl.cumsum(parts, 0)
        # The first tile that ends behind the place; the last one with any weight, where rounding has put the place behind all.
        chosen = tl.min(tl.where((ends > place) & (parts > 0), tile, TILES), 0)
        chosen = tl.where(chosen < TILES, chosen, tl.max(tl.where(parts > 0, tile, 0), 0))
        place -= tl.sum(tl.where(tile < chosen, parts, 0.0), 0)
        column = chosen * TILE + tl.arange(0, TILE)
        logits = tl.load(logits_ptr + row.to(tl.int64) * stride_row + column, mask=column < vocabulary, other=float("-inf")).to(tl.float32)
        mass = weights(logits, largest, scale).to(tl.float64)
        token = tl.min(tl.where((tl.cumsum(mass, 0) > place) & (mass > 0), column, 0x7FFFFFFF), 0)
        token = tl.where(token < vocabulary, token, tl.max(tl.where(mass > 0, column, chosen * TILE), 0))
        tl.store(tokens_ptr + first + rank, token.to(tl.int64))
