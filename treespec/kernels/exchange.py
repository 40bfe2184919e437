"""Sums over programs that share a row: each sends its part, and all wait for the whole, without another launch.

Rule: a launch takes its work by a ticket (`take_ticket`), row by row, and a program waits only for others of its own row, or for results of
earlier rows. When a program waits, all those before it have started, and the next ones start as soon as there is room; so none waits for
ever as long as the programs of one row fit on the device together. `splits_of` sees to that.

The parts are added as integers, so their order does not matter and the same numbers give the same sum. `send` counts in units of 2^-54, which
is enough where sums are compared with numbers near 1. `send_exactly` loses nothing, however small the sum is.
Triton's interpreter runs one program after the other; there a row has one program.
"""

from typing import Any  # quoted below: Triton cannot resolve it in a kernel

import torch
import triton
import triton.language as tl

from treespec.kernels.device import gpu_of

MOST_SPLITS = 64
"""The most programs of a row. There are no more than the device has multiprocessors, each of which has room for one program at least."""


def splits_of(columns: int, block: int, warps: int, device: torch.device) -> tuple[int, int, int]:
    """Return (programs of a row, columns of each, warps of each), for programs that keep about `block` columns in registers."""
    if device.type != "cuda":
        block = max(4, triton.next_power_of_2(columns))
    while triton.cdiv(columns, block) > min(MOST_SPLITS, gpu_of(device).multiprocessors):
        block, warps = 2 * block, min(32, 2 * warps)
    return triton.cdiv(columns, block), block, warps


@triton.jit
def take_ticket(ticket_ptr: "Any") -> "Any":
    """Return the number of this program in the order in which programs start; the ticket is an int64, 0 at first."""
    return tl.atomic_add(ticket_ptr, 1, sem="relaxed").to(tl.int32)


@triton.jit
def send(word_ptr: "Any", part: "Any") -> None:
    """Add this program's part of a sum, 0 to 1, to an int64 that is 0 at first; or its parts of a block of sums.

    The high 56 bits are the sum, the low 8 count the parts.
    """
    tl.atomic_add(word_ptr, ((part.to(tl.float64) * 18014398509481984.0).to(tl.int64) << 8) | 1, sem="relaxed")


@triton.jit
def _power_of_two(exponent: "Any") -> "Any":
    """Return 2^exponent, float64, for an int32 of -1022 to 1023."""
    return ((1023 + exponent).to(tl.int64) << 52).to(tl.float64, bitcast=True)


@triton.jit
def send_exactly(words_ptr: "Any", part: "Any") -> None:
    """Add this program's float32 part of a sum, 0 to 1, to four int64 that are 0 at first.

    Word i counts in units of 2^-(40 (i + 1)) what the words before it leave over; the low 8 bits of each count the parts.
    """
    lane, wide = tl.arange(0, 4), part.to(tl.float64)
    known = tl.where(
        lane > 0, tl.floor(wide * _power_of_two(40 * lane)) * 1099511627776.0, 0.0
    )  # what the words before have, in units of this one
    digits = tl.floor(wide * _power_of_two(40 * (lane + 1))) - known  # exact: a float32 has 24 bits, a float64 53
    tl.atomic_add(words_ptr + lane, (digits.to(tl.int64) << 8) | 1, sem="relaxed")


@triton.jit
def receive(word_ptr: "Any", SPLITS: tl.constexpr) -> "Any":
    """Wait until all programs of the row have sent their parts, and return the sum, float32."""
    word = tl.load(word_ptr, volatile=True)
    while (word & 255) != SPLITS:
        word = tl.load(word_ptr, volatile=True)
    return ((word >> 8).to(tl.float64) * 5.551115123125783e-17).to(tl.float32)


@triton.jit
def receive_all(words_ptr: "Any", SPLITS: tl.constexpr) -> "Any":
    """Wait until all programs of the row have sent their parts of several sums, and return the sums, a block of float32."""
    words = tl.load(words_ptr, volatile=True)
    while tl.min(tl.where((words & 255) == SPLITS, 1, 0), 0) == 0:
        words = tl.load(words_ptr, volatile=True)
    return ((words >> 8).to(tl.float64) * 5.551115123125783e-17).to(tl.float32)


@triton.jit
def receive_exactly(words_ptr: "Any", SPLITS: tl.constexpr) -> "Any":
    """Wait until all programs of the row have sent their parts by `send_exactly`, and return the sum, float32."""
    lane = tl.arange(0, 4)
    words = tl.load(words_ptr + lane, volatile=True)
    while tl.min(tl.where((words & 255) == SPLITS, 1, 0), 0) == 0:
        words = tl.load(words_ptr + lane, volatile=True)
    return tl.sum((words >> 8).to(tl.float64) * _power_of_two(-40 * (lane + 1)), 0).to(tl.float32)
