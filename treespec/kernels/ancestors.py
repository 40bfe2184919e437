"""Ancestors: the slots after a prefix that each token sees, as packed bits."""

from dataclasses import dataclass
from typing import Any  # quoted below: Triton cannot resolve it in a kernel

import torch
import triton
import triton.language as tl
from torch import Tensor

from treespec.kernels.dependent_launch import launch_options, overlaps, wait_for_inputs
from treespec.trees.placement import Placement, pack_bits

_BLOCK_NODES = 32


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
    _pack_kernel[(triton.cdiv(n, _BLOCK_NODES), words.shape[1])](
        visible,
        words,
        n,
        m,
        visible.stride(0),
        visible.stride(1),
        BLOCK_NODES=_BLOCK_NODES,
        OVERLAP=overlaps(visible.device),
        num_warps=4,
        **launch_options(visible.device),
    )
    return Ancestors(words, m)


def ancestors_of(place: Placement) -> Ancestors:
    """Return which of a pass's tokens each one sees. The bits are packed here unless the placement has them already."""
    return pack(place.visible) if place.bits is None else Ancestors(place.bits, place.visible.shape[1])


@triton.jit(do_not_specialize=["n", "m", "stride_node", "stride_slot"])
def _pack_kernel(
    visible_ptr: "Any",
    bits_ptr: "Any",
    n: "Any",
    m: "Any",
    stride_node: "Any",
    stride_slot: "Any",
    BLOCK_NODES: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Pack the flags of BLOCK_NODES nodes and 64 slots into an int64 per node.

    visible bool [n, m], of any strides; bits int64 [n, programs along the slots]. Reads early: nothing.
    """
    # Above: nothing is read.
    wait_for_inputs(OVERLAP)
    node, group, bit = tl.program_id(0) * BLOCK_NODES + tl.arange(0, BLOCK_NODES), tl.program_id(1), tl.arange(0, 64)
    slot = group * 64 + bit
    mask = (node < n)[:, None] & (slot < m)[None, :]
    seen = tl.load(visible_ptr + node[:, None].to(tl.int64) * stride_node + slot[None, :] * stride_slot, mask=mask, other=0)
    packed = tl.sum(seen.to(tl.int64) << bit[None, :].to(tl.int64), axis=1)
    tl.store(bits_ptr + node * tl.num_programs(1) + group, packed, mask=node < n)
