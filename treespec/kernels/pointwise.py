"""The work between the products of a decoder layer that has a launch of its own: norms, gates, and moving K/V rows."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from treespec.kernels.dependent_launch import launch_options, overlaps, wait_for_inputs
from treespec.kernels.product import Norm, silu


def reference_add_norm(x: Tensor, norm: Norm, delta: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Define the result of `add_norm`."""
    total = x if delta is None else (x.float() + delta.float().view(-1, *x.shape).sum(0)).to(x.dtype)
    wide = total.float()
    return total, (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.epsilon) * norm.weight.float()).to(x.dtype)


def add_norm(x: Tensor, norm: Norm, delta: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return x + delta and its RMSNorm, each [rows, inner].

    x [rows, inner]; delta [rows, inner], or [parts, rows, inner], whose parts are summed. Both must be contiguous.
    """
    rows, inner = x.shape
    total = torch.empty_like(x) if delta is not None else x
    out = torch.empty_like(x)
    _add_norm_kernel[(rows,)](
        x,
        delta,
        norm.weight,
        total,
        out,
        inner,
        norm.epsilon,
        NUM_PARTS=0 if delta is None else delta.numel() // x.numel(),
        BLOCK=triton.next_power_of_2(inner),
        OVERLAP=overlaps(x.device),
        num_warps=8 if inner > 2048 else 4,
        **launch_options(x.device),
    )
    return total, out


@triton.jit
def _add_norm_kernel(
    x_ptr: "Any",
    delta_ptr: "Any",
    weight_ptr: "Any",
    total_ptr: "Any",
    out_ptr: "Any",
    inner: "Any",
    epsilon: "Any",
    NUM_PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Add the parts of delta to one row of x, write the sum to total, and its RMSNorm to out.

    x, total, out [rows, inner]; delta [NUM_PARTS, rows, inner]; weight [inner]. Reads early: weight.
    """
    row = tl.program_id(0).to(tl.int64) * inner
    column = tl.arange(0, BLOCK)
    mask = column < inner
    weight = tl.load(weight_ptr + column, mask=mask, other=0.0).to(tl.float32)
    # Above: only what is older than the pass: the norm's weight.
    wait_for_inputs(OVERLAP)
    value = tl.load(x_ptr + row + column, mask=mask, other=0.0).to(tl.float32)
    if NUM_PARTS > 0:
        for part in tl.static_range(NUM_PARTS):
            value += tl.load(delta_ptr + part * tl.num_programs(0).to(tl.int64) * inner + row + column, mask=mask, other=0.0).to(tl.float32)
        rounded = value.to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + row + column, rounded, mask=mask)
        value = rounded.to(tl.float32)
    scale = 1 / tl.sqrt(tl.sum(value * value, axis=0) / inner + epsilon)
    tl.store(out_ptr + row + column, (value * scale * weight).to(out_ptr.dtype.element_ty), mask=mask)


def reference_gate(x: Tensor) -> Tensor:
    """Define the result of `gate`."""
    first, second = x.float().chunk(2, dim=-1)
    return (torch.nn.functional.silu(first) * second).to(x.dtype)


def gate(x: Tensor) -> Tensor:
    """Return silu(first half) * second half of every row: x [rows, 2 inner], contiguous -> [rows, inner]."""
    rows, inner = x.shape[0], x.shape[1] // 2
    out = torch.empty(rows, inner, dtype=x.dtype, device=x.device)
    block = 1024
    _gate_kernel[(rows, triton.cdiv(inner, block))](
        x, out, inner, BLOCK=block, OVERLAP=overlaps(x.device), num_warps=4, **launch_options(x.device)
    )
    return out


@triton.jit
def _gate_kernel(x_ptr: "Any", out_ptr: "Any", inner: "Any", BLOCK: tl.constexpr, OVERLAP: tl.constexpr) -> None:
    """Write silu(first half) * second half for BLOCK columns of one row: x [rows, 2 inner], out [rows, inner]. Reads early: nothing."""
    # Above: nothing is read.
    wait_for_inputs(OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < inner
    first = tl.load(x_ptr + row * 2 * inner + column, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(x_ptr + row * 2 * inner + inner + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * inner + column, (silu(first) * second).to(out_ptr.dtype.element_ty), mask=mask)


def reference_move_rows(storage: Tensor, length: Tensor, source: Tensor, first: int) -> None:
    """Define the result of `move_rows`."""
    moved = storage.index_select(3, length + source)
    storage.index_copy_(3, length + torch.arange(first, first + source.shape[0], device=source.device), moved)


def move_rows(storage: Tensor, length: Tensor, source: Tensor, first: int) -> None:
    """Copy slots `length + source` int64 [m] of every layer and head to slots `length + first ..`.

    All are read before any is written. storage [layers, 1, heads, capacity, dim], contiguous; `length` int64 [1].
    """
    layers, _, heads, capacity, dim = storage.shape
    count = source.shape[0]
    if count == 0:
        return
    _move_kernel[(layers * heads,)](
        storage,
        length,
        source,
        first,
        count,
        capacity,
        DIM=dim,
        BLOCK_DIM=triton.next_power_of_2(dim),
        BLOCK_SLOTS=triton.next_power_of_2(count),
        OVERLAP=overlaps(storage.device),
        num_warps=4,
        **launch_options(storage.device),
    )


@triton.jit(do_not_specialize=["first", "count", "capacity"])
def _move_kernel(
    storage_ptr: "Any",
    length_ptr: "Any",
    source_ptr: "Any",
    first: "Any",
    count: "Any",
    capacity: "Any",
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Move the slots of one layer and head: storage [programs, capacity, DIM], source int64 [count]. Reads early: length."""
    base = storage_ptr + tl.program_id(0).to(tl.int64) * capacity * DIM
    slot, column = tl.arange(0, BLOCK_SLOTS), tl.arange(0, BLOCK_DIM)
    committed = tl.load(length_ptr)
    # Above: only what is older than the pass: the length.
    wait_for_inputs(OVERLAP)
    mask = (slot < count)[:, None] & (column < DIM)[None, :]
    source = committed + tl.load(source_ptr + slot, mask=slot < count, other=0)
    moved = tl.load(base + source[:, None] * DIM + column[None, :], mask=mask, other=0.0)
    tl.debug_barrier()  # every thread has read before any writes
    tl.store(base + (committed + first + slot)[:, None] * DIM + column[None, :], moved, mask=mask)
