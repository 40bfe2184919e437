"""Random numbers in kernels: the published generator, and clocks whose small values are exact."""

import pytest
import torch
import triton
import triton.language as tl

from treespec.kernels.noise import exponential, is_below, random_block, reference_bits, reference_exponential

SEED = 0x1234_5678_9ABC_DEF0


@triton.jit
def _fill(out, clocks, seed, row, first, QUADS: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    bits = random_block(tl.load(seed), row, first, QUADS)
    at = tl.arange(0, QUADS)[:, None] * 4 + tl.arange(0, 4)[None, :]
    tl.store(out + at, bits.to(tl.int64))
    tl.store(clocks + at, exponential(bits))


@triton.jit
def _compare(out, bits, chances, COUNT: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    at = tl.arange(0, COUNT)
    tl.store(out + at, is_below(tl.load(bits + at).to(tl.uint32), tl.load(chances + at)).to(tl.int32))


def test_the_published_answer() -> None:
    """Counter 0 and key 0 of Philox4x32-10, as Random123 lists it."""
    found = reference_bits(0, 0, torch.arange(4)).tolist()
    assert found == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@pytest.mark.parametrize(("row", "first"), [(0, 0), (7, 128), (511, 262_080)])
def test_a_block_is_the_reference_s(row: int, first: int, device: str) -> None:
    out, clocks = torch.zeros(64, dtype=torch.int64, device=device), torch.zeros(64, device=device)
    _fill[(1,)](out, clocks, torch.tensor([SEED], device=device), row, first, QUADS=16)
    bits = reference_bits(SEED, row, torch.arange(first, first + 64))
    assert out.tolist() == bits.tolist()
    torch.testing.assert_close(clocks.cpu(), reference_exponential(bits), rtol=2e-6, atol=0)


def test_clocks_are_exponential_to_the_last_bits() -> None:
    bits = torch.tensor([0, 1, 1000, 1 << 20, 1 << 31, (1 << 32) - 1])
    exact = -torch.log1p(-(bits.double() + 0.5) * 2.0**-32)
    found = reference_exponential(bits).double()
    torch.testing.assert_close(found[:-1], exact[:-1], rtol=2e-6, atol=0)
    assert 16 < float(found[-1]) < 17  # the rarest clocks are cut, not infinite
    many = reference_exponential(reference_bits(SEED, 3, torch.arange(1 << 18))).double()
    for moment, wanted in ((1, 1.0), (2, 2.0), (3, 6.0)):
        assert abs(float(many.pow(moment).mean()) - wanted) < 6 * wanted**2 / (1 << 9)


def test_a_chance_of_0_never_happens_and_one_of_1_always(device: str) -> None:
    bits = torch.tensor([0, 0, (1 << 32) - 1, (1 << 32) - 1, 1 << 31, 1 << 31, 5, 6], device=device)
    chances = torch.tensor([0.0, 2.0**-32, 1.0, 1 - 2.0**-24, 0.5, 0.5000001, 6 * 2.0**-32, 6 * 2.0**-32], device=device)
    out = torch.zeros(8, dtype=torch.int32, device=device)
    _compare[(1,)](out, bits, chances, COUNT=8)
    assert out.tolist() == [0, 1, 1, 0, 0, 1, 1, 0]


def test_seeds_and_rows_give_other_numbers() -> None:
    columns = torch.arange(256)
    seen = {tuple(reference_bits(seed, row, columns).tolist()) for seed in (0, 1, 1 << 32, SEED) for row in range(3)}
    assert len(seen) == 12
