"""Measure the acceptance profile of a pair: the ranks of the draft that the target accepts, position by position."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from treeopt.profiles.acceptance import AcceptanceProfile
from treeopt.profiles.ratio import ratio
from treeopt.profiling.settings import AcceptanceSettings
from treeopt.profiling.texts import Batch, TextSource, chunks, require_drafted, require_positions, require_text
from treespec.data.prompts import PromptSet
from treespec.decoding.sampling import distribution, finite, prompt_generator, require_finite
from treespec.decoding.scoring import score
from treespec.decoding.verifiers.residual import residual_chain
from treespec.errors import ProfileError, counted
from treespec.files.fields import list_of_length, natural, numbers
from treespec.files.fingerprint import fingerprint
from treespec.files.journal import Journal
from treespec.kernels.plain import draw_children
from treespec.models.pairs import Pair, PairInfo
from treespec.models.positions import readable

Progress = Callable[[str, int, int], None]


@torch.inference_mode()
def profile_acceptance(
    pair: Pair,
    prompts: PromptSet,
    settings: AcceptanceSettings,
    *,
    journal: Path | None = None,
    progress: Progress = lambda what, done, total: None,
) -> AcceptanceProfile:
    """Measure the chance of each rank on texts of the target or of the data set; `rank_chances` defines it.

    Positions are those that decoding drafts for: after the first generated token, up to EOS. Standard errors treat
    prompts as the independent units (linearised ratio estimator); each prompt's draws are its own, so they are in it.
    Finished batches survive an interruption in `journal`, which the caller discards once the profile is saved. Raises
    CapacityError, ModelError (non-finite logits), ProfileError (nothing to measure).
    """
    require_fit(pair, prompts, settings)
    sums: dict[int, tuple[list[float], int]] = {}
    source = TextSource(pair, prompts, settings.method, settings.gen_len, settings.sampling, settings.batch_size)
    batches = source.batches

    def read(key: str, value: Any) -> list[tuple[list[float], int]]:
        rows = [list_of_length(2, row) for row in list_of_length(len(batches[int(key)]), value)]
        return [(list(numbers(list_of_length(settings.max_branch, chances))), natural(count)) for chances, count in rows]

    with Journal(journal, _fingerprint(pair, prompts, settings), read) as log:
        for number, batch in enumerate(batches):
            on_token = _step_progress(progress, number, len(batches), settings.gen_len)
            measured = log.piece(str(number), partial(_measure, pair, source, batch, settings, on_token))
            sums.update({index: (row, count) for (index, _), (row, count) in zip(batch, measured, strict=True)})
            progress("profiling acceptance", (number + 1) * settings.gen_len, len(batches) * settings.gen_len)
    return _profile(pair, prompts, settings, [sums[i] for i in sorted(sums)])


def require_fit(pair: Pair | PairInfo, prompts: PromptSet, settings: AcceptanceSettings) -> None:
    """Raise CapacityError or ProfileError for prompts on which these models, which need not be loaded, cannot be profiled."""
    vocabulary = pair.vocabulary_size
    if settings.max_branch > vocabulary and not settings.drafting.kind.replacement:
        raise ProfileError(
            f"`max_branch` is {settings.max_branch}, but the vocabulary has {counted(vocabulary, 'token')}; pass `max_branch` {vocabulary} or less"
        )
    require_text(prompts, settings.method)
    require_positions(pair.target, prompts, settings.gen_len)
    require_drafted({"draft": pair.draft}, prompts)


def _measure(
    pair: Pair,
    source: TextSource,
    batch: Batch,
    settings: AcceptanceSettings,
    on_token: Callable[[int], None],
) -> list[tuple[list[float], int]]:
    """Return for each prompt the sum over positions of the chance of each rank, and the number of positions."""
    generators = [prompt_generator(settings.seed, index, pair.target.device) for index, _ in batch]
    pixels = pair.pixels(*(prompt for _, prompt in batch))
    streams = [prompt_generator(settings.seed, index, pair.target.device, "children") for index, _ in batch]
    found: list[tuple[list[float], int]] = [([0.0] * settings.max_branch, 0)] * len(batch)
    for texts in source.texts(batch, generators, partial(readable, pair.draft), on_token=on_token, pixels=pixels):
        for part in chunks(texts.tokens, pair.target.vocabulary_size) if texts.valid.shape[1] else ():
            rows, valid = texts.rows[part], texts.valid[part]
            seen = None if pixels is None else pixels[rows]
            chances = rank_chances(pair, texts.tokens[part], valid, settings, [streams[row] for row in rows], seen)
            for row, sums, count in zip(rows, chances.sum(1).tolist(), valid.sum(1).tolist(), strict=True):
                found[row] = sums, count
    return found


def rank_chances(
    pair: Pair,
    texts: Tensor,
    valid: Tensor,
    settings: AcceptanceSettings,
    generators: Sequence[torch.Generator],
    pixels: Tensor | None = None,
) -> Tensor:
    """Return the chance that the child of each rank is accepted, at each of the last positions of every text.

    `texts` int64 [batch, length]; `valid` bool [batch, positions] marks the last `positions` tokens that count as next tokens.
    Under `topk` the chance of rank k is exactly p(token_k); in greedy decoding on the target's own text it is 1 if the text goes on with
    that token, else 0. Under `swor` and `swr` it is the mean, over draws of the children, of the residual chain's chances given the
    children. Returns float64 [batch, positions, ranks], 0 where not valid.
    """
    vocabulary = pair.target.vocabulary_size
    start = texts.shape[1] - valid.shape[1] - 1
    logits = score(pair.draft, texts[:, :-1], start, pixels)[..., :vocabulary]
    logits = F.pad(logits, (0, vocabulary - logits.shape[-1]), value=float("-inf"))
    require_finite(int(logits.amax(-1)[valid].isfinite().all()), role="draft")
    following = texts[:, start + 1 :, None]
    own = settings.sampling.greedy and settings.method == "on-policy"  # the text is the target's own argmax
    if own:
        p = torch.zeros_like(logits, dtype=torch.float32).scatter_(-1, following, 1.0)
    else:
        scores = score(pair.target, texts[:, :-1], start, pixels)
        require_finite(int(finite(scores)))
        p = torch.stack([distribution(row, settings.sampling) for row in scores])
    if settings.drafting.samples(settings.sampling):
        q = distribution(logits, settings.drafting.sampling(settings.sampling))
        chances = sampled_chances(
            p, q, settings.max_branch, settings.draws, generators, replacement=settings.drafting.kind.replacement, logits=logits
        )
    else:
        chances = p.gather(-1, logits.topk(settings.max_branch, dim=-1).indices).double()
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


def _profile(pair: Pair, prompts: PromptSet, settings: AcceptanceSettings, sums: list[tuple[list[float], int]]) -> AcceptanceProfile:
    counts = [count for _, count in sums]
    positions = sum(counts)
    if positions == 0:
        raise ProfileError("no position to measure: the target ended every prompt with its first token; use other prompts")
    probability, errors = ratio(np.array([row for row, _ in sums]), counts)
    if errors is None:
        errors = np.zeros_like(probability)
    return AcceptanceProfile(
        drafting=settings.drafting.rule,
        temperature=settings.sampling.temperature,
        top_p=settings.sampling.top_p,
        draft_temperature=settings.drafting.sampling(settings.sampling).temperature if settings.drafting.kind.sampled else None,
        draws=settings.draws if settings.drafting.samples(settings.sampling) else None,
        rank_probability=tuple(probability.tolist()),
        none_accepted=max(0.0, 1.0 - float(probability.sum())),
        standard_error=tuple(errors.tolist()),
        positions=positions,
        prompts=len(sums),
        method=settings.method,
        prompt_sums=tuple(tuple(row) for row, _ in sums),
        prompt_positions=tuple(count for _, count in sums),
        prompt_set=prompts.describe(),
        provenance=pair.provenance(
            temperature=settings.sampling.temperature,
            top_p=settings.sampling.top_p,
            dataset=prompts.label,
            seed=settings.seed,
        ),
    )


def _step_progress(progress: Progress, number: int, batches: int, gen_len: int) -> Callable[[int], None]:
    return lambda done: progress("profiling acceptance", number * gen_len + done, batches * gen_len)


def _fingerprint(pair: Pair, prompts: PromptSet, settings: AcceptanceSettings) -> str:
    return fingerprint(pair.describe(), prompts.fingerprint, asdict(settings), str(pair.target.device), str(pair.target.dtype))
