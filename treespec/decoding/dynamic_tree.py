"""Dynamic trees: at every step, the nodes that the draft itself finds most likely.

Sources: EAGLE-2 (arXiv 2406.16858), OPT-Tree (arXiv 2406.17276), DySpec (arXiv 2410.11744).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from treespec.decoding.drafting import Proposal
from treespec.decoding.protocol import SlotModel
from treespec.decoding.timing import Timer
from treespec.errors import ModelError, TreeError
from treespec.trees.placement import Layout, Prefix
from treespec.trees.tensors import TreeTensors
from treespec.trees.tree import MAX_SIZE


@dataclass(frozen=True)
class DynamicBudget:
    """What a dynamic tree may cost: `size` nodes to verify, `depth` draft passes, `width` nodes kept per level."""

    size: int
    depth: int
    width: int

    def __post_init__(self) -> None:
        for name, value in (("depth", self.depth), ("width", self.width)):
            if value < 1:
                raise TreeError(f"{name} is {value}, but a dynamic tree needs at least 1")
        if self.size < self.depth + 1:
            shallower = f", or --depth {self.size - 1} or less" if self.size > 1 else ""
            raise TreeError(
                f"size {self.size} is too small for depth {self.depth}: such a tree has at least {self.depth + 1} nodes, the root "
                f"included; pass --size {self.depth + 1} or more{shallower}"
            )
        if self.size > self.candidates:
            raise TreeError(
                f"size {self.size} cannot be filled: {self.depth} levels of width {self.width} have {self.candidates} nodes, the root "
                f"included; pass --size {self.candidates} or less, or --width {-(-(self.size - 1) // self.depth)} or more"
            )
        if self.candidates > MAX_SIZE:
            raise TreeError(
                f"{self.depth} levels of width {self.width} have {self.candidates} nodes, the root included, which is above the limit of "
                f"{MAX_SIZE}; pass a smaller --size, --depth or --width"
            )

    @classmethod
    def of(cls, size: int, depth: int, width: int | None = None) -> "DynamicBudget":
        """With twice the average level width where none is given, so that likely levels may be wide."""
        most = max(1, size - 1)
        return cls(size, depth, min(most, -(-2 * most // max(1, depth))) if width is None else width)

    def require_tokens(self, vocabulary: int) -> None:
        """Raise ModelError where a vocabulary has too few tokens for a level."""
        if self.width > vocabulary:
            most = 1 + self.depth * vocabulary
            smaller = f" and --size {most} or less" if self.size > most else ""
            raise ModelError(
                f"width is {self.width}, but the vocabulary has {vocabulary} tokens; pass --width {vocabulary} or less{smaller}"
            )

    @property
    def candidates(self) -> int:
        """Nodes that are drafted, the root included; the best `size` of them are verified."""
        return 1 + self.depth * self.width


class DynamicDrafter:
    """Grows by cumulative log-probability: keeps the best `width` nodes per level, verifies the best `size` of all.

    A parent wins a tie with its child, so the nodes kept always form a tree. Deterministic: children are the draft's most
    likely tokens (`topk`), so the target's choice decides among them and no output changes at any temperature.
    """

    def __init__(self, draft: SlotModel, budget: DynamicBudget, vocabulary: int) -> None:
        budget.require_tokens(vocabulary)
        self.draft, self.budget, self.vocabulary = draft, budget, vocabulary
        self.size, self.slots = budget.size, budget.candidates
        self._root = Layout.root(draft.device)

    def propose(self, last: Tensor, prefix: Prefix, room: int, generator: torch.Generator | None, timer: Timer) -> Proposal:
        """See `Drafter`. With less room, the tree has `room` nodes and at most `room - 1` levels."""
        size, depth, width = min(self.size, room), min(self.budget.depth, room - 1), self.budget.width
        total, device = 1 + depth * width, last.device
        tokens = last.new_zeros(total)
        tokens[0] = last[1]
        parents, ranks, depths = torch.zeros_like(tokens), torch.zeros_like(tokens), torch.zeros_like(tokens)
        ancestors = torch.eye(total, dtype=torch.bool, device=device)
        value = torch.zeros(total, device=device)  # log-probability of the path to each node
        largest = [value[:0]]
        above = slice(0, 1)
        for level in range(depth):
            rows = torch.arange(above.start, above.stop, device=device)
            layout = Layout(torch.full_like(rows, level), rows, ancestors[above, : above.stop]) if level else self._root
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
        return Proposal(tree, tokens[kept], torch.cat(largest), rows=kept)
