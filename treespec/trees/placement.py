"""Placement: where the tokens of a pass stand behind the committed ones, and what they see."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prefix:
    """The committed tokens in a cache: slots 0 .. length - 1, each at the position of its slot."""

    length: Tensor
    """int64 [1], on the device."""
    known: int | None = None
    """The same on the host; None where a captured step is to serve every length."""

    @classmethod
    def of(cls, length: int, device: torch.device | str) -> "Prefix":
        """A length that the host knows."""
        return cls(torch.full((1,), length, dtype=torch.int64, device=device), length)


def pack_bits(visible: Tensor) -> Tensor:
    """int64 [q, m / 64, rounded up] of bool [q, m]: bit b of word w says what 64 w + b does."""
    places = torch.arange(64, device=visible.device)
    return torch.stack([(word.to(torch.int64) << places[: word.shape[1]]).sum(-1) for word in torch.split(visible, 64, dim=1)], dim=1)


@dataclass(frozen=True)
class Layout:
    """How q tokens stand to each other and to the end of a prefix, whichever that is: what is the same at every step of a static tree."""

    depths: Tensor
    offsets: Tensor
    visible: Tensor
    bits: Tensor | None = None

    @classmethod
    def fixed(cls, depths: Tensor, offsets: Tensor, visible: Tensor) -> "Layout":
        """One that is used again and again: what kernels need is computed now."""
        return cls(depths, offsets, visible, pack_bits(visible))

    @classmethod
    def root(cls, device: torch.device | str) -> "Layout":
        """The last token of a prefix, which is read (again), and the one behind it."""
        places = torch.tensor([-1, 0], device=device)
        return cls.fixed(places, places, torch.tensor([[False], [True]], device=device))

    def behind(self, prefix: Prefix) -> "Placement":
        """The tokens in their places."""
        return Placement(prefix, self.depths, self.offsets, self.visible, self.bits)


@dataclass(frozen=True)
class Placement:
    """q tokens behind a prefix, or in its last places."""

    prefix: Prefix
    depths: Tensor
    """int64 [q]; position - length."""
    offsets: Tensor
    """int64 [q]; slot - length, all different. Below 0 the token is one of the prefix, and written again."""
    visible: Tensor
    """bool [q, m]; which of the m slots behind the prefix each token sees, besides the whole prefix. Its own is among them."""
    bits: Tensor | None = None
    """The same by `pack_bits`, where it is known beforehand."""

    @classmethod
    def causal(cls, start: int, count: int, device: torch.device | str) -> "Placement":
        """`count` tokens in a row behind `start` of them."""
        places = torch.arange(count, device=device)
        return cls(Prefix.of(start, device), places, places, places <= places[:, None])

    @property
    def positions(self) -> Tensor:
        """Per token, int64 [q]."""
        return self.prefix.length + self.depths

    @property
    def slots(self) -> Tensor:
        """Per token, int64 [q]."""
        return self.prefix.length + self.offsets

    def mask(self) -> Tensor:
        """bool [q, length + m]: what each token sees, slot by slot. Needs a length that the host knows."""
        if self.prefix.known is None:
            raise RuntimeError("a mask has the shape of the prefix, whose length the host does not know")
        mask = torch.ones(self.visible.shape[0], self.prefix.known + self.visible.shape[1], dtype=torch.bool, device=self.visible.device)
        mask[:, self.prefix.known :] = self.visible
        return mask
