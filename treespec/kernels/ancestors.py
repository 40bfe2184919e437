"""Ancestors: the slots after a prefix that each token sees, as packed bits."""

from dataclasses import dataclass
from typing import Any  # quoted below: Triton cannot resolve it in a kernel

import torch
import triton
import triton.language as tl
from torch import Tensor

from treespec.kernels.dependent_launch import launch_options, overlaps, wait_for_inputs
from treespec.trees.placement import Placement, pack_bits


@dataclass(frozen=True)
class Ancestors:
    """Bits that say which of the `slots` slots after the committed ones each node sees."""

    words: Tensor
    """int64 [n, slots / 64, rounded up], as `placement.pack_bits` makes them."""
    slots: int


def reference_pack(visible: Tensor) -> Ancestors:
    """Define the result of `pack`."""
    return Ancestors(pack_bits(visible), visible.shape[1])


def pack(visible: Tensor) -> Ancestors:
    """Pack bool [n, m], of any strides, into bits. Takes one launch."""
    n, m = visible.shape
    words = torch.empty(n, triton.cdiv(m, 64), dtype=torch.int64, device=visible.device)
    _pack_kernel[(triton.cdiv(n, 32), words.shape[1])](
        visible,
        words,
        n,
        m,
        visible.stride(0),
        visible.stride(1),
        ROWS=32,
        OVERLAP=overlaps(visible.device),
        num_warps=4,
        **launch_options(visible.device),
    )
    return Ancestors(words, m)


def ancestors_of(place: Placement) -> Ancestors:
    """Return which of a pass's tokens each one sees. The bits are packed here unless the placement has them already."""
    return pack(place.visible) if place.bits is None else Ancestors(place.bits, place.visible.shape[1])


@triton.jit(do_not_specialize=["n", "m", "row_stride", "column_stride"])
def _pack_kernel(
    visible: "Any",
    words: "Any",
    n: "Any",
    m: "Any",
    row_stride: "Any",
    column_stride: "Any",
    ROWS: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    wait_for_inputs(OVERLAP)
    row, word, bit = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1), tl.arange(0, 64)
    slot = word * 64 + bit
    there = (row < n)[:, None] & (slot < m)[None, :]
    seen = tl.load(visible + row[:, None].to(tl.int64) * row_stride + slot[None, :] * column_stride, mask=there, other=0)
    tl.store(words + row * tl.num_programs(1) + word, tl.sum(seen.to(tl.int64) << bit[None, :].to(tl.int64), axis=1), mask=row < n)
