"""The chance that the target accepts the child of each rank, at positions of known texts: what the draft said, and what the target says to it."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from treeopt.profiling.settings import AcceptanceSettings
from treespec.decoding.sampling import distribution, finite, require_finite
from treespec.decoding.scoring import score
from treespec.decoding.verifiers.residual import residual_chain
from treespec.errors import ModelError
from treespec.kernels import dispatch
from treespec.kernels.plain import draw_children
from treespec.models.heads.bound import BoundHead
from treespec.models.pairs import Pair


def draft_levels(pair: Pair, texts: Tensor, valid: Tensor, pixels: Tensor | None = None) -> Iterator[Tensor]:
    """Yield the draft's logits before each of the last positions of texts, [batch, positions, vocabulary of the target].

    `texts` int64 [batch, length]; `valid` bool [batch, positions] marks the last `positions` tokens that count as next tokens. Tokens that
    the draft does not know have -inf. Raises ModelError for logits that are not finite.

    For a head, those of its deeper levels follow, as far as the texts have any. At level d + 1 a head proposes from d tokens of its own
    reading, so that the first d positions are left out: [batch, positions - d, vocabulary].
    """
    vocabulary, positions = pair.target.vocabulary_size, valid.shape[1]
    if isinstance(pair.draft, BoundHead):
        if pixels is not None:
            raise ModelError(f"{pair.draft.name} is a head, which reads no pictures; take a draft that does, or prompts without pictures")
        levels: Iterator[Tensor] = (rows[:, depth - positions :] for depth, rows in enumerate(pair.draft.levels(texts[:, :-1], positions)))
    else:
        levels = iter([score(pair.draft, texts[:, :-1], texts.shape[1] - positions - 1, pixels)])
    for depth, rows in enumerate(levels):
        logits = rows[..., :vocabulary]
        require_finite(int(logits.amax(-1)[valid[:, depth:]].isfinite().all()), role="draft")
        yield F.pad(logits, (0, vocabulary - logits.shape[-1]), value=float("-inf"))


def target_chances(pair: Pair, texts: Tensor, valid: Tensor, settings: AcceptanceSettings, pixels: Tensor | None = None) -> Tensor:
    """Return the target's distribution before each of the last positions of texts, float32 [batch, positions, vocabulary].

    For `texts` and `valid` see `draft_levels`.
    """
    start = texts.shape[1] - valid.shape[1] - 1
    following = texts[:, start + 1 :, None]
    if settings.sampling.greedy and settings.method == "on-policy":  # the text is the target's own argmax
        whole = torch.zeros(*following.shape[:2], pair.target.vocabulary_size, dtype=torch.float32, device=texts.device)
        return whole.scatter_(-1, following, 1.0)
    scores = score(pair.target, texts[:, :-1], start, pixels)
    require_finite(int(finite(scores)))
    return torch.stack([distribution(row, settings.sampling) for row in scores])


def rank_chances(logits: Tensor, p: Tensor, valid: Tensor, settings: AcceptanceSettings, generators: Sequence[torch.Generator]) -> Tensor:
    """Return the chance that the child of each rank is accepted, float64 [batch, positions, ranks], 0 where not valid.

    The draft's `logits` are those of `draft_levels`, the target's distributions `p` those of `target_chances`, before the same tokens.
    Under `topk` the chance of rank k is exactly p(token_k); in greedy decoding on the target's own text it is 1 if the text goes on with
    that token, else 0. Under `swor` and `swr` it is the mean, over draws of the children, of the residual chain's chances given the
    children.
    """
    if settings.drafting.samples(settings.sampling):
        q = distribution(logits, settings.drafting.sampling(settings.sampling))
        chances = sampled_chances(
            p, q, settings.max_branch, settings.draws, generators, replacement=settings.drafting.kind.replacement, logits=logits
        )
    else:
        _, children = dispatch.top_tokens(logits.flatten(0, 1), settings.max_branch)
        chances = p.gather(-1, children.view(*logits.shape[:2], -1)).double()
    return chances * valid[..., None]


def sampled_chances(
    p: Tensor,
    q: Tensor,
    branches: int,
    draws: int,
    generators: Sequence[torch.Generator],
    *,
    replacement: bool,
    logits: Tensor | None = None,
) -> Tensor:
    """Return the mean chance of each rank over `draws` draws of all children, float64 [batch, positions, branches].

    `p`, `q` and the draft's `logits` are [batch, positions, vocabulary]; for `logits` see `draw_children`.

    Text i draws from `generators[i]`, whatever batch it is in. One residual chain runs over all positions at once.
    """
    rows_p, rows_q = p.flatten(0, 1), q.flatten(0, 1)
    found = torch.zeros(rows_p.shape[0], branches, dtype=torch.float64, device=p.device)
    whole = (rows_p.shape[0],) * branches
    for _ in range(draws):
        tokens = torch.cat(
            [
                draw_children(row, branches, stream, replacement=replacement, logits=order)
                for row, order, stream in zip(q, q if logits is None else logits, generators, strict=True)
            ]
        )
        accept = residual_chain(rows_p, rows_q, tokens, whole, None, replacement=replacement).accept.double()
        found += accept * torch.cat([torch.ones_like(accept[:, :1]), (1 - accept[:, :-1]).cumprod(1)], dim=1)
    return found.view(*p.shape[:2], branches) / draws
