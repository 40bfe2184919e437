"""A drafter of one's own: it needs no draft model, and proposes what most often followed a token in a text that was counted before.

A plan says what to draft, as plain data; its drafter proposes a tree at every step; an entry in a table brings them together. The target
verifies the tree as any other, so the output is the target's own. This runs on the CPU and offline in half a minute.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

import treeopt
from treespec.decoding.drafters import DRAFTERS
from treespec.decoding.drafters.base import Proposal
from treespec.trees.tensors import StaticTensors


def followers(texts: Any, vocabulary: int, most: int) -> torch.Tensor:
    """Return for each token the tokens that most often followed it in texts, int64 [vocabulary, most], the most frequent first."""
    counts = torch.zeros(vocabulary, vocabulary)
    for text in texts:
        ids = torch.tensor(text.ids)
        counts.index_put_((ids[:-1], ids[1:]), torch.ones(len(ids) - 1), accumulate=True)
    return counts.topk(most, dim=-1).indices


@dataclass(frozen=True)
class Counted:
    """A tree whose nodes have the most frequent followers of their parent's token as children."""

    drafter: ClassVar[str] = "counted"
    sampled: ClassVar[bool] = False

    tree: treeopt.SpeculationTree
    table: torch.Tensor = field(compare=False, repr=False)

    @property
    def size(self) -> int:
        return self.tree.size

    @property
    def depth(self) -> int:
        return self.tree.depth

    @property
    def candidates(self) -> int:
        return self.tree.size

    def require_tokens(self, vocabulary: int) -> None:
        self.tree.require_tokens(vocabulary)

    def describe(self) -> dict[str, Any]:
        return {"size": self.size, "depth": self.depth, "parents": list(self.tree.parents)}


class CountedDrafter:
    """Looks up the children of each node, level by level."""

    def __init__(self, plan: Any, setup: Any) -> None:
        setup.drafting.require(plan, setup.vocabulary)
        self.tree, self.table = plan.tree, plan.table.to(setup.device)

    def begin(self, prompt: torch.Tensor, pixels: Any) -> None:
        """Nothing is kept of a text."""

    def propose(self, last: torch.Tensor, prefix: Any, room: int, generator: Any, timer: Any) -> Proposal:
        tree = self.tree if room >= self.tree.size else self.tree.truncated(room)
        tokens = last[1:].repeat(tree.size)
        for node in range(1, tree.size):
            tokens[node] = self.table[tokens[tree.parents[node]], tree.ranks[node]]
        timer.mark("drafting")
        return Proposal(StaticTensors.on(tree, last.device), tokens, largest=torch.empty(0, device=last.device))

    def keep(self, prefix: Any, proposal: Any, outcome: Any) -> None:
        """Nothing is kept of a step."""


DRAFTERS[Counted.drafter] = CountedDrafter

target = treeopt.load_target("embedded-target")
counted = treeopt.load_prompts("stdlib-train", target, num_prompts=64, prompt_len=512)
tree = treeopt.SpeculationTree.k_ary(3, 2)
plan = Counted(tree, followers(counted, target.vocabulary_size, tree.max_branch))

report = treeopt.evaluate(target, plan, treeopt.load_prompts("stdlib", target, num_prompts=4, prompt_len=64), gen_len=48)
print(report)
