"""The sum of what the GPUs of one host have computed, read from one another's memory, with the norm behind it, in one launch.

It takes the place of an all-reduce and of `add_norm` between two products of a divided layer, where a collective costs more than its data.
`reference_add_norm` of `pointwise` defines the result, with the parts of all processes as `delta`.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from treespec.kernels.dependent_launch import launch_options, overlaps, wait_for_inputs
from treespec.kernels.product import Norm


@dataclass(frozen=True)
class Peers:
    """The memory through which processes on GPUs of one host exchange rows. Every process has its own of each, and all of them are mapped here.

    Each process has two buffers of `elements` numbers, which rows take in turn, and flags, one for each row and process: the last call in which
    that process had put the row there.
    """

    rank: int
    buffers: Tensor
    """The addresses of the buffers of all processes, int64 [size]: each is of [2, elements] numbers of `dtype`."""
    flags: Tensor
    """The addresses of the flags of all processes, int64 [size]: each is of int32 [rows, size], with zeros at first."""
    calls: Tensor
    """In how many calls this process has exchanged each row, int32 [rows], with zeros at first."""
    elements: int
    dtype: torch.dtype

    def fit(self, part: Tensor) -> bool:
        """Return whether a part [rows, inner] can be exchanged."""
        return part.dtype == self.dtype and part.shape[0] <= self.calls.shape[0] and part.numel() <= self.elements


def add_norm_of_peers(x: Tensor, norm: Norm, part: Tensor, peers: Peers) -> tuple[Tensor, Tensor]:
    """Return x + the parts of all processes, and its RMSNorm, each [rows, inner]. All processes call this, with the same x and a part of their own.

    x, part [rows, inner], contiguous, for which `peers.fit`. Parts are added in the order of ranks, so all processes get the same bits. The
    device waits for the other processes; no host synchronisation.
    """
    rows, inner = x.shape
    total, out = torch.empty_like(x), torch.empty_like(x)
    _peers_kernel[(rows,)](
        x,
        part,
        norm.weight,
        total,
        out,
        peers.buffers,
        peers.flags,
        peers.calls,
        inner,
        peers.elements,
        norm.epsilon,
        RANK=peers.rank,
        SIZE=peers.buffers.shape[0],
        BLOCK=triton.next_power_of_2(inner),
        OVERLAP=overlaps(x.device),
        num_warps=8 if inner > 2048 else 4,
        **launch_options(x.device),
    )
    return total, out


@triton.jit
def _peers_kernel(
    x_ptr: "Any",
    part_ptr: "Any",
    weight_ptr: "Any",
    total_ptr: "Any",
    out_ptr: "Any",
    buffers_ptr: "Any",
    flags_ptr: "Any",
    calls_ptr: "Any",
    inner: "Any",
    elements: "Any",
    epsilon: "Any",
    RANK: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Put one row of the part where the others see it, wait for theirs, add all of them to the row of x, and write the sum and its RMSNorm.

    x, part, total, out [rows, inner]; weight [inner]; buffers and flags int64 [SIZE], addresses; calls int32 [rows]. Reads early: weight.

    A row's two buffers are taken in turn, so none is written while it is read: a program that writes one for the third time has seen, in the
    call between, a flag that the other process set after it had read the first. Programs wait for those of the same row only, and those of
    lower rows are started first in every process, so each one's partner comes to run.
    """
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    mask = column < inner
    weight = tl.load(weight_ptr + column, mask=mask, other=0.0).to(tl.float32)
    # Above: only what is older than the pass: the norm's weight.
    wait_for_inputs(OVERLAP)
    place = row.to(tl.int64) * inner + column
    call = tl.load(calls_ptr + row) + 1
    there = (call & 1).to(tl.int64) * elements + place
    mine = tl.load(part_ptr + place, mask=mask, other=0.0)
    buffer = tl.load(buffers_ptr + RANK).to(tl.pointer_type(part_ptr.dtype.element_ty))
    tl.store(buffer + there, mine, mask=mask)
    tl.debug_barrier()  # every thread has written before one of them says so
    for peer in tl.static_range(SIZE):
        if peer != RANK:
            theirs = tl.load(flags_ptr + peer).to(tl.pointer_type(tl.int32))
            tl.atomic_xchg(theirs + row * SIZE + RANK, call, sem="release", scope="sys")
    own = tl.load(flags_ptr + RANK).to(tl.pointer_type(tl.int32))
    for peer in tl.static_range(SIZE):
        if peer != RANK:
            seen = tl.atomic_add(own + row * SIZE + peer, 0, sem="acquire", scope="sys")
            while seen - call < 0:  # the difference, because calls begin again below zero one day
                seen = tl.atomic_add(own + row * SIZE + peer, 0, sem="acquire", scope="sys")
    tl.debug_barrier()
    tl.store(calls_ptr + row, call)
    value = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)
    for peer in tl.static_range(SIZE):
        if peer == RANK:
            value += mine.to(tl.float32)
        else:
            buffer = tl.load(buffers_ptr + peer).to(tl.pointer_type(part_ptr.dtype.element_ty))
            value += tl.load(buffer + there, mask=mask, other=0.0).to(tl.float32)
    rounded = value.to(total_ptr.dtype.element_ty)
    tl.store(total_ptr + place, rounded, mask=mask)
    value = rounded.to(tl.float32)
    scale = 1 / tl.sqrt(tl.sum(value * value, axis=0) / inner + epsilon)
    tl.store(out_ptr + place, (value * scale * weight).to(out_ptr.dtype.element_ty), mask=mask)
