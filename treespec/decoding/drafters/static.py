"""Static trees: the tree is the same at every step, and its children are drafted by a rule of `rules.RULES`."""

import torch
from torch import Tensor

from treespec.decoding.drafters.base import DrafterSetup, ModelDrafter
from treespec.decoding.proposal import Proposal
from treespec.decoding.sampling import distribution, draw, race
from treespec.decoding.timing import Timer
from treespec.kernels import dispatch
from treespec.trees.placement import Prefix
from treespec.trees.tensors import StaticTensors
from treespec.trees.tree import SpeculationTree


class StaticDrafter(ModelDrafter):
    """Drafts the same tree at every step. Raises SettingsError, ModelError for a tree that the rule or the vocabulary does not allow."""

    def __init__(self, tree: SpeculationTree, setup: DrafterSetup) -> None:
        super().__init__(setup)
        drafting = setup.drafting
        drafting.require(tree, setup.vocabulary)
        self.tree, self.replacement = tree, drafting.kind.replacement
        self.sampling = drafting.sampling(setup.sampling) if drafting.samples(setup.sampling) else None
        self._tensors = {tree.size: StaticTensors.on(tree, self.draft.device)}

    def propose(self, last: Tensor, prefix: Prefix, room: int, generator: torch.Generator | None, timer: Timer) -> Proposal:
        """See `Drafter.propose`. If there is less room, the first `room` nodes are used."""
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
            if self.sampling is None:
                dispatch.write_children(logits, tensors, depth, tokens, largest)
            else:
                drafted.append(distribution(logits, self.sampling))
                children = sample_children(drafted[-1], branches, generator, replacement=self.replacement, logits=logits)
                largest[part], tokens[below] = logits.amax(-1), children[tensors.source[depth]]
            timer.mark("drafting")
        if self.sampling is None:
            return Proposal(tensors, tokens, largest)
        q = torch.cat(drafted) if drafted else torch.empty(0, self.vocabulary, device=last.device)
        return Proposal(tensors, tokens, largest, q, self.replacement)

    def _cut_to(self, room: int) -> StaticTensors:
        size = min(self.tree.size, room)
        if size not in self._tensors:
            self._tensors[size] = StaticTensors.on(self.tree.truncated(size), self.draft.device)
        return self._tensors[size]


def sample_children(
    q: Tensor, branches: int, generator: torch.Generator | None, *, replacement: bool, logits: Tensor | None = None
) -> Tensor:
    """Sample children for every row of q [rows, vocabulary]: int64 [rows, branches], in the order in which they were drawn.

    Without replacement, these are the `branches` first of competing exponential clocks, which is Gumbel top-k
    (arXiv 1903.06059). When the support is used up, tokens of probability 0 follow, those of the largest `logits` first (None: in any
    order); so where q leaves one token, as at tiny temperatures, the children are the most likely tokens in their order.
    """
    if replacement:
        return draw(q, branches, generator)
    speeds = race(q, generator)
    if logits is not None:
        speeds = speeds.where(q > 0, logits.to(q.dtype) - logits.amax(-1, keepdim=True) - 1)  # below 0: behind all that can be drawn
    return speeds.topk(branches, dim=-1).indices
