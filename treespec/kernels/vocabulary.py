"""The largest logits of each row, over whole vocabularies, in two launches and without host synchronisation.

The first kernel reads every logit once and keeps the largest of each group of 16 to 512 neighbours. The `count` best tokens of a row lie in
its `count` best groups (a group ranks by its largest logit; ties go to the smaller group). So the second kernel, with one program per row,
sorts the group maxima, reads the best groups again and sorts their logits. Group sizes near sqrt(vocabulary / count) keep both sorts short.

Logits are compared as keys (`keys.py`), so ties go to the smaller index, and the result does not depend on how the work is divided.
`reference_top_tokens` defines the result.

For dynamic trees (`growing`), the first kernel also writes the partial sums of the softmax while it has the logits.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from treespec.kernels.dependent_launch import launch_options, overlaps, wait_for_inputs
from treespec.kernels.keys import index_of, largest_keys, make_keys, sort_warps, to_ordered, value_of

LARGEST_COUNT = 64
LARGEST_VOCABULARY = 1 << 18
TILE = 2048
"""Logits that a program of the first kernel reads."""
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def reference_top_tokens(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Define the result of `top_tokens`."""
    values, tokens = (logits.float() + 0.0).sort(dim=-1, descending=True, stable=True)  # -0 + 0 is +0
    return values[:, :count], tokens[:, :count]


def top_tokens(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` largest logits of each row, largest first: (values float32 [rows, count], tokens int64 [rows, count]).

    `logits` [rows, vocabulary], float16, bfloat16 or float32; the last dimension must be contiguous, rows may be any distance apart. Ties
    go to the smaller index; -0 and +0 tie; NaN comes before everything, so a row is sound if its first value is finite. No host
    synchronisation. The launches depend on shapes alone, so they can be captured in a CUDA graph.

    Raises ValueError for a count, vocabulary, type or layout that the kernels do not support.
    """
    check_rows(logits, count)
    values = torch.empty(logits.shape[0], count, dtype=torch.float32, device=logits.device)
    tokens = torch.empty(logits.shape[0], count, dtype=torch.int64, device=logits.device)
    _launch(logits, count, values, tokens, None)
    return values, tokens


def reference_write_children(logits: Tensor, count: int, child_range: tuple[Tensor, Tensor], tokens: Tensor, largest: Tensor) -> None:
    """Define the result of `write_children`."""
    values, best = reference_top_tokens(logits, count)
    largest.copy_(values[:, 0])
    for row, (first, children) in enumerate(zip(*(part.tolist() for part in child_range), strict=True)):
        tokens[first : first + children] = best[row, :children]


def write_children(logits: Tensor, count: int, child_range: tuple[Tensor, Tensor], tokens: Tensor, largest: Tensor) -> None:
    """Write the most likely tokens of each row into the children of its node, and its largest logit into `largest` float32 [rows].

    `child_range`: (first, children), both int64 [rows]; the k-th token of row r goes to `tokens[first[r] + k]`, int64, for
    k < children[r] <= count.
    Nothing else is written. `logits` and `count` are as in `top_tokens`.
    """
    _launch(logits, count, largest, tokens, child_range)


@dataclass(frozen=True)
class GroupMaxima:
    """The findings of the first kernel in logits [rows, vocabulary], and how it divided them."""

    maxima: Tensor
    """int32 [rows, groups]; the largest logit of each group, as `to_ordered` gives it."""
    group_bits: int
    """log2 of the logits per group."""
    groups_bits: int
    """log2 of the groups per row, rounded up; at least `count_bits`."""
    count_bits: int
    """log2 of the tokens that are asked for, rounded up."""
    tile_maxima: Tensor | None
    """float32 [rows, tiles]; the largest logit of each tile. None if no sums were asked for."""
    tile_sums: Tensor | None
    """float32 [rows, tiles]; the sum of exp(logit - largest of the tile). None if no sums were asked for."""

    @property
    def num_warps(self) -> int:
        """The number of warps for the second kernel."""
        return sort_warps(max(self.groups_bits, self.group_bits + self.count_bits))


def find_group_maxima(logits: Tensor, count: int, *, sums: bool = False) -> GroupMaxima:
    """Launch the first kernel for the `count` most likely tokens of each row. Raises ValueError; see `top_tokens`."""
    check_rows(logits, count)
    rows, vocabulary = logits.shape
    count_bits = (count - 1).bit_length()
    group_bits, groups_bits = grouping(vocabulary, count_bits)
    groups, groups_per_tile = triton.cdiv(vocabulary, 1 << group_bits), TILE >> group_bits
    tiles = triton.cdiv(groups, groups_per_tile)
    maxima = torch.empty(rows, groups, dtype=torch.int32, device=logits.device)
    tile_maxima, tile_sums = (torch.empty(rows, tiles, dtype=torch.float32, device=logits.device) if sums else None for _ in range(2))
    _maxima_kernel[(rows, tiles)](
        logits,
        maxima,
        tile_maxima,
        tile_sums,
        vocabulary,
        groups,
        logits.stride(0),
        GROUP=1 << group_bits,
        BLOCK_GROUPS=groups_per_tile,
        SUMS=sums,
        OVERLAP=overlaps(logits.device),
        num_warps=4,
        **launch_options(logits.device),
    )
    return GroupMaxima(maxima, group_bits, groups_bits, count_bits, tile_maxima, tile_sums)


def _launch(logits: Tensor, count: int, values: Tensor, tokens: Tensor, child_range: tuple[Tensor, Tensor] | None) -> None:
    found = find_group_maxima(logits, count)
    first, children = child_range or (None, None)
    _select_kernel[(logits.shape[0],)](
        logits,
        found.maxima,
        values,
        tokens,
        first,
        children,
        logits.shape[1],
        found.maxima.shape[1],
        count,
        logits.stride(0),
        WRITE_CHILDREN=child_range is not None,
        COUNT_BITS=found.count_bits,
        GROUP_BITS=found.group_bits,
        GROUPS_BITS=found.groups_bits,
        OVERLAP=overlaps(logits.device),
        num_warps=found.num_warps,
        **launch_options(logits.device),
    )


def check_rows(logits: Tensor, count: int) -> None:
    """Raise ValueError for logits or a count that the kernels do not take; see `top_tokens`."""
    if logits.dim() != 2 or 0 in logits.shape:
        raise ValueError(f"logits have shape {list(logits.shape)}; pass [rows, vocabulary], at least one of each")
    if logits.dtype not in _FLOATS:
        raise ValueError(f"logits are {logits.dtype}; pass float16, bfloat16 or float32")
    vocabulary = logits.shape[1]
    if vocabulary > 1 and logits.stride(1) != 1:
        raise ValueError(f"the logits of a row are {logits.stride(1)} elements apart; pass rows that are contiguous")
    if vocabulary > LARGEST_VOCABULARY:
        raise ValueError(f"the vocabulary has {vocabulary:,} tokens; the kernels take {LARGEST_VOCABULARY:,} at most")
    if not 1 <= count <= min(LARGEST_COUNT, vocabulary):
        raise ValueError(f"count is {count}; the kernels take 1 to {LARGEST_COUNT}, and no more than the vocabulary's {vocabulary}")


@cache
def grouping(vocabulary: int, count_bits: int) -> tuple[int, int]:
    """Return (group_bits, groups_bits), log2 of logits per group and of groups per row, for the shortest sorts in the second kernel."""
    choices = [(bits, max(count_bits, (triton.cdiv(vocabulary, 1 << bits) - 1).bit_length())) for bits in range(4, 10)]
    return min(choices, key=lambda bits: (1 << bits[1]) + (1 << (bits[0] + count_bits)))


# "Any" stands in quotes below: Triton's compiler evaluates the annotations of kernels, and refuses names from outside.


@triton.jit
def best_of_row(
    logits_ptr: "Any",
    maxima_ptr: "Any",
    vocabulary: "Any",
    groups: "Any",
    COUNT_BITS: tl.constexpr,
    GROUP_BITS: tl.constexpr,
    GROUPS_BITS: tl.constexpr,
) -> "Any":
    """Return the keys of the 2^COUNT_BITS largest of a row's logits, largest first. Padding ranks below -inf.

    `logits_ptr` [vocabulary] and `maxima_ptr` [groups] point to the row.
    """
    group = tl.arange(0, 2**GROUPS_BITS)
    maxima = tl.load(maxima_ptr + group, mask=group < groups, other=-0x80000000)
    best = index_of(largest_keys(make_keys(maxima, group), GROUPS_BITS, COUNT_BITS, False))

    index = best[:, None] * 2**GROUP_BITS + tl.arange(0, 2**GROUP_BITS)[None, :]
    mask = index < vocabulary
    logits = tl.load(logits_ptr + index, mask=mask, other=0.0)
    keys = make_keys(tl.where(mask, to_ordered(logits), -0x80000000), index)
    return largest_keys(tl.reshape(keys, [2 ** (GROUP_BITS + COUNT_BITS)]), GROUP_BITS + COUNT_BITS, COUNT_BITS, True)


@triton.jit(do_not_specialize=["groups"])
def _maxima_kernel(
    logits_ptr: "Any",
    maxima_ptr: "Any",
    tile_maxima_ptr: "Any",
    tile_sums_ptr: "Any",
    vocabulary: "Any",
    groups: "Any",
    stride_row: "Any",
    GROUP: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
    SUMS: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Find the largest logit of each of BLOCK_GROUPS groups of a row, and the tile's softmax sum if SUMS; one program per row and tile.

    Reads logits [rows, vocabulary]. Writes maxima [rows, groups], and if SUMS, tile_maxima and tile_sums [rows, tiles]; see `GroupMaxima`.
    Reads early: nothing.
    """
    # Before the wait nothing is read: the logits are from the kernel before this one.
    wait_for_inputs(OVERLAP)
    row, tile = tl.program_id(0), tl.program_id(1)
    group = tile * BLOCK_GROUPS + tl.arange(0, BLOCK_GROUPS)
    index = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    logits = tl.load(logits_ptr + row.to(tl.int64) * stride_row + index, mask=index < vocabulary, other=float("-inf"))
    maxima = tl.max(to_ordered(logits), 1)
    tl.store(maxima_ptr + row * groups + group, maxima, mask=group < groups)
    if SUMS:
        target = row * tl.num_programs(1) + tile
        largest = value_of(tl.max(maxima, 0).to(tl.int64) << 32)
        shift = tl.where(largest == float("-inf"), 0.0, largest)  # -inf - -inf would be NaN
        tl.store(tile_maxima_ptr + target, largest)
        tl.store(tile_sums_ptr + target, tl.sum(tl.sum(tl.exp(logits.to(tl.float32) - shift), 1), 0))


@triton.jit(do_not_specialize=["groups", "count"])
def _select_kernel(
    logits_ptr: "Any",
    maxima_ptr: "Any",
    values_ptr: "Any",
    tokens_ptr: "Any",
    first_ptr: "Any",
    children_ptr: "Any",
    vocabulary: "Any",
    groups: "Any",
    count: "Any",
    stride_row: "Any",
    WRITE_CHILDREN: tl.constexpr,
    COUNT_BITS: tl.constexpr,
    GROUP_BITS: tl.constexpr,
    GROUPS_BITS: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Select the largest logits of one row per program.

    Reads logits [rows, vocabulary] and maxima [rows, groups]. Writes values and tokens [rows, count]; or, if WRITE_CHILDREN, the tokens of
    row r to tokens[first[r] ..], of which there are children[r], and the row's largest logit to values [rows].
    Reads early: first, children.
    """
    row = tl.program_id(0)
    if WRITE_CHILDREN:
        start, count = tl.load(first_ptr + row), tl.load(children_ptr + row).to(tl.int32)
    # Above the wait stand only `first` and `children`, which belong to a static tree and are as old as it.
    wait_for_inputs(OVERLAP)
    keys = best_of_row(
        logits_ptr + row.to(tl.int64) * stride_row, maxima_ptr + row * groups, vocabulary, groups, COUNT_BITS, GROUP_BITS, GROUPS_BITS
    )
    slot = tl.arange(0, 2**COUNT_BITS)
    if WRITE_CHILDREN:
        tl.store(values_ptr + row + slot, value_of(keys), mask=slot == 0)
        tl.store(tokens_ptr + start + slot, index_of(keys).to(tl.int64), mask=slot < count)
    else:
        tl.store(values_ptr + row * count + slot, value_of(keys), mask=slot < count)
        tl.store(tokens_ptr + row * count + slot, index_of(keys).to(tl.int64), mask=slot < count)
