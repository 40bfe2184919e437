"""The plain twins of the kernels that decoding calls, in PyTorch alone, for any device. They define what the kernels compute."""

import torch
from torch import Tensor

from treespec.kernels.outcome import Outcome
from treespec.trees.tensors import StaticTensors, TreeTensors

COLDEST = 1e-30
"""At lower temperatures, any difference between two logits gives the smaller one probability 0, and the reciprocal may overflow."""
HOTTEST = 1e30
"""At higher temperatures, all finite logits have the same probability, and the temperature may overflow."""


def top_tokens(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` largest logits of every row, largest first, and their tokens: [rows, vocabulary] -> [rows, count] twice.

    NaN counts as the largest. Ties go to the smaller token, on other devices than the CPU only for `count` 1.
    """
    if count == 1:
        tokens = logits.argmax(-1, keepdim=True)
        return logits.gather(-1, tokens), tokens
    if logits.device.type != "cpu":
        best = logits.topk(count, dim=-1)
        return best.values, best.indices
    values, tokens = logits.topk(min(count + 1, logits.shape[-1]), dim=-1)  # one more: it may tie with the last that counts
    tied = (values[:, 1:] == values[:, :-1]).any(-1).tolist()  # on the CPU nothing is waited for
    values, tokens = values[:, :count], tokens[:, :count]
    for row in (row for row, ties in enumerate(tied) if ties):
        near = (~(logits[row] < values[row, -1])).nonzero()[:, 0]  # NaN too; by token
        ordered = logits[row, near].sort(descending=True, stable=True)
        values[row], tokens[row] = ordered.values[:count], near[ordered.indices[:count]]
    return values, tokens


def write_children(logits: Tensor, tree: StaticTensors, depth: int, tokens: Tensor, largest: Tensor) -> None:
    """Write each row's most likely tokens into the children of its node, and its largest logit. See `dispatch.write_children`."""
    level, below = tree.tree.levels[depth], tree.tree.levels[depth + 1]
    best, children = top_tokens(logits, tree.branches[depth])
    largest[level.start : level.stop] = best[:, 0]
    tokens[below.start : below.stop] = children[tree.source[depth]]


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
) -> None:
    """Draw the children of each row's node, and write its largest logit. See `dispatch.sample_children`."""
    level, below = tree.tree.levels[depth], tree.tree.levels[depth + 1]
    drawn = draw_children(distribution(logits, temperature), tree.branches[depth], generator, replacement=replacement, logits=logits)
    largest[level.start : level.stop] = logits.amax(-1)
    tokens[below.start : below.stop] = drawn[tree.source[depth]]


def draw_children(
    q: Tensor, branches: int, generator: torch.Generator | None, *, replacement: bool, logits: Tensor | None = None
) -> Tensor:
    """Draw children for every row of q [rows, vocabulary]: int64 [rows, branches], in the order in which they were drawn.

    For `logits` see `draw_distinct`.
    """
    return draw(q, branches, generator) if replacement else draw_distinct(q, logits, branches, generator)


def draw_distinct(q: Tensor, logits: Tensor | None, count: int, generator: torch.Generator | None) -> Tensor:
    """Draw `count` distinct tokens per row of q [rows, vocabulary], in order: int64 [rows, count].

    These are the first of competing exponential clocks, which is Gumbel top-k (arXiv 1903.06059). When the support is used up, tokens of
    probability 0 follow, those of the largest `logits` first (None: in any order); so where q leaves one token, as at tiny temperatures,
    the tokens are the most likely ones in their order.
    """
    speeds = race(q, generator)
    if logits is not None:
        speeds = speeds.where(q > 0, logits.to(q.dtype) - logits.amax(-1, keepdim=True) - 1)  # below 0: behind all that can be drawn
    return speeds.topk(count, dim=-1).indices


def race(weights: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return random speeds of competing exponential clocks [..., vocabulary]: token x is fastest with probability weights(x) / sum.

    The order by speed is that of sampling without replacement. Tokens of weight 0 come last, with speed 0.
    """
    return weights / torch.empty_like(weights).exponential_(generator=generator)


def draw(weights: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Draw `count` independent tokens per row: [rows, vocabulary] -> int64 [rows, count]. Uses the inverse distribution in `widest`."""
    totals = weights.to(widest(weights.device)).cumsum(-1)
    uniforms = torch.rand(weights.shape[0], count, dtype=totals.dtype, device=weights.device, generator=generator)
    places = torch.searchsorted(totals, uniforms * totals[:, -1:], right=True)
    return places.clamp_max(weights.shape[-1] - 1)


def widest(device: torch.device) -> torch.dtype:
    """Return the dtype for sums of probabilities and for draws: float64, or float32 on MPS, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def distribution(logits: Tensor, temperature: float, top_p: float = 1.0) -> Tensor:
    """Return the probabilities that tokens are drawn from: [..., vocabulary] -> the same shape; float32, or float64 for float64.

    Temperature 0 gives all mass to the first most likely token. Top-p follows Holtzman et al. (arXiv 1904.09751): a token stays
    while the mass before it, in descending order, is below `top_p`, so at least one always stays.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if temperature == 0.0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    probabilities = scaled(logits, temperature).softmax(-1)
    if top_p >= 1.0:
        return probabilities
    descending, order = probabilities.sort(dim=-1, descending=True, stable=True)
    dropped = descending.cumsum(-1) - descending >= top_p
    dropped[..., :1].fill_(False)
    kept = torch.zeros_like(probabilities).scatter_(-1, order, descending.masked_fill(dropped, 0.0))
    return kept / kept.sum(-1, keepdim=True)


def scaled(logits: Tensor, temperature: float) -> Tensor:
    """Return logits [..., vocabulary] at a temperature above 0, shifted so that the largest is 0. Their softmax is the distribution."""
    differences = logits - logits.amax(-1, keepdim=True)  # before the division, which overflows at tiny temperatures
    return differences / min(max(temperature, COLDEST), HOTTEST)


def settle(tokens: Tensor, last: Tensor, following: Tensor, tree: TreeTensors, largest: Tensor, drafted: Tensor, length: Tensor) -> Outcome:
    """Commit the path to node `last` int64 [] and the token `following` int64 [] after it.

    `tokens` int64 [n] are the tree's tokens, after `length` int64 [1] committed ones. `largest` [n] has the target's largest logit at each
    node; only those on the path are checked. `drafted` [any number] has the draft's largest logits; all of them are checked.
    """
    path = tree.path_to(last)
    count = tree.depths.index_select(0, last[None])  # indexing by a tensor of no dimension waits for its value
    below = torch.cat([tokens[path[1:]], following[None]])
    emitted = following.where(torch.arange(tree.depth + 1, device=tokens.device) == count, below)
    health = torch.stack([part.isfinite().all() for part in (largest[path], drafted)]).to(torch.int64)
    report = torch.cat([emitted, tree.ranks[path], count, health])
    state = torch.cat([tokens.index_select(0, path[-1:]), emitted.index_select(0, count), length + count + 1])
    return Outcome(path, report, state)


def last_matching(tokens: Tensor, choices: Tensor, tree: TreeTensors) -> Tensor:
    """Return the last accepted node of target matching, int64 []: the deepest one whose path follows the target's choices.

    `tokens` int64 [n] are the tree's tokens (the root's included), `choices` int64 [n] the target's choice after every
    node. Siblings must carry different tokens, so at most one path matches.
    """
    matched = tokens == choices[tree.parents]
    matched[:1].fill_(True)
    return deepest(matched, tree)


def finish_step(tokens: Tensor, choices: Tensor, tree: TreeTensors, largest: Tensor, drafted: Tensor, length: Tensor) -> Outcome:
    """Walk down the tree along the target's `choices` int64 [n] and commit the accepted path. See `settle`."""
    last = last_matching(tokens, choices, tree)
    return settle(tokens, last, choices.index_select(0, last[None])[0], tree, largest, drafted, length)


def deepest(taken: Tensor, tree: TreeTensors) -> Tensor:
    """Return the deepest node whose whole path is `taken`: bool [..., n] -> int64 [...]. No two siblings may be taken."""
    reached = ~(tree.ancestors & ~taken[..., None, :]).any(-1)
    return tree.depths.where(reached, -1).argmax(-1)
