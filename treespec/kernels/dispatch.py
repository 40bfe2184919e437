"""The choice between a kernel and its plain twin for each function that decoding calls. So decoding does not depend on the device.

The passes of a model are not chosen here: `TreeModel` holds a decoder, with kernels or without.

A function that draws takes a generator and, where kernels may run, a seed that came from it (`seeds`). The two ways draw other numbers from
the same distribution.

Kernels are imported at their first use, so a machine without Triton does not need it.
"""

import torch
from torch import Tensor

from treespec.kernels import plain, plain_growing
from treespec.kernels.device import on
from treespec.kernels.outcome import Outcome
from treespec.trees.growth import Grown, Growth, GrowthShape
from treespec.trees.tensors import StaticTensors, TreeTensors


def top_tokens(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` largest logits of every row, largest first, and their tokens: [rows, vocabulary] -> [rows, count] twice.

    NaN counts as the largest. No host synchronisation on a GPU. Ties go to the smaller token, by kernels and on the CPU; elsewhere only for
    `count` 1.
    """
    if _vocabulary_kernels_take(logits, count):
        from treespec.kernels import vocabulary

        with on(logits.device):
            return vocabulary.top_tokens(logits, count)
    return plain.top_tokens(logits, count)


def write_children(logits: Tensor, tree: StaticTensors, depth: int, tokens: Tensor, largest: Tensor) -> None:
    """Write the most likely tokens of each node at `depth` into its children, in rank order.

    `logits` [width of the level, vocabulary] belong to the nodes of the level. This writes `tokens` int64 [n] at the children and `largest`
    [nodes above the last level] at the nodes of the level. No host synchronisation.
    """
    if _vocabulary_kernels_take(logits, tree.branches[depth]):
        from treespec.kernels import vocabulary

        level = tree.tree.levels[depth]
        with on(logits.device):
            vocabulary.write_children(logits, tree.branches[depth], tree.child_range(depth), tokens, largest[level.start : level.stop])
    else:
        plain.write_children(logits, tree, depth, tokens, largest)


def seeds(generator: torch.Generator | None, count: int, device: torch.device) -> Tensor | None:
    """Draw seeds for kernels, int64 [count]; None where no kernels run."""
    if device.type != "cuda":
        return None
    return torch.empty(count, dtype=torch.int64, device=device).random_(generator=generator)


def sample_children(
    logits: Tensor,
    tree: StaticTensors,
    depth: int,
    tokens: Tensor,
    largest: Tensor,
    temperature: float,
    *,
    replacement: bool,
    generator: torch.Generator | None,
    seed: Tensor | None,
) -> None:
    """Draw the children of each node at `depth` from softmax(logits / temperature), in the order of their ranks.

    With or without replacement; what is written is as in `write_children`. `seed` int64 [1]. No host synchronisation. At temperature 0, children
    drawn with replacement are copies of the first most likely token, which the twin gives; kernels would draw among equal ones.
    """
    branches = tree.branches[depth]
    level = tree.tree.levels[depth]
    if seed is not None and temperature > 0.0 and _vocabulary_kernels_take(logits, 1 if replacement else branches):
        with on(logits.device):
            part = largest[level.start : level.stop]
            if replacement:
                from treespec.kernels.inverse import draw_children

                draw_children(logits, branches, temperature, seed, tree.child_range(depth), tokens, part)
            else:
                from treespec.kernels.racing import race_children

                race_children(logits, branches, temperature, seed, tree.child_range(depth), tokens, part)
    else:
        plain.sample_children(logits, tree, depth, tokens, largest, temperature, replacement=replacement, generator=generator)


def distribution(logits: Tensor, temperature: float, top_p: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return (the distributions of `plain.distribution`, the largest logit of each row) of logits [rows, vocabulary]."""
    if temperature > 0.0 and _vocabulary_kernels_take(logits, 1):
        from treespec.kernels import distribution as kernels

        with on(logits.device):
            return kernels.distribution(logits, temperature, top_p)
    return plain.distribution(logits, temperature, top_p), logits.amax(-1)


def choose(
    logits: Tensor, temperature: float, top_p: float, generator: torch.Generator | None, seed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Choose a token per row of logits [rows, vocabulary] at a temperature above 0: (tokens int64 [rows], the largest logit of each row)."""
    if not _vocabulary_kernels_take(logits, 1):
        return plain.race(plain.distribution(logits, temperature, top_p), generator).argmax(-1), logits.amax(-1)
    from treespec.kernels.racing import race, race_by_weight

    seed = seeds(generator, 1, logits.device) if seed is None else seed
    assert seed is not None
    with on(logits.device):
        if top_p >= 1.0:
            tokens, largest = race(logits, 1, temperature, seed)
            return tokens[:, 0], largest
        p, largest = distribution(logits, temperature, top_p)
        return race_by_weight(p, seed), largest


def begin_growth(root: Tensor, shape: GrowthShape) -> Growth:
    """Begin a dynamic tree below the token `root` int64 [1]. `grow_level` writes its levels."""
    return Growth.begin(root, shape, packed=_growing_kernels_take(root.device, shape))


def grow_level(logits: Tensor, growth: Growth, depth: int) -> None:
    """Write the level below `depth`: the best `width` children of all nodes at `depth`; on CUDA in three launches.

    `logits` [nodes at `depth`, vocabulary] belong to the nodes at `depth`, of which `largest` is written too. `depth` 0 also writes the
    root. No host synchronisation. See `plain_growing.grow_level`.
    """
    if growth.bits is not None and _vocabulary_kernels_take(logits, growth.shape.width):
        from treespec.kernels import growing

        with on(logits.device):
            growing.grow_level(logits, growth, depth)
    else:
        plain_growing.grow_level(logits, growth, depth)


def best_nodes(growth: Growth, size: int) -> Grown:
    """Return the tree of the best `size` nodes of a growth whose levels are all written; on CUDA in one launch.

    `size` is at least 2 and at most the number of nodes. No host synchronisation. See `plain_growing.best_nodes`.
    """
    if growth.bits is not None:
        from treespec.kernels import growing

        with on(growth.tokens.device):
            return growing.best_nodes(growth, size)
    return plain_growing.best_nodes(growth, size)


def finish_step(tokens: Tensor, choices: Tensor, tree: TreeTensors, largest: Tensor, drafted: Tensor, length: Tensor) -> Outcome:
    """Accept the path along the target's `choices` int64 [n] and return the outcome; on CUDA in one launch. See `plain.settle`."""
    if tokens.is_cuda:
        from treespec.kernels import settling

        if tree.size <= settling.LARGEST:
            with on(tokens.device):
                return settling.settle_matching(tokens, choices, tree, largest, drafted, length)
    return plain.finish_step(tokens, choices, tree, largest, drafted, length)


def finish_sampled(
    tokens: Tensor,
    p: Tensor,
    q: Tensor,
    tree: StaticTensors,
    largest: Tensor,
    drafted: Tensor,
    length: Tensor,
    seed: Tensor | None,
    *,
    replacement: bool,
    leaves_first: bool,
) -> Outcome | None:
    """Verify sampled children by residual chains, sequential or traversal, and return the outcome; None where no kernel takes them.

    `p` [n, vocabulary], which is overwritten, and `q` [m, vocabulary] are as in `verifiers.base.SampledVerifier.weigh`; the others as in
    `plain.settle`. No host synchronisation.
    """
    if seed is None or any(rows.dtype != torch.float32 or not _has_whole_rows(rows) for rows in (p, q)):
        return None
    from treespec.kernels import residual, settling, settling_sampled, vocabulary

    if tree.size > settling.LARGEST or tree.tree.max_branch > residual.LARGEST_FAMILY or p.shape[-1] > vocabulary.LARGEST_VOCABULARY:
        return None
    with on(tokens.device):
        chains = residual.run_chains(p, q, tokens, tree, seed, replacement=replacement, leaves_first=leaves_first)
        return settling_sampled.settle_sampled(tokens, p, q, chains, tree, seed, largest, drafted, length, leaves_first=leaves_first)


def _growing_kernels_take(device: torch.device, shape: GrowthShape) -> bool:
    if device.type != "cuda":
        return False
    from treespec.kernels import growing

    return growing.takes(shape)


def _vocabulary_kernels_take(logits: Tensor, count: int) -> bool:
    if not logits.is_cuda or logits.dtype == torch.float64 or not _has_whole_rows(logits):
        return False
    from treespec.kernels import vocabulary

    return count <= vocabulary.LARGEST_COUNT and logits.shape[-1] <= vocabulary.LARGEST_VOCABULARY


def _has_whole_rows(values: Tensor) -> bool:
    """Return whether the numbers of a row follow one another in memory."""
    return values.stride(-1) == 1 or values.shape[-1] == 1
