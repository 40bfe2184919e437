"""Growing dynamic trees along known texts: the steps that every budget of a grid takes on a text, without a pass of the target.

The texts are the target's own, so a step accepts the path of its tree that the text goes down. The draft grows one tree below every token of a
text, as wide and as deep as the grid has them, by the very drafter that decodes. Levels never depend on deeper ones, and the tree of `size`
nodes has the best of all, so this growth holds the trees of all smaller depths and sizes. It does not hold those of smaller widths: the levels
of a narrow tree go on from fewer nodes, and what they keep below these may not be among the best of the wider level.

A head goes by the target's states of the text up to each root. So the target reads the text once, and the head's reader finds them where it does in
decoding.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from treeopt.profiles.budget_grid import BudgetGrid
from treeopt.profiles.traced_text import TracedText
from treespec.decoding.drafters.base import DrafterSetup
from treespec.decoding.drafters.dynamic import DynamicDrafter
from treespec.decoding.drafting import Drafting
from treespec.decoding.heads import Draft
from treespec.decoding.plans import DynamicBudget
from treespec.decoding.protocol import StateDraft
from treespec.decoding.rules import Sampling
from treespec.decoding.sampling import require_finite
from treespec.trees.placement import Prefix

NEVER = 1 << 30
"""The size of the smallest tree that holds a token which no tree holds."""

Sizes = NDArray[np.int64]


def dynamic_steps(
    draft: Draft,
    vocabulary: int,
    prompt: Sequence[int],
    continuation: Sequence[int],
    said: TracedText,
    gen_len: int,
    grid: BudgetGrid,
    pixels: torch.Tensor | None = None,
) -> NDArray[np.uint32]:
    """Return the steps of every budget of a grid on one text, uint32 [widths, depths, sizes]; 0 for budgets that no tree meets.

    `continuation` are the tokens of the text behind its prompt, as far as the draft can read and one more; `said` has the whole length. The first
    `vocabulary` tokens can be drafted. Overwrites the draft's cache, and that of a head's target. Raises CapacityError, ModelError.
    """
    found = np.zeros(grid.shape, dtype=np.uint32)
    draft.allocate(len(prompt) + len(continuation) + 1 + grid.max_depth * max(grid.widths))
    if isinstance(draft, StateDraft):
        read = torch.tensor([*prompt, *continuation], device=draft.device)[: len(prompt) + said.drafted]
        draft.target.allocate(len(read))
        draft.target.prefill(read)
    for place, width in enumerate(grid.widths):
        needed = _needed(draft, vocabulary, prompt, continuation, said, width, grid.max_depth, pixels)
        found[place] = walk(needed, said, gen_len, grid.max_size)
    found[~grid.met] = 0
    return found


def _needed(
    draft: Draft,
    vocabulary: int,
    prompt: Sequence[int],
    continuation: Sequence[int],
    said: TracedText,
    width: int,
    depth: int,
    pixels: torch.Tensor | None,
) -> Sizes:
    """Return what `grown_sizes` says for the tree below every token of the text but the last, [drafted tokens, depth, depth].

    The draft reads the whole text once. Then trees are grown from its end to its beginning: each overwrites what stands behind its root, which no
    later one reads.
    """
    sizes = np.full((said.drafted, depth, depth), NEVER, dtype=np.int64)
    if not said.drafted:
        return sizes
    setup = DrafterSetup(draft, draft.device, vocabulary, Sampling(), Drafting())
    drafter = DynamicDrafter(DynamicBudget(depth + 1, depth, width), setup)
    text = torch.tensor([*prompt, *continuation], device=draft.device)
    drafter.begin(text[: len(prompt) + said.drafted], pixels)
    for root in range(said.drafted - 1, -1, -1):
        length = len(prompt) + root
        deepest = depth if said.draft_reads is None else min(depth, said.draft_reads - root)
        grown_sizes(drafter, text[length - 1 : length + 1], length, continuation[root + 1 :], sizes[root, :deepest, :deepest])
    return sizes


def grown_sizes(drafter: DynamicDrafter, last: torch.Tensor, length: int, following: Sequence[int], sizes: Sizes) -> None:
    """Grow one tree below the committed tokens `last` int64 [2], of which the second follows `length` others, and write what it holds.

    `sizes` [depth, depth], all NEVER, gets at [d - 1, k - 1] the size of the smallest tree of depth d that holds the path of the first k tokens
    that are `following`. The growth ends early where no further level can change that: the path has ended, and nothing below is as good as its end.
    """
    depth = len(sizes)
    growth = drafter.begin_growth(last, depth)
    prefix = Prefix.of(length, last.device)
    path: list[int] = []
    better: list[Sizes] = []  # for each node of the path, the better nodes of each level
    values = np.zeros(1)
    for level in range(1, depth + 1):
        drafter.grow(growth, level - 1, last, prefix)
        nodes = growth.shape.level(level)
        values = np.concatenate([values, growth.values[nodes].double().cpu().numpy()])
        if len(path) == level - 1 and level <= len(following):
            same = growth.tokens[nodes] == following[level - 1]
            if path:
                same &= growth.ancestors[nodes, path[-1]]
            found = same.nonzero().flatten().tolist()
            path += [nodes.start + found[0]] if found else []
        if len(path) < level and (not path or values[nodes].max() <= values[path[-1]]):
            break
    require_finite(int(growth.largest[: growth.shape.level(level - 1).stop].isfinite().all()), role="draft")
    ids, level_of = np.arange(len(values)), (np.arange(len(values)) + growth.shape.width - 1) // growth.shape.width
    for node in path:
        ahead = (values > values[node]) | ((values == values[node]) & (ids < node))
        better.append(np.bincount(level_of[ahead], minlength=depth + 1).cumsum()[1:])  # of the trees of depth 1, 2, ..
    for place, count in enumerate(better):
        sizes[place:, place] = count[place:] + 1


def walk(needed: Sizes, said: TracedText, gen_len: int, max_size: int) -> NDArray[np.uint32]:
    """Return the steps of all depths and sizes on a text, uint32 [depths, sizes], from what `grown_sizes` says below each of its tokens.

    A step from a root goes down the path of the text as far as the tree of its depth and size holds it, and ends with the token behind it. Close to
    the last positions of the models trees are cut, as decoding cuts them (`TracedText.room`).
    """
    depth, size = np.arange(1, needed.shape[1] + 1)[:, None], np.arange(1, max_size + 1)
    root = np.zeros((needed.shape[1], max_size), dtype=np.int64)
    steps = np.zeros(root.shape, dtype=np.uint32)
    for token in range(said.tokens - 1):
        here = root == token
        room = said.room(token, gen_len, size, depth)
        reach = np.minimum(depth, room - 1)
        accepted = np.zeros_like(root)
        if token < len(needed):
            accepted = (needed[token][np.maximum(reach, 1) - 1] <= np.minimum(size, room)[..., None]).sum(-1) * (reach > 0)
        steps += here
        root = np.where(here, token + accepted + 1, root)
    return steps
