"""Propose a tree of tokens for one step with the draft model, level by level: the rules, and static trees."""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from treespec.decoding.acceptance import Verifier
from treespec.decoding.protocol import SlotModel
from treespec.decoding.sampling import Sampling, distribution, draw, race
from treespec.decoding.timing import Timer
from treespec.errors import ModelError
from treespec.kernels import dispatch
from treespec.trees.placement import Prefix
from treespec.trees.tensors import StaticTensors, TreeTensors
from treespec.trees.tree import SpeculationTree

Rule = Literal["topk", "swor", "swr"]


@dataclass(frozen=True)
class Drafting:
    """How children are drafted and verified.

    `topk`: a node's children are the draft's most likely tokens there, and the target's own choice decides among them.
    `swor`, `swr`: they are sampled from the draft's distribution at `temperature` (None: the target's), without or with
    replacement, and verified by `verifier` along residual chains. At draft temperature 0, `swor` is `topk`, and `swr` gives
    copies of the most likely token.
    """

    rule: Rule = "topk"
    temperature: float | None = None
    verifier: Verifier = "sequential"

    def __post_init__(self) -> None:
        if self.rule not in ("topk", "swor", "swr"):
            raise ModelError(f"drafting is {self.rule!r}, but it must be topk, swor or swr")
        if self.verifier not in ("sequential", "traversal"):
            raise ModelError(f"verifier is {self.verifier!r}, but it must be sequential or traversal")
        if self.temperature is not None and not 0.0 <= self.temperature < float("inf"):
            raise ModelError(f"draft temperature is {self.temperature}, but it must be 0 or a positive number")
        if self.verifier == "traversal" and self.rule == "topk":
            raise ModelError("traversal verifies sampled children, but topk drafts the most likely ones; use swor or swr, or sequential")

    def sampling(self, target: Sampling) -> Sampling:
        """How the draft's logits become the distribution that children are sampled from: top-p is the target's alone."""
        return Sampling(target.temperature if self.temperature is None else self.temperature)

    def samples(self, target: Sampling) -> bool:
        """Whether children are random; if not, they are distinct and the target's choice decides."""
        return self.rule == "swr" or (self.rule == "swor" and not self.sampling(target).greedy)

    def require_tokens(self, tree: SpeculationTree, vocabulary: int) -> None:
        """Raise ModelError where a node's children cannot all be distinct, as they are but with replacement."""
        if self.rule != "swr" and tree.max_branch > vocabulary:
            raise ModelError(
                f"the tree has a node with {tree.max_branch} children, but the vocabulary has {vocabulary} tokens; use a narrower tree"
            )


@dataclass(frozen=True)
class Proposal:
    """A tree of n tokens to verify."""

    tree: TreeTensors
    tokens: Tensor
    """int64 [n]; the root is the last committed token."""
    largest: Tensor
    """[nodes that the draft read]; each one's largest draft logit, in any order."""
    q: Tensor | None = None
    """[nodes above the last level, vocabulary]; what children were sampled from, where they were."""
    rows: Tensor | None = None
    """int64 [n]; where the draft keeps each node, counted from the root's slot; None: at its id."""


class Drafter(Protocol):
    """Proposes a tree per step. `slots`: how many cache slots the draft needs from the root's on; `size`: the target."""

    size: int
    slots: int

    def propose(self, last: Tensor, prefix: Prefix, room: int, generator: torch.Generator | None, timer: Timer) -> Proposal:
        """A tree below the committed tokens `last` int64 [2] at positions `length - 1` and `length`; the second is its root.

        The draft reads both, because the first may have been accepted as a leaf of the last tree, which the draft never
        expanded: it would have no K/V row. One draft pass per level 0 .. depth - 1; the last level's nodes are not read.
        With less `room` than the tree has nodes, it is cut. Marks `drafting` after each level.
        """


class StaticDrafter:
    """The same tree at every step."""

    def __init__(self, draft: SlotModel, tree: SpeculationTree, vocabulary: int, target: Sampling, drafting: Drafting) -> None:
        drafting.require_tokens(tree, vocabulary)
        self.draft, self.tree, self.vocabulary = draft, tree, vocabulary
        self.rule: Rule = drafting.rule if drafting.samples(target) else "topk"
        self.sampling = drafting.sampling(target)
        self.size = self.slots = tree.size
        self._tensors = {tree.size: StaticTensors.on(tree, draft.device)}

    def propose(self, last: Tensor, prefix: Prefix, room: int, generator: torch.Generator | None, timer: Timer) -> Proposal:
        """See `Drafter`. With less room, the first `room` nodes are used."""
        tensors = self._cut_to(room)
        tree = tensors.tree
        tokens = torch.empty(tree.size, dtype=torch.int64, device=last.device)
        tokens[:1].copy_(last[1:])
        largest = torch.empty(tree.levels[-1].start, device=last.device)
        drafted: list[Tensor] = []
        for depth, (level, branches) in enumerate(zip(tree.levels[:-1], tensors.branches, strict=True)):
            part, below = slice(level.start, level.stop), slice(level.stop, tree.levels[depth + 1].stop)
            place = tensors.expanded[depth].behind(prefix)
            logits = self.draft.forward(tokens[part] if depth else last, place)[-len(level) :, : self.vocabulary]
            if self.rule == "topk":
                dispatch.write_children(logits, tensors, depth, tokens, largest)
            else:
                drafted.append(distribution(logits, self.sampling))
                children = sample_children(drafted[-1], branches, generator, replacement=self.rule == "swr")
                largest[part], tokens[below] = logits.amax(-1), children[tensors.source[depth]]
            timer.mark("drafting")
        if self.rule == "topk":
            return Proposal(tensors, tokens, largest)
        return Proposal(tensors, tokens, largest, torch.cat(drafted) if drafted else torch.empty(0, self.vocabulary, device=last.device))

    def _cut_to(self, room: int) -> StaticTensors:
        size = min(self.tree.size, room)
        if size not in self._tensors:
            self._tensors[size] = StaticTensors.on(self.tree.truncated(size), self.draft.device)
        return self._tensors[size]


def sample_children(q: Tensor, branches: int, generator: torch.Generator | None, *, replacement: bool) -> Tensor:
    """Children of every row of q [rows, vocabulary]: int64 [rows, branches], in the order in which they were drawn.

    Without replacement: the `branches` first of competing exponential clocks, which is Gumbel top-k (arXiv 1903.06059);
    once the support is used up, tokens of probability 0 follow, which verification takes for absent children.
    """
    if replacement:
        return draw(q, branches, generator)
    return race(q, generator).topk(branches, dim=-1).indices
