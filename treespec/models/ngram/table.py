"""NgramTable: what followed every context of a corpus, and how often, in sorted arrays that all nodes of a tree are looked up in at once.

The contexts form a trie that is read backwards, from the newest token to older ones. A context that occurs once is not made longer: what
follows it is known.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from treespec.models.ngram import LONGEST

MOST_FOLLOWING = 32
"""Most tokens that are kept for a context: those that follow it most often. Others count as unseen."""

_Ids = NDArray[np.int64]


@dataclass(frozen=True)
class NgramTable:
    """The contexts of a corpus and what followed them. Context 0 is the empty one; `contexts` are counted with it."""

    keys: Tensor
    """int64 [contexts - 1], ascending: (the context without its oldest token) * (vocabulary + 1) + that token; number i is of context i + 1."""
    starts: Tensor
    """int64 [contexts + 2]: the places where the following tokens of each context begin; those of the last one, `unknown`, are none."""
    following: Tensor
    """int64 [pairs]: the tokens that followed, the most frequent first."""
    counts: Tensor
    """int64 [pairs]: how often they did."""
    unigrams: Tensor
    """int64 [vocabulary]: how often each token occurs."""

    @classmethod
    def of(cls, texts: Sequence[Sequence[int]], vocabulary: int) -> "NgramTable":
        """Count texts of tokens below `vocabulary`, one of which has two or more. No context reaches from one text into another."""
        end = vocabulary  # stands between texts
        tokens = np.concatenate([np.append(np.asarray(text, dtype=np.int64), end) for text in texts])
        orders = list(_orders(tokens, vocabulary))
        ends = np.concatenate([order.widths for order in orders]).cumsum()
        return cls(
            keys=torch.from_numpy(np.concatenate([order.keys for order in orders])),
            starts=torch.from_numpy(np.concatenate([[0, 0], ends, ends[-1:]])),
            following=torch.from_numpy(np.concatenate([order.following for order in orders])),
            counts=torch.from_numpy(np.concatenate([order.counts for order in orders])),
            unigrams=torch.from_numpy(np.bincount(tokens[tokens != end], minlength=vocabulary)),
        )

    def to(self, device: torch.device) -> "NgramTable":
        """Return the table on a device."""
        return NgramTable(*(part.to(device) for part in (self.keys, self.starts, self.following, self.counts, self.unigrams)))

    def look_up(self, contexts: Tensor) -> tuple[Tensor, Tensor]:
        """Return what followed the last 1, 2, .. tokens of contexts int64 [q, LONGEST], the newest token first; -1 stands for none.

        Returns tokens and counts, int64 [q, LONGEST, MOST_FOLLOWING]; where less followed, token 0 with count 0. No host synchronisation.
        """
        base, unknown = self.unigrams.shape[0] + 1, self.starts.shape[0] - 2
        node = torch.zeros_like(contexts[:, 0])
        nodes = []
        for token in contexts.unbind(1):
            key = node * base + token.masked_fill(token < 0, base - 1)  # no context has the token that stands between texts
            place = torch.searchsorted(self.keys, key).clamp_max(self.keys.shape[0] - 1)
            node = (place + 1).masked_fill(self.keys[place] != key, unknown)
            nodes.append(node)
        found = torch.stack(nodes, dim=1)[..., None]
        place = self.starts[found] + torch.arange(MOST_FOLLOWING, device=contexts.device)
        beyond = place >= self.starts[found + 1]
        place = place.masked_fill(beyond, 0)
        return self.following[place].masked_fill(beyond, 0), self.counts[place].masked_fill(beyond, 0)


@dataclass(frozen=True)
class _Order:
    """The contexts of one length."""

    keys: _Ids
    widths: _Ids
    """Number of tokens that followed each."""
    following: _Ids
    counts: _Ids


def _orders(tokens: _Ids, vocabulary: int) -> Iterator[_Order]:
    """Yield the contexts of 1, 2, .. tokens, as long as there are any."""
    end, first = vocabulary, 1
    at = np.flatnonzero((tokens[:-1] != end) & (tokens[1:] != end))  # the newest token of each context
    above = np.zeros(len(at), dtype=np.int64)
    for length in range(1, LONGEST + 1):
        oldest = at - (length - 1)
        whole = (oldest >= 0) & (tokens[oldest] != end)
        at, above = at[whole], above[whole]
        if not len(at):
            return
        keys, own, often = np.unique(above * (vocabulary + 1) + tokens[at - (length - 1)], return_inverse=True, return_counts=True)
        pairs, counts = np.unique(own * vocabulary + tokens[at + 1], return_counts=True)
        ordered = np.lexsort((-counts, pairs // vocabulary))
        pairs, counts = pairs[ordered], counts[ordered]
        of = pairs // vocabulary
        widths = np.bincount(of, minlength=len(keys))
        kept = np.arange(len(of)) - (widths.cumsum() - widths)[of] < MOST_FOLLOWING
        yield _Order(keys, np.minimum(widths, MOST_FOLLOWING), pairs[kept] % vocabulary, counts[kept])
        again = often[own] > 1
        at, above = at[again], first + own[again]
        first += len(keys)
