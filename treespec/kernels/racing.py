"""Tokens drawn without replacement from softmax(logits / temperature), as the first of competing exponential clocks, in two launches.

Token x has the speed w(x) / E(x), with its weight w and an exponential clock E; the order by speed is that of sampling without replacement
(Gumbel top-k, arXiv 1903.06059). The first kernel reads every logit once, draws its clock and writes log2(w / E) as a *key*, and the largest
key of each group of neighbours. The second kernel finds the largest keys of a row as `vocabulary` does. Keys are logarithms, so no weight
underflows: where the distribution is sharp, the tokens follow one another as exact arithmetic would have it.

A key counts from the largest logit of its tile of 2,048 tokens, which the first kernel knows, and is shifted by the distance of the tile's
largest logit from the row's, which the second one knows. Both roundings keep the order within a group, so the result does not depend on how
the work is divided. `reference_race` defines the result.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from treespec.kernels.dependent_launch import launch_options, overlaps, wait_for_inputs
from treespec.kernels.keys import from_ordered, index_of, largest_keys, make_keys, sort_warps, to_ordered
from treespec.kernels.noise import exponential, random_block, reference_bits, reference_exponential
from treespec.kernels.plain import COLDEST, HOTTEST
from treespec.kernels.vocabulary import TILE, check_rows, grouping


def log2_scale(temperature: float) -> float:
    """Return the factor that turns differences of logits into differences of log2 of their weights."""
    return 1 / min(max(temperature, COLDEST), HOTTEST) / math.log(2)


def reference_keys(logits: Tensor, temperature: float, seed: int) -> Tensor:
    """Define the keys of every token, float32 [rows, vocabulary]."""
    rows, vocabulary = logits.shape
    padded = torch.nn.functional.pad(logits.float(), (0, -vocabulary % TILE), value=-torch.inf).view(rows, -1, TILE)
    tops = padded.amax(-1, keepdim=True)
    scale = torch.tensor(log2_scale(temperature), dtype=torch.float32)
    columns = torch.arange(vocabulary)
    clocks = torch.stack([reference_exponential(reference_bits(seed, row, columns)) for row in range(rows)])
    clocks = torch.nn.functional.pad(clocks, (0, -vocabulary % TILE), value=1.0).view(rows, -1, TILE).to(logits.device)
    keys = (padded - tops.where(tops > -torch.inf, 0.0)) * scale - clocks.log2()
    return (keys + (tops - tops.amax(1, keepdim=True)) * scale).flatten(1)[:, :vocabulary]


def reference_race(logits: Tensor, count: int, temperature: float, seed: int) -> tuple[Tensor, Tensor]:
    """Define the result of `race`, except that the kernel rounds differently, which matters where two keys are almost equal."""
    order = reference_keys(logits, temperature, seed).sort(dim=-1, descending=True, stable=True).indices
    return order[:, :count], logits.float().amax(-1)


def race(logits: Tensor, count: int, temperature: float, seed: Tensor) -> tuple[Tensor, Tensor]:
    """Draw `count` tokens per row without replacement: (tokens int64 [rows, count] in order, the largest logit of each row, float32).

    `logits` [rows, vocabulary] and `count` as in `vocabulary.top_tokens`; `temperature` above 0; `seed` int64 [1], on the device. Tokens
    of logit -inf come last. A row with NaN or +inf gives any tokens of the vocabulary, and its largest logit shows it. No host synchronisation.
    """
    check_rows(logits, count)
    tokens = torch.empty(logits.shape[0], count, dtype=torch.int64, device=logits.device)
    largest = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    _launch(logits, count, temperature, seed, tokens, largest, None)
    return tokens, largest


def race_children(
    logits: Tensor, count: int, temperature: float, seed: Tensor, child_range: tuple[Tensor, Tensor], tokens: Tensor, largest: Tensor
) -> None:
    """Draw the children of each row's node without replacement; write them into `tokens`, and each row's largest logit into `largest`.

    `child_range`: (first, children), both int64 [rows]; the k-th token of row r goes to `tokens[first[r] + k]`, int64, for
    k < children[r] <= count. Nothing else is written. The other parameters are those of `race`.
    """
    check_rows(logits, count)
    _launch(logits, count, temperature, seed, tokens, largest, child_range)


def race_by_weight(weights: Tensor, seed: Tensor) -> Tensor:
    """Draw one token per row with probability weight / sum: int64 [rows]. `weights` float32 [rows, vocabulary], 0 or more, contiguous rows."""
    check_rows(weights, 1)
    tokens = torch.empty(weights.shape[0], 1, dtype=torch.int64, device=weights.device)
    largest = torch.empty(weights.shape[0], dtype=torch.float32, device=weights.device)
    _launch(weights, 1, None, seed, tokens, largest, None)
    return tokens[:, 0]


def _launch(
    logits: Tensor,
    count: int,
    temperature: float | None,
    seed: Tensor,
    tokens: Tensor,
    largest: Tensor,
    child_range: tuple[Tensor, Tensor] | None,
) -> None:
    """Launch both kernels. Without a temperature, `logits` are weights."""
    rows, vocabulary = logits.shape
    count_bits = (count - 1).bit_length()
    group_bits, groups_bits = grouping(vocabulary, count_bits)
    groups, tiles = triton.cdiv(vocabulary, 1 << group_bits), triton.cdiv(vocabulary, TILE)
    keys = torch.empty(rows, vocabulary, dtype=torch.int32, device=logits.device)
    maxima = torch.empty(rows, groups, dtype=torch.int32, device=logits.device)
    tops = torch.empty(rows, tiles, dtype=torch.int32, device=logits.device)
    first, children = child_range or (None, None)
    overlap, options = overlaps(logits.device), launch_options(logits.device)
    scale = 0.0 if temperature is None else log2_scale(temperature)
    _race_kernel[(rows, tiles)](
        logits,
        seed,
        keys,
        maxima,
        tops,
        scale,
        logits.stride(0),
        vocabulary,
        groups,
        GROUP=1 << group_bits,
        TILE=TILE,
        WEIGHTS=temperature is None,
        OVERLAP=overlap,
        num_warps=4,
        **options,
    )
    _winners_kernel[(rows,)](
        keys,
        maxima,
        tops,
        tokens,
        largest,
        first,
        children,
        scale,
        vocabulary,
        groups,
        tiles,
        count,
        WRITE_CHILDREN=child_range is not None,
        COUNT_BITS=count_bits,
        GROUP_BITS=group_bits,
        GROUPS_BITS=groups_bits,
        TILES=triton.next_power_of_2(tiles),
        TILE=TILE,
        OVERLAP=overlap,
        num_warps=sort_warps(max(groups_bits, group_bits + count_bits)),
        **options,
    )


# "Any" stands in quotes below: Triton's compiler evaluates the annotations of kernels, and refuses names from outside.


@triton.jit(do_not_specialize=["groups"])
def _race_kernel(
    logits_ptr: "Any",
    seed_ptr: "Any",
    keys_ptr: "Any",
    maxima_ptr: "Any",
    tops_ptr: "Any",
    scale: "Any",
    stride_row: "Any",
    vocabulary: "Any",
    groups: "Any",
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    WEIGHTS: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Write the keys of one tile of one row, the largest key of each of its groups, and its largest logit; all as `to_ordered` numbers.

    Keys [rows, vocabulary], maxima [rows, groups], tops [rows, tiles]. WEIGHTS: the rows are weights, and tops are 0.
    Reads early: nothing.
    """
    row, tile, tiles = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    column = tile * TILE + tl.arange(0, TILE // 4)[:, None] * 4 + tl.arange(0, 4)[None, :]
    mask = column < vocabulary
    # Above: arithmetic on launch arguments alone.
    wait_for_inputs(OVERLAP)
    logits = tl.load(logits_ptr + row.to(tl.int64) * stride_row + column, mask=mask, other=float("-inf")).to(tl.float32)
    clocks = exponential(random_block(tl.load(seed_ptr), row, tile * TILE, TILE // 4))
    if WEIGHTS:
        top = 0
        keys = to_ordered(tl.log2(logits) - tl.log2(clocks))
    else:
        top = tl.max(tl.reshape(to_ordered(logits), [TILE]), 0)
        largest = from_ordered(top)
        keys = to_ordered((logits - tl.where(largest == float("-inf"), 0.0, largest)) * scale - tl.log2(clocks))
    tl.store(keys_ptr + row.to(tl.int64) * vocabulary + column, keys, mask=mask)
    group = tile * (TILE // GROUP) + tl.arange(0, TILE // GROUP)
    padded = tl.where(mask, keys, -0x80000000)
    tl.store(maxima_ptr + row * groups + group, tl.max(tl.reshape(padded, [TILE // GROUP, GROUP]), 1), mask=group < groups)
    tl.store(tops_ptr + row * tiles + tile, top)


@triton.jit
def _shifted(ordered: "Any", shift: "Any", mask: "Any") -> "Any":
    """Return keys after a shift, as `to_ordered` numbers; what is outside the mask comes behind everything."""
    return tl.where(mask, to_ordered(from_ordered(ordered) + shift), -0x80000000)


@triton.jit(do_not_specialize=["groups", "tiles", "count"])
def _winners_kernel(
    keys_ptr: "Any",
    maxima_ptr: "Any",
    tops_ptr: "Any",
    tokens_ptr: "Any",
    largest_ptr: "Any",
    first_ptr: "Any",
    children_ptr: "Any",
    scale: "Any",
    vocabulary: "Any",
    groups: "Any",
    tiles: "Any",
    count: "Any",
    WRITE_CHILDREN: tl.constexpr,
    COUNT_BITS: tl.constexpr,
    GROUP_BITS: tl.constexpr,
    GROUPS_BITS: tl.constexpr,
    TILES: tl.constexpr,
    TILE: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Write the tokens of one row with the largest keys, in order, and the row's largest logit.

    Reads early: the ranges of a static tree's children.
    """
    row = tl.program_id(0)
    group, tile = tl.arange(0, 2**GROUPS_BITS), tl.arange(0, TILES)
    start = row * count
    if WRITE_CHILDREN:
        start, count = tl.load(first_ptr + row), tl.load(children_ptr + row).to(tl.int32)
    # Above: only what is older than the pass: the shape of a static tree.
    wait_for_inputs(OVERLAP)
    top = tl.max(tl.load(tops_ptr + row * tiles + tile, mask=tile < tiles, other=-0x80000000), 0)
    largest = from_ordered(top)
    of_tile = tl.load(tops_ptr + row * tiles + group // (TILE >> GROUP_BITS), mask=group < groups, other=-0x80000000)
    maxima = tl.load(maxima_ptr + row * groups + group, mask=group < groups, other=-0x80000000)
    maxima = _shifted(maxima, (from_ordered(of_tile) - largest) * scale, group < groups)
    best = index_of(largest_keys(make_keys(maxima, group), GROUPS_BITS, COUNT_BITS, False))

    column = best[:, None] * 2**GROUP_BITS + tl.arange(0, 2**GROUP_BITS)[None, :]
    mask = column < vocabulary
    keys = tl.load(keys_ptr + row.to(tl.int64) * vocabulary + column, mask=mask, other=-0x80000000)
    of_tile = tl.load(tops_ptr + row * tiles + column // TILE, mask=mask, other=-0x80000000)
    keys = make_keys(_shifted(keys, (from_ordered(of_tile) - largest) * scale, mask), column)
    keys = largest_keys(tl.reshape(keys, [2 ** (GROUP_BITS + COUNT_BITS)]), GROUP_BITS + COUNT_BITS, COUNT_BITS, True)

    slot = tl.arange(0, 2**COUNT_BITS)
    tl.store(tokens_ptr + start + slot, index_of(keys).to(tl.int64), mask=slot < count)
    tl.store(largest_ptr + row, largest)
