"""Dynamic trees: at every step, the tree has the nodes that the draft itself finds most likely.

Sources: EAGLE-2 (arXiv 2406.16858), OPT-Tree (arXiv 2406.17276), DySpec (arXiv 2410.11744).
"""

import torch
from torch import Tensor

from treespec.decoding.drafters.base import DrafterSetup, ModelDrafter
from treespec.decoding.plans import DynamicBudget
from treespec.decoding.proposal import Proposal
from treespec.decoding.timing import Timer
from treespec.kernels import dispatch
from treespec.trees.growth import Growth, GrowthShape
from treespec.trees.placement import Prefix
from treespec.trees.tensors import StaticTensors
from treespec.trees.tree import SpeculationTree


class DynamicDrafter(ModelDrafter):
    """Grows a tree by cumulative log-probability: it keeps the best `width` nodes per level and proposes the best `size` of all.

    A parent wins a tie with its child, so the nodes kept always form a tree. The tree is deterministic: children are the draft's
    most likely tokens (`topk`), so the target's choice decides among them and no output changes at any temperature.
    """

    def __init__(self, budget: DynamicBudget, setup: DrafterSetup) -> None:
        super().__init__(setup, budget)
        self.budget = budget
        self._root = StaticTensors.on(SpeculationTree((-1,)), self.draft.device)
        self._shapes: dict[int, GrowthShape] = {}

    def propose(self, last: Tensor, prefix: Prefix, room: int, generator: torch.Generator | None, timer: Timer) -> Proposal:
        """See `Drafter.propose`. If there is less room, the tree has `room` nodes and a depth of at most `room - 1`."""
        size, depth = min(self.budget.size, room), min(self.budget.depth, room - 1)
        if depth == 0:
            return Proposal(self._root, last[1:], torch.empty(0, device=last.device), offsets=self._root.depths)
        growth = self.begin_growth(last, depth)
        for level in range(depth):
            self.grow(growth, level, last, prefix)
            timer.mark("drafting")
        grown = dispatch.best_nodes(growth, size)
        return Proposal(grown.tree, grown.tokens, growth.largest, offsets=grown.ids)

    def begin_growth(self, last: Tensor, depth: int) -> Growth:
        """Return a growth of `depth` levels below the committed tokens `last` int64 [2], none of which is drafted yet."""
        return dispatch.begin_growth(last[1:], self._shape(depth))

    def grow(self, growth: Growth, level: int, last: Tensor, prefix: Prefix) -> None:
        """Read the nodes at a `level` after `prefix`, which end the growth so far, and draft the level below them."""
        nodes = growth.shape.level(level)
        read = self.reader.read(growth.tokens[nodes] if level else last, growth.layout(level).behind(prefix), growth, level)
        dispatch.grow_level(read[nodes.start - nodes.stop :, : self.vocabulary], growth, level)

    def _shape(self, depth: int) -> GrowthShape:
        if depth not in self._shapes:
            self._shapes[depth] = GrowthShape.of(depth, self.budget.width, self.draft.device)
        return self._shapes[depth]
