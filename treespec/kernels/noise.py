"""Random numbers inside kernels: Philox (Salmon et al., SC 2011), a function of a seed, a row and a column.

A kernel needs no state: the seed is an int64 that the step's generator draws once, and the numbers of column c of row r are those of the
counter (c / 4, r), word c % 4. So the numbers do not depend on how the work is divided, and a twin can compute the same ones.
"""

from typing import Any  # quoted below: Triton cannot resolve it in a kernel

import torch
import triton
import triton.language as tl
from torch import Tensor

_WORD = 0xFFFFFFFF
_ROUNDS = ((0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85))
_STEEPEST = 1 - 2.0**-24


def reference_bits(seed: int, row: int, columns: Tensor) -> Tensor:
    """Define the random bits of `columns` int64 [m] of one row: int64 [m], each from 0 to 2^32 - 1."""
    first, second = columns // 4, torch.full_like(columns, row)
    third, fourth = torch.zeros_like(columns), torch.zeros_like(columns)
    key = [seed & _WORD, seed >> 32 & _WORD]
    (mul_a, mul_b), raises = _ROUNDS
    for _ in range(10):
        high_b, low_b = _product(mul_b, third)
        high_a, low_a = _product(mul_a, first)
        first, second, third, fourth = high_b ^ second ^ key[0], low_b, high_a ^ fourth ^ key[1], low_a
        key = [word + more & _WORD for word, more in zip(key, raises, strict=True)]
    return torch.stack([first, second, third, fourth]).gather(0, (columns % 4)[None])[0]


def _product(factor: int, words: Tensor) -> tuple[Tensor, Tensor]:
    """Return the high and the low 32 bits of a product of 32-bit words."""
    low, high = factor * (words & 0xFFFF), factor * (words >> 16)  # each below 2^48
    middle = high + (low >> 16)
    return middle >> 16, (middle & 0xFFFF) << 16 | low & 0xFFFF


def reference_exponential(bits: Tensor) -> Tensor:
    """Define the exponential clocks, float32, of random bits."""
    uniform = ((bits.float() + 0.5) * 2.0**-32).clamp_max(_STEEPEST)
    series = uniform * (1 + uniform * (0.5 + uniform * (1 / 3 + uniform * 0.25)))
    return series.where(uniform < 0.02, -(1 - uniform).log())


# "Any" stands in quotes below: Triton's compiler evaluates the annotations of kernels, and refuses names from outside.


@triton.jit
def random_words(seed: "Any", row: "Any", quad: "Any") -> "Any":
    """Return four uint32 blocks of the shape of `quad` (int32): the random bits of columns 4 quad .. 4 quad + 3 of a row."""
    zero = quad * 0
    return tl.philox(seed, quad, zero + row, zero, zero)


@triton.jit
def random_block(seed: "Any", row: "Any", first: "Any", QUADS: tl.constexpr) -> "Any":
    """Return the random bits of the columns `first` .. `first + 4 QUADS - 1` of a row, uint32 [QUADS, 4]; `first` is a multiple of 4."""
    w0, w1, w2, w3 = random_words(seed, row, first // 4 + tl.arange(0, QUADS))
    return tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [QUADS, 4])


@triton.jit
def exponential(bits: "Any") -> "Any":
    """Return exponential clocks, float32. They are exact where they are small, and small ones decide who is first."""
    uniform = tl.minimum((bits.to(tl.float32) + 0.5) * 2.3283064365386963e-10, 0.999999940395355224609375)
    series = uniform * (1 + uniform * (0.5 + uniform * (0.3333333333333333 + uniform * 0.25)))
    return tl.where(uniform < 0.02, series, -tl.log(1 - uniform))


@triton.jit
def is_below(bits: "Any", chance: "Any") -> "Any":
    """Return whether the uniform number of these bits is below a chance, to the last of 32 bits: never for 0, always for 1."""
    return bits.to(tl.float64) < chance.to(tl.float64) * 4294967296.0
