"""The plain twins of the kernels that grow dynamic trees (`growing`), in PyTorch alone. They define what the kernels compute."""

from collections.abc import Callable

import torch
from torch import Tensor

from treespec.kernels.plain import top_tokens
from treespec.trees.growth import Grown, Growth
from treespec.trees.placement import pack_bits
from treespec.trees.tensors import TreeTensors

TopTokens = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""(logits [rows, vocabulary], count) -> (the largest logits of each row, their tokens), [rows, count] each, largest first."""


def child_values(logits: Tensor, parents: Tensor, count: int, top: TopTokens = top_tokens) -> tuple[Tensor, Tensor, Tensor]:
    """Return the values and the tokens of each row's `count` most likely children [rows, count], and its largest logit [rows].

    `logits` [rows, vocabulary]; `parents` float32 [rows] are the values of the rows' own nodes. A child's value is its parent's plus its
    log-probability, which is -inf where a row has no finite largest logit. So no child has a larger value than its parent.
    """
    logits = logits.float()
    best, tokens = top(logits, count)
    chances = logits.log_softmax(-1).gather(-1, tokens)
    chances = chances.where(~chances.isnan(), -torch.inf)
    return parents[:, None] + chances, tokens, best[:, 0]


def grow_level(logits: Tensor, growth: Growth, depth: int, top: TopTokens = top_tokens) -> None:
    """Write the level below `depth`: the best `width` children of all nodes at `depth`, most likely first. See `dispatch.grow_level`.

    Of equal values, the child of the earlier parent is the better one, and of one parent's, the one of smaller rank.
    """
    shape = growth.shape
    width, above, below = shape.width, shape.level(depth), shape.level(depth + 1)
    if depth == 0:
        growth.tokens[:1].copy_(growth.root)
        for part in (growth.values, growth.ranks, growth.ancestors):
            part[:1].zero_()
        growth.ancestors[:1, :1].fill_(True)
        if growth.bits is not None:
            growth.bits[:1].copy_(pack_bits(growth.ancestors[:1]))
    values, tokens, growth.largest[above] = child_values(logits, growth.values[above], width, top)
    best = values.flatten().sort(descending=True, stable=True).indices[:width]
    parents = best // width + above.start
    growth.tokens[below], growth.values[below], growth.ranks[below] = tokens.flatten()[best], values.flatten()[best], best % width
    growth.ancestors[below] = growth.ancestors[parents] | (shape.ids == shape.ids[below, None])
    if growth.bits is not None:
        growth.bits[below] = pack_bits(growth.ancestors[below])


def best_nodes(growth: Growth, size: int) -> Grown:
    """Return the tree of the best `size` nodes of all, in the order of their ids. See `dispatch.best_nodes`.

    Of equal values the smaller id is the better one. A parent's value is never below its child's and its id is smaller, so the parent of
    each node stays. Parents have ids below their children's, so a node's parent is the last of its ancestors.
    """
    shape = growth.shape
    ids = growth.values.sort(descending=True, stable=True).indices[:size].sort().values
    ancestors = growth.ancestors[ids][:, ids]
    new = shape.ids[:size]
    parents = new.where(ancestors & (new < new[:, None]), 0).amax(-1)
    bits = None if growth.bits is None else pack_bits(ancestors)
    tree = TreeTensors(shape.depth, shape.depths[ids], parents, growth.ranks[ids], ancestors, bits=bits, ids=new)
    return Grown(tree, growth.tokens[ids], ids)
