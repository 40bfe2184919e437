"""Replay: the steps that a static tree takes on known texts, counted exactly from a trace and without models. No torch."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from treeopt.profiles.ratio import Estimate, estimate
from treeopt.profiles.trace import Trace
from treespec.decoding.rules import RULES, TOPK
from treespec.errors import ProfileError, counted
from treespec.trees.tree import SpeculationTree

Whole = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Replay:
    """The steps of a tree on the texts of a trace."""

    tree: SpeculationTree
    tokens: Whole
    """int64 [texts]; tokens of each text. The first is that of the prompt pass and of no step."""
    nodes: Whole
    """int64 [longest text - 1, texts]; row t has the node that carries token t + 1 of each text, 0 where the token ended a step as the
    target's own. What stands behind the end of a text means nothing."""
    ranks: Whole
    """int64 [longest text - 1, texts]; row t has the rank that token t + 1 had among the children of the node that was reached before it, whether the
    tree has such a child or not. `UNKNOWN` where there is none, as below the last level of a head."""

    @cached_property
    def within(self) -> NDArray[np.bool_]:
        """bool [longest text - 1, texts]; whether there is such a token."""
        return np.arange(len(self.nodes))[:, None] < self.tokens - 1

    @cached_property
    def _last(self) -> Whole:
        """int64 [texts]; the node of the last token of each text, 0 without a step."""
        if not len(self.nodes):
            return np.zeros_like(self.tokens)
        return np.where(self.tokens > 1, self.nodes[self.tokens - 2, np.arange(len(self.tokens))], 0)

    @cached_property
    def steps(self) -> Whole:
        """int64 [texts]; the steps of each text. One that the end of the text cuts counts."""
        found: Whole = ((self.nodes == 0) & self.within).sum(0) + (self._last > 0)
        return found

    @property
    def tokens_per_step(self) -> Estimate | None:
        """Return (tokens - texts) / steps, with its error over the texts; None without a step."""
        return estimate(self.tokens - 1, self.steps.tolist()) if self.steps.any() else None

    @cached_property
    def accepted(self) -> tuple[tuple[int, ...], ...]:
        """For each text, the number of accepted tokens of every step. Where the end of the text cuts a step, those up to the end count."""
        depths = np.asarray(self.tree.depths)
        found = []
        for text, count in enumerate(self.tokens - 1):
            path = self.nodes[:count, text]
            before = depths[np.concatenate([[0], path])]
            found.append((*before[:-1][path == 0].tolist(), *([] if not count or path[-1] == 0 else [int(before[-1])])))
        return tuple(found)

    @property
    def steps_by_accepted(self) -> tuple[int, ...]:
        """Return the number of steps that accepted 0, 1, .. tokens, up to the depth of the tree."""
        counts = np.bincount([count for text in self.accepted for count in text], minlength=self.tree.depth + 1)
        return tuple(counts.tolist())


def replay(tree: SpeculationTree, trace: Trace) -> Replay:
    """Return the steps that decoding with a tree takes on the very texts of a trace, by the rule `topk`.

    Target matching accepts the children that carry the target's choices, and these make up the text, whatever the tree. A node's child of rank
    r carries the draft's token of that rank after the node's path, so the accepted path goes down by the ranks of the text's own
    tokens, and a step ends with the first token whose rank the node has no child of. This walks all texts at once, token by token:
    one transition from a node to its child, or back to the root. What a head says of a token depends on the root, so its ranks are looked up by the
    token and the depth of the node, which name the root. Trees are cut at the models' last positions as eager steps cut them.

    Raises ProfileError for a trace of random children and for a tree that is deeper than the levels of a head's trace, ModelError for a tree that
    is wider than the vocabulary.
    """
    require_replayable(trace)
    if trace.levels is not None and tree.depth > trace.levels:
        raise ProfileError(
            f"the tree has a depth of {tree.depth}, but the trace is of a head and has {counted(trace.levels, 'level')}, below which steps cannot be "
            f"replayed; take a tree of depth {trace.levels} or less, or run `treeopt evaluate`"
        )
    tree.require_tokens(trace.vocabulary_size)
    children = np.array([len(found) for found in tree.children])
    first = np.cumsum(children) - children + 1  # siblings are contiguous, and in the order of their parents
    room = _room(tree, trace)
    nodes = np.empty_like(trace.ranks)
    met = trace.ranks if trace.levels is None else np.empty_like(trace.ranks)
    depths, texts = np.asarray(tree.depths), np.arange(len(trace.texts))
    node, limit = np.zeros_like(trace.tokens), room[0]
    for turn, rank in enumerate(met):
        if trace.levels is not None:
            rank[:] = trace.ranks_by_depth[depths[node], turn, texts]
        child = first[node] + rank
        taken = (rank < children[node]) & (child < limit)
        node = nodes[turn] = np.where(taken, child, 0)
        limit = np.where(taken, limit, room[turn + 1])
    nodes.flags.writeable = met.flags.writeable = False
    return Replay(tree, trace.tokens, nodes, met)


def require_replayable(trace: Trace) -> None:
    """Raise ProfileError for a trace whose steps are not those of the most likely children."""
    if RULES[trace.drafting].sampled:
        raise ProfileError(
            f"the trace is of {trace.drafting}, whose children are random, but steps are replayed exactly where children are the draft's most "
            f"likely tokens; profile with `drafting` {TOPK.name}"
        )


def _room(tree: SpeculationTree, trace: Trace) -> Whole:
    """Return the number of nodes, the first ones of the tree, of a step whose root is token t of a text, int64 [longest text, texts]."""
    root = np.arange(int(trace.tokens.max()))
    return np.stack([one.room(root, trace.gen_len, tree.size, tree.depth) for one in trace.texts], axis=1)
