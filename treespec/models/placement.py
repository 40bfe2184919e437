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

    def without(self, count: int) -> "Prefix":
        """All but the last `count` tokens."""
        return Prefix(self.length - count, None if self.known is None else self.known - count)


@dataclass(frozen=True)
class Placement:
    """q tokens behind a prefix."""

    prefix: Prefix
    depths: Tensor
    """int64 [q]; position - length."""
    rows: Tensor
    """int64 [q]; slot - length, all different."""
    visible: Tensor
    """bool [q, m]; which of the m slots behind the prefix each token sees, besides the whole prefix. Its own is among them."""

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
        return self.prefix.length + self.rows

    def mask(self) -> Tensor:
        """bool [q, length + m]: what each token sees, slot by slot. Needs a length that the host knows."""
        if self.prefix.known is None:
            raise RuntimeError("a mask has the shape of the prefix, whose length the host does not know")
        mask = torch.ones(self.visible.shape[0], self.prefix.known + self.visible.shape[1], dtype=torch.bool, device=self.visible.device)
        mask[:, self.prefix.known :] = self.visible
        return mask
