"""The protocol of verifiers, which give the `Outcome` of a proposal, and the base of verifiers for sampled children."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from treespec.decoding.proposal import Proposal
from treespec.decoding.rules import Sampling
from treespec.decoding.verifiers.matching import Matching
from treespec.errors import ModelError
from treespec.kernels import dispatch
from treespec.kernels.outcome import Outcome
from treespec.kernels.plain import race, settle, widest
from treespec.trees.tensors import StaticTensors


class Verifier(Protocol):
    """Decides which path of a proposal is accepted and which token follows it. Rule: the output keeps the target's distribution."""

    def verify(self, proposal: Proposal, logits: Tensor, sampling: Sampling, length: Tensor, generator: torch.Generator | None) -> Outcome:
        """Verify a proposal after `length` int64 [1] tokens by the target's logits [n, vocabulary]. No host synchronisation."""


@dataclass(frozen=True)
class Verdict:
    """The chance of each node of a sampled tree to be accepted, before any draw, and the distribution after the last accepted one."""

    tree: StaticTensors
    chance: Tensor
    """[n]; the node is accepted if a draw from [0, 1) is below its chance and the verifier's `last` reaches it."""
    cut: Tensor
    """[n]; when all children of a node were rejected, max(p - cut q, 0) is left of the target there."""
    p: Tensor
    """[n, vocabulary]; the target's distribution after every node."""
    q: Tensor
    """[nodes above the last level, vocabulary]; the draft's distribution after these nodes."""
    tokens: Tensor
    """int64 [n]; the tokens of the nodes."""
    replacement: bool
    """Whether children were sampled with replacement."""

    def rest(self, last: Tensor) -> Tensor:
        """Return the weights [vocabulary], not normalised, for drawing the token after node `last` int64 []."""
        row = last[None]
        if not len(self.q):  # the root alone
            return self.p[0]
        drafted = self.q.index_select(0, row.clamp_max(len(self.q) - 1))  # below those, the cut is 0
        weights = torch.addcmul(self.p.index_select(0, row), drafted, self.cut[row, None], value=-1).clamp_min_(0)[0]
        return weights if self.replacement else self._without_chosen(weights, last, drafted[0])

    def _without_chosen(self, weights: Tensor, last: Tensor, drafted: Tensor) -> Tensor:
        """Return the weights with 0 at those children of `last` that the draft could not have drawn; see `residual`."""
        children = (self.tree.parents == last) & (self.tree.depths > 0)
        chosen = (children & (drafted.index_select(0, self.tokens) <= 0)).to(weights.dtype)
        return weights.where(torch.zeros_like(weights).scatter_add(0, self.tokens, chosen) == 0, 0.0)


class SampledVerifier(ABC):
    """A verifier of sampled children: `weigh` computes all chances, and `last` uses one draw per node.

    Children that were not sampled are distinct, and `Matching` verifies them.
    """

    order: ClassVar[Literal["root first", "leaves first"] | None] = None
    """The order in which this verifier goes through the tree, if kernels may run its residual chains; None: it weighs nodes in its own way.

    A subclass does not inherit it, since it weighs nodes or finds the last one in a way of its own.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.order = vars(cls).get("order")

    def verify(self, proposal: Proposal, logits: Tensor, sampling: Sampling, length: Tensor, generator: torch.Generator | None) -> Outcome:
        """See `Verifier.verify`. Raises ModelError for sampled children in a tree that is not static."""
        tokens, tree = proposal.tokens, proposal.tree
        if proposal.q is None:
            return Matching().verify(proposal, logits, sampling, length, generator)
        if not isinstance(tree, StaticTensors):
            raise ModelError("only trees known beforehand can be sampled")
        p, largest = dispatch.distribution(logits, sampling.temperature, sampling.top_p)
        if self.order is not None:
            outcome = dispatch.finish_sampled(
                tokens,
                p,
                proposal.q,
                tree,
                largest,
                proposal.largest,
                length,
                dispatch.seeds(generator, 1, tokens.device),
                replacement=proposal.replacement,
                leaves_first=self.order == "leaves first",
            )
            if outcome is not None:
                return outcome
        q = F.pad(proposal.q, (0, p.shape[-1] - proposal.q.shape[-1]))  # the draft may know fewer tokens
        verdict = self.weigh(tokens, p, q, tree, replacement=proposal.replacement)
        last = self.last(verdict, torch.rand(tree.size, dtype=widest(tokens.device), device=tokens.device, generator=generator))
        following = race(verdict.rest(last), generator).argmax()
        return settle(tokens, last, following, tree, largest, proposal.largest, length)

    @abstractmethod
    def weigh(self, tokens: Tensor, p: Tensor, q: Tensor, tree: StaticTensors, *, replacement: bool) -> Verdict:
        """Return the chance of every node.

        `tokens` int64 [n]; `p` [n, vocabulary] the target's distribution after every node; `q` [nodes above the last level,
        vocabulary] the draft's, from which children were sampled, with or without replacement. Float32 or float64.
        """

    @abstractmethod
    def last(self, verdict: Verdict, uniforms: Tensor) -> Tensor:
        """Return the last accepted node for draws `uniforms` from [0, 1): [..., n] -> int64 [...]."""

    @abstractmethod
    def mean_accepted(self, verdict: Verdict) -> Tensor:
        """Return the expected number of accepted drafted tokens [], given the tree's tokens."""
