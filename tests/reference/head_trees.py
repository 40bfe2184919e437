"""A text with a tree behind it, read by a head level by level, and each node's path for the slow implementations."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tests.reference.head_files import HT, Published, PublishedEagle, V, target
from tests.reference.heads import Eagle, Eagle3
from treespec.decoding.protocol import HeadLevel
from treespec.models.heads.levels import LayeredHead
from treespec.models.heads.loading import load_head
from treespec.trees.placement import Placement, Prefix
from treespec.trees.tree import SpeculationTree

TREE = SpeculationTree.from_branches([[3], [2, 1, 1], [2, 1, 0, 1], [1, 0, 1, 0]])
LENGTH = 7


@dataclass(frozen=True)
class Text:
    """A text of LENGTH tokens and a root, the target's states at all tokens but the root, and a tree of tokens below the root."""

    tokens: Tensor
    """int64 [LENGTH + 1]; the last one is the root."""
    states: Tensor
    """[LENGTH, n, Ht]."""
    nodes: Tensor
    """int64 [TREE.size]; the root's is the text's last token."""

    @classmethod
    def random(cls, states: int, width: int, seed: int = 3) -> "Text":
        random = torch.Generator().manual_seed(seed)
        tokens = torch.randint(V, (LENGTH + 1,), generator=random)
        nodes = torch.randint(V, (TREE.size,), generator=random)
        nodes[0] = tokens[-1]
        return cls(tokens, torch.randn(LENGTH, states, width, generator=random) * 2, nodes)

    def path_to(self, node: int) -> list[int]:
        """The tokens from the root's child to a node."""
        path = []
        while node:
            path.append(int(self.nodes[node]))
            node = TREE.parents[node]
        return path[::-1]


def committed(head: LayeredHead, text: Text, start: int, stop: int, *, keep_last: bool = False) -> HeadLevel:
    """Read tokens start .. stop - 1 of a text with the states before them."""
    place = Placement.causal(start, stop - start, "cpu")
    keep = torch.tensor([stop - start - 1]) if keep_last else None
    return head.forward(text.tokens[start:stop], head.features(text.states[start - 1 : stop - 1].to(dtype_of(head))), place, keep)


def dtype_of(head: LayeredHead) -> torch.dtype:
    return head.borrowed.embedding.dtype


def opened(layout: Published | PublishedEagle, folder: Path) -> tuple[LayeredHead, Eagle3 | Eagle, Text]:
    """Write a layout, and return its head, its slow twin, and a text with the states that it reads."""
    weights = layout.write(folder)
    head = load_head(str(folder), target())
    assert isinstance(head, LayeredHead)
    assert head.state_layers == layout.states
    return head, layout.slow(weights, target()), Text.random(len(layout.states), HT)


def slow_over_the_tree(slow: Eagle3 | Eagle, text: Text) -> Tensor:
    """Logits [TREE.size, Vd] after every node, each by its own path."""
    paths = [slow.along(text.states.double(), text.tokens[1:].tolist(), text.path_to(node)) for node in range(TREE.size)]
    return torch.stack(paths)


def require_same(found: Tensor, wanted: Tensor) -> None:
    """Fail unless logits are those of the slow implementation, up to rounding that is small beside how much they vary."""
    assert found.shape == wanted.shape
    assert wanted.std() > 0.5, "a difference would show"
    assert (found.double() - wanted).abs().max() < 2e-4 * wanted.std()


def over_the_tree(head: LayeredHead, text: Text, seed: int = 5) -> Tensor:
    """Logits [TREE.size, Vd] after every node, its text read in two parts and its nodes in scattered slots."""
    head.allocate(LENGTH + 2 * TREE.size)
    committed(head, text, 1, 4)
    level = committed(head, text, 4, LENGTH + 1, keep_last=True)
    offsets = torch.tensor([0, *(1 + torch.randperm(2 * TREE.size - 1, generator=torch.Generator().manual_seed(seed)))[: TREE.size - 1]])
    visible = torch.zeros(TREE.size, 2 * TREE.size, dtype=torch.bool)
    visible[:, offsets] = torch.tensor(TREE.ancestor_mask)
    logits, features = [level.logits], level.features
    depths, parents = torch.tensor(TREE.depths), torch.tensor([0, *TREE.parents[1:]])
    for above, nodes in zip(TREE.levels, TREE.levels[1:], strict=False):
        ids = torch.arange(nodes.start, nodes.stop)
        place = Placement(Prefix.of(LENGTH, "cpu"), depths[ids], offsets[ids], visible[ids])
        level = head.forward(text.nodes[ids], features[parents[ids] - above.start], place)
        logits.append(level.logits)
        features = level.features
    return torch.cat(logits)
