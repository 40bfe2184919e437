"""Placement: the positions and cache slots of a pass's tokens after the committed ones, and the slots that they see."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prefix:
    """The committed tokens in a cache: slots 0 .. length - 1, each at the position of its slot."""

    length: Tensor
    """int64 [1], on the device."""
    known: int | None = None
    """Length on the host; it is None if a captured step is to serve every length."""

    @classmethod
    def of(cls, length: int, device: torch.device | str) -> "Prefix":
        """Return the prefix of a length that the host knows."""
        return cls(torch.full((1,), length, dtype=torch.int64, device=device), length)


def pack_bits(visible: Tensor) -> Tensor:
    """Return bool [q, m] packed into int64 [q, m / 64 rounded up]: bit b of word w stands for column 64 w + b."""
    places = torch.arange(64, device=visible.device)
    return torch.stack([(word.to(torch.int64) << places[: word.shape[1]]).sum(-1) for word in torch.split(visible, 64, dim=1)], dim=1)


@dataclass(frozen=True)
class Layout:
    """Depths, slots and visibility of q tokens relative to the end of any prefix. They are the same at every step of a static tree.

    The fields are those of `Placement`.
    """

    depths: Tensor
    offsets: Tensor
    visible: Tensor
    bits: Tensor | None = None

    @classmethod
    def fixed(cls, depths: Tensor, offsets: Tensor, visible: Tensor) -> "Layout":
        """Return a layout that is used again and again: the packed bits that kernels need are computed now."""
        return cls(depths, offsets, visible, pack_bits(visible))

    @classmethod
    def root(cls, device: torch.device | str) -> "Layout":
        """Return the layout of two tokens: the last one of the prefix, which is read again, and the one after it."""
        places = torch.tensor([-1, 0], device=device)
        return cls.fixed(places, places, torch.tensor([[False], [True]], device=device))

    def behind(self, prefix: Prefix) -> "Placement":
        """Return the tokens placed after a prefix."""
        return Placement(prefix, self.depths, self.offsets, self.visible, self.bits)


@dataclass(frozen=True)
class Placement:
    """The places of q tokens, which follow a prefix or stand in its last places."""

    prefix: Prefix
    depths: Tensor
    """int64 [q]; position - prefix length."""
    offsets: Tensor
    """int64 [q]; slot - prefix length, all different. A token below 0 is one of the prefix, which is written again."""
    visible: Tensor
    """bool [q, m]; which of the m slots after the prefix each token sees, its own among them. Every token sees the whole prefix."""
    bits: Tensor | None = None
    """`visible` packed by `pack_bits`, if that was computed beforehand; more columns may follow, which are 0."""

    @classmethod
    def causal(cls, start: int, count: int, device: torch.device | str) -> "Placement":
        """Return the placement of `count` tokens in a row after `start` committed ones."""
        places = torch.arange(count, device=device)
        return cls(Prefix.of(start, device), places, places, places <= places[:, None])

    @property
    def positions(self) -> Tensor:
        """Position of each token, int64 [q]."""
        return self.prefix.length + self.depths

    @property
    def slots(self) -> Tensor:
        """Cache slot of each token, int64 [q]."""
        return self.prefix.length + self.offsets

    def mask(self) -> Tensor:
        """Return which slots each token sees, bool [q, length + m]. The host must know the length."""
        if self.prefix.known is None:
            raise RuntimeError("a mask has the shape of the prefix, whose length the host does not know")
        mask = torch.ones(self.visible.shape[0], self.prefix.known + self.visible.shape[1], dtype=torch.bool, device=self.visible.device)
        mask[:, self.prefix.known :] = self.visible
        return mask
