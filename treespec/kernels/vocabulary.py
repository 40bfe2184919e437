"""The largest logits of each row, over whole vocabularies, in two launches and without host synchronisation.

The first kernel reads every logit once and keeps the largest of each group of 16 to 512 neighbours. The `count` best tokens of a row lie in
its `count` best groups (a group ranks by its largest logit; ties go to the smaller group). So the second kernel, with one program per row,
sorts the group maxima, reads the best groups again and sorts their logits. Group sizes near sqrt(vocabulary / count) keep both sorts short.

A logit is compared as an int32 that orders like its float32 value, with NaN above everything and -0 equal to +0. A key has that number in
the high half of an int64 and 2^32 - 1 - index in the low half. So all keys differ, ties go to the smaller index, and the result does not
depend on how the work is divided. `reference_top_tokens` defines the result.
"""

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from treespec.kernels.dependent_launch import launch_options, overlaps, wait_for_inputs

LARGEST_COUNT = 64
LARGEST_VOCABULARY = 1 << 18
_TILE = 2048
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
    _check(logits, count)
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
    _check(logits, count)
    _launch(logits, count, largest, tokens, child_range)


def _launch(logits: Tensor, count: int, values: Tensor, tokens: Tensor, child_range: tuple[Tensor, Tensor] | None) -> None:
    rows, vocabulary = logits.shape
    count_bits = (count - 1).bit_length()
    group_bits, groups_bits = _grouping(vocabulary, count_bits)
    groups, per_tile = triton.cdiv(vocabulary, 1 << group_bits), _TILE >> group_bits
    maxima = torch.empty(rows, groups, dtype=torch.int32, device=logits.device)
    first, children = child_range or (None, None)
    overlap, options = overlaps(logits.device), launch_options(logits.device)
    _maxima_kernel[(rows, triton.cdiv(groups, per_tile))](
        logits, maxima, logits.stride(0), vocabulary, groups, GROUP=1 << group_bits, TILE=per_tile, OVERLAP=overlap, num_warps=4, **options
    )
    _select_kernel[(rows,)](
        logits,
        maxima,
        values,
        tokens,
        first,
        children,
        logits.stride(0),
        vocabulary,
        groups,
        count,
        WRITE_CHILDREN=child_range is not None,
        COUNT_BITS=count_bits,
        GROUP_BITS=group_bits,
        GROUPS_BITS=groups_bits,
        OVERLAP=overlap,
        num_warps=_warps(max(groups_bits, group_bits + count_bits)),
        **options,
    )


def _check(logits: Tensor, count: int) -> None:
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
def _grouping(vocabulary: int, count_bits: int) -> tuple[int, int]:
    """Return (group_bits, groups_bits), log2 of logits per group and of groups per row, for the shortest sorts in the second kernel."""
    choices = [(bits, max(count_bits, (triton.cdiv(vocabulary, 1 << bits) - 1).bit_length())) for bits in range(4, 10)]
    return min(choices, key=lambda bits: (1 << bits[1]) + (1 << (bits[0] + count_bits)))


def _warps(bits: int) -> int:
    """Return the number of warps: one per 128 keys, at most 8. With more, barriers cost more than the shorter work per warp saves."""
    return min(8, max(1, 1 << bits >> 7))


# "Any" stands in quotes below: Triton's compiler evaluates the annotations of kernels, and refuses names from outside.


@triton.jit
def _ordered(logits: "Any") -> "Any":
    """Return int32 numbers that order like the logits, NaN above all. Only -0 becomes -1."""
    bits = logits.to(tl.float32).to(tl.int32, bitcast=True)
    return tl.where(logits != logits, 0x7FFFFFFF, bits ^ ((bits >> 31) & 0x7FFFFFFF))


@triton.jit
def _keys(ordered: "Any", index: "Any") -> "Any":
    """Return int64 keys: the larger number has the larger key; of equal numbers, the smaller index has it."""
    ordered = tl.where(ordered == -1, 0, ordered)
    return (ordered.to(tl.int64) << 32) | (0xFFFFFFFF - index.to(tl.int64))


@triton.jit
def _index(keys: "Any") -> "Any":
    return (~keys).to(tl.int32)


@triton.jit
def _bit(BITS: tl.constexpr, BIT: tl.constexpr) -> "Any":
    """Return one bit of each element's position in a [2] * BITS cube; bit 0 is the last dimension."""
    return tl.reshape(tl.arange(0, 2), [1] * (BITS - 1 - BIT) + [2] + [1] * BIT)


@triton.jit
def _swap(cube: "Any", falling: "Any", BITS: tl.constexpr, BIT: tl.constexpr) -> "Any":
    """Put each pair of elements whose positions differ in one bit in order; the larger comes first where `falling` is 1."""
    other = (
        tl.sum(cube, BITS - 1 - BIT, keep_dims=True) - cube
    )  # compiles to a shuffle; also quick in the interpreter, where tl.topk is not
    return tl.where((cube > other) != (falling ^ _bit(BITS, BIT)), other, cube)


@triton.jit
def _merge(cube: "Any", falling: "Any", BITS: tl.constexpr, RUN: tl.constexpr) -> "Any":
    """Sort bitonic runs of 2^RUN."""
    for step in tl.static_range(RUN):
        cube = _swap(cube, falling, BITS, RUN - 1 - step)
    return cube


@triton.jit
def _largest(keys: "Any", BITS: tl.constexpr, RUN: tl.constexpr, SORTED: tl.constexpr) -> "Any":
    """Return the 2^RUN largest of 2^BITS keys, largest first if SORTED, by a bitonic top-k (Shanbhag, Pirk, Madden, SIGMOD 2018).

    Runs are sorted, falling in one half of the cube and rising in the other. The larger keys of each pair across the halves are then the
    largest of both runs, and they form a bitonic run: merge it and halve again.
    """
    if RUN == 0:
        best = tl.max(tl.reshape(keys, [1, 2**BITS]), 1)
    else:
        cube = tl.reshape(keys, [2] * BITS)
        for run in tl.static_range(1, RUN):
            cube = _merge(cube, _bit(BITS, run), BITS, run)
        cube = _merge(cube, 1 if BITS == RUN else _bit(BITS, BITS - 1), BITS, RUN)
        for left in tl.static_range(BITS - 1, RUN, -1):
            cube = _merge(tl.max(cube, 0), _bit(left, left - 1), left, RUN)
        if BITS > RUN:
            cube = tl.max(cube, 0)
            if SORTED:
                cube = _merge(cube, 1, RUN, RUN)
        best = tl.reshape(cube, [2**RUN])
    return best


@triton.jit(do_not_specialize=["groups"])
def _maxima_kernel(
    logits: "Any",
    maxima: "Any",
    stride: "Any",
    vocabulary: "Any",
    groups: "Any",
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Write `maxima` [rows, groups], the largest logit of each group as `_ordered` gives it. One program takes TILE groups of a row."""
    wait_for_inputs(OVERLAP)
    row, tile = tl.program_id(0), tl.program_id(1)
    group = tile * TILE + tl.arange(0, TILE)
    index = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    found = tl.load(logits + row.to(tl.int64) * stride + index, mask=index < vocabulary, other=float("-inf"))
    tl.store(maxima + row * groups + group, tl.max(_ordered(found), 1), mask=group < groups)


@triton.jit(do_not_specialize=["groups", "count"])
def _select_kernel(
    logits: "Any",
    maxima: "Any",
    values: "Any",
    tokens: "Any",
    first: "Any",
    children: "Any",
    stride: "Any",
    vocabulary: "Any",
    groups: "Any",
    count: "Any",
    WRITE_CHILDREN: tl.constexpr,
    COUNT_BITS: tl.constexpr,
    GROUP_BITS: tl.constexpr,
    GROUPS_BITS: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Select the largest logits of one row per program. Padding ranks below -inf."""
    row = tl.program_id(0)
    group = tl.arange(0, 2**GROUPS_BITS)
    if WRITE_CHILDREN:
        start, count = tl.load(first + row), tl.load(children + row).to(tl.int32)
    wait_for_inputs(OVERLAP)
    largest = tl.load(maxima + row * groups + group, mask=group < groups, other=-0x80000000)
    best = _index(_largest(_keys(largest, group), GROUPS_BITS, COUNT_BITS, False))

    index = best[:, None] * 2**GROUP_BITS + tl.arange(0, 2**GROUP_BITS)[None, :]
    there = index < vocabulary
    found = tl.load(logits + row.to(tl.int64) * stride + index, mask=there, other=0.0)
    keys = _keys(tl.where(there, _ordered(found), -0x80000000), index)
    keys = _largest(tl.reshape(keys, [2 ** (GROUP_BITS + COUNT_BITS)]), GROUP_BITS + COUNT_BITS, COUNT_BITS, True)

    slot = tl.arange(0, 2**COUNT_BITS)
    ordered = (keys >> 32).to(tl.int32)
    value = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    if WRITE_CHILDREN:
        tl.store(values + row + slot, value, mask=slot == 0)
        tl.store(tokens + start + slot, _index(keys).to(tl.int64), mask=slot < count)
    else:
        tl.store(values + row * count + slot, value, mask=slot < count)
        tl.store(tokens + row * count + slot, _index(keys).to(tl.int64), mask=slot < count)
