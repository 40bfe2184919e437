"""Dynamic trees: at every step, the tree has the nodes that the draft itself finds most likely.

Sources: EAGLE-2 (arXiv 2406.16858), OPT-Tree (arXiv 2406.17276), DySpec (arXiv 2410.11744).
"""

import torch
from torch import Tensor

from treespec.decoding.drafters.base import DrafterSetup, ModelDrafter
from treespec.decoding.plans import DynamicBudget
from treespec.decoding.proposal import Proposal
from treespec.decoding.timing import Timer
from treespec.trees.placement import Layout, Prefix
from treespec.trees.tensors import TreeTensors


class DynamicDrafter(ModelDrafter):
    """Grows a tree by cumulative log-probability: it keeps the best `width` nodes per level and proposes the best `size` of all.

    A parent wins a tie with its child, so the nodes kept always form a tree. The tree is deterministic: children are the draft's
    most likely tokens (`topk`), so the target's choice decides among them and no output changes at any temperature.
    """

    def __init__(self, budget: DynamicBudget, setup: DrafterSetup) -> None:
        super().__init__(setup)
        setup.drafting.require(budget, setup.vocabulary)
        self.budget = budget
        self._root = Layout.root(self.draft.device)

    def propose(self, last: Tensor, prefix: Prefix, room: int, generator: torch.Generator | None, timer: Timer) -> Proposal:
        """See `Drafter.propose`. If there is less room, the tree has `room` nodes and a depth of at most `room - 1`."""
        size, depth, width = min(self.budget.size, room), min(self.budget.depth, room - 1), self.budget.width
        total, device = 1 + depth * width, last.device
        tokens = last.new_zeros(total)
        tokens[0] = last[1]
        parents, ranks, depths = torch.zeros_like(tokens), torch.zeros_like(tokens), torch.zeros_like(tokens)
        ancestors = torch.eye(total, dtype=torch.bool, device=device)
        value = torch.zeros(total, device=device)  # log-probability of the path to each node
        largest = [value[:0]]
        above = slice(0, 1)
        for level in range(depth):
            offsets = torch.arange(above.start, above.stop, device=device)
            layout = Layout(torch.full_like(offsets, level), offsets, ancestors[above, : above.stop]) if level else self._root
            read = self.draft.forward(tokens[above] if level else last, layout.behind(prefix))
            logits = read[above.start - above.stop :, : self.vocabulary].float()
            largest.append(logits.amax(-1))
            chances, children = logits.log_softmax(-1).topk(width, dim=-1)
            values = (value[above, None] + chances).flatten()
            best = values.sort(descending=True, stable=True).indices[:width]
            below = slice(above.stop, above.stop + width)
            tokens[below], value[below] = children.flatten()[best], values[best]
            parents[below], ranks[below] = best // width + above.start, best % width
            depths[below].fill_(level + 1)
            ancestors[below] |= ancestors[parents[below]]
            above = below
            timer.mark("drafting")
        # stable: of equal values the earlier node stays, and parents come before their children
        kept = value.sort(descending=True, stable=True).indices[:size].sort().values
        ids = torch.zeros_like(tokens).scatter_(0, kept, torch.arange(size, device=device))
        tree = TreeTensors(depth, depths[kept], ids[parents[kept]], ranks[kept], ancestors[kept][:, kept])
        return Proposal(tree, tokens[kept], torch.cat(largest), offsets=kept)
