"""Keys: numbers with an index, as integers that all differ, and the largest of them by a bitonic sort in registers.

A number is compared as an int32 that orders like its float32 value, with NaN above everything and -0 equal to +0. A key has that int32 in
the high half of an int64 and 2^32 - 1 - index in the low half. So of equal numbers the one with the smaller index has the larger key, as
in a stable sort, and whatever order the work is done in, the result is the same.
"""

from typing import Any

import triton
import triton.language as tl


def sort_warps(bits: int) -> int:
    """Return the number of warps that sort 2^bits keys: one per 128 keys, at most 8.

    With more, barriers cost more than the shorter work per warp saves.
    """
    return min(8, max(1, 1 << bits >> 7))


# "Any" stands in quotes below: Triton's compiler evaluates the annotations of kernels, and refuses names from outside.


@triton.jit
def to_ordered(logits: "Any") -> "Any":
    """Return int32 numbers that order like the logits, NaN above all. Only -0 becomes -1."""
    bits = logits.to(tl.float32).to(tl.int32, bitcast=True)
    return tl.where(logits != logits, 0x7FFFFFFF, bits ^ ((bits >> 31) & 0x7FFFFFFF))


@triton.jit
def from_ordered(ordered: "Any") -> "Any":
    """Return the float32 numbers that `to_ordered` made int32 numbers of; NaN may have other bits."""
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def make_keys(ordered: "Any", index: "Any") -> "Any":
    """Return int64 keys: the larger number has the larger key; of equal numbers, the smaller index has it."""
    ordered = tl.where(ordered == -1, 0, ordered)
    return (ordered.to(tl.int64) << 32) | (0xFFFFFFFF - index.to(tl.int64))


@triton.jit
def index_of(keys: "Any") -> "Any":
    """Return the int32 indices that keys were made with."""
    return (~keys).to(tl.int32)


@triton.jit
def _bit(BITS: tl.constexpr, BIT: tl.constexpr) -> "Any":
    """Return one bit of each element's position in a [2] * BITS cube; bit 0 is the last dimension."""
    return tl.reshape(tl.arange(0, 2), [1] * (BITS - 1 - BIT) + [2] + [1] * BIT)


@triton.jit
def _swap(cube: "Any", falling: "Any", BITS: tl.constexpr, BIT: tl.constexpr) -> "Any":
    """Put each pair of elements whose positions differ in one bit in order; the larger comes first where `falling` is 1."""
    # The sum less the element itself is its partner. It compiles to a shuffle, and is quick in the interpreter, where tl.topk is not.
    other = tl.sum(cube, BITS - 1 - BIT, keep_dims=True) - cube
    return tl.where((cube > other) != (falling ^ _bit(BITS, BIT)), other, cube)


@triton.jit
def _merge(cube: "Any", falling: "Any", BITS: tl.constexpr, RUN: tl.constexpr) -> "Any":
    """Sort bitonic runs of 2^RUN."""
    for step in tl.static_range(RUN):
        cube = _swap(cube, falling, BITS, RUN - 1 - step)
    return cube


@triton.jit
def largest_keys(keys: "Any", BITS: tl.constexpr, RUN: tl.constexpr, SORTED: tl.constexpr) -> "Any":
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


@triton.jit
def value_of(keys: "Any") -> "Any":
    """Return the float32 values that keys were made of; NaN may have other bits, and -0 has become +0."""
    return from_ordered((keys >> 32).to(tl.int32))
