"""Measure the acceptance profile of a pair: the ranks of the draft that the target accepts, position by position."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from treeopt.profiles.acceptance import AcceptanceProfile
from treeopt.profiles.budget_grid import BudgetGrid
from treeopt.profiles.dynamic import DynamicAcceptance
from treeopt.profiles.ratio import ratio
from treeopt.profiles.trace import Trace
from treeopt.profiling.dynamic import dynamic_steps
from treeopt.profiling.settings import AcceptanceSettings
from treeopt.profiling.texts import Batch, TextSource, chunks, require_drafted, require_positions, require_text
from treeopt.profiling.tracing import TracedRow, trace_of, traced_row, traced_text
from treespec.data.prompts import PromptSet
from treespec.decoding.sampling import distribution, finite, prompt_generator, require_finite
from treespec.decoding.scoring import score
from treespec.decoding.verifiers.residual import residual_chain
from treespec.errors import ModelError, ProfileError, SettingsError, counted
from treespec.files.columns import column, column_text
from treespec.files.fields import list_of_length, listed, natural, numbers
from treespec.files.fingerprint import fingerprint
from treespec.files.journal import Journal
from treespec.kernels import dispatch
from treespec.kernels.plain import draw_children
from treespec.models.drafts import Draft
from treespec.models.heads.bound import BoundHead
from treespec.models.pairs import Pair, PairInfo
from treespec.models.positions import readable

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class _Row:
    """One text: the sum over its positions of the chance of each rank, the number of positions, and what else was asked.

    That is what the draft said of it, and the tokens and the steps of dynamic trees, uint32 [widths, depths, sizes].
    """

    sums: list[float]
    positions: int
    traced: TracedRow | None = None
    grown: tuple[int, NDArray[np.uint32]] | None = None
    deeper: tuple[tuple[list[float], int], ...] = ()
    """The sums and the number of positions of the levels of a head below the first, at which no text was too short."""

    def to_json(self) -> list[Any]:
        """Return the row as a journal keeps it."""
        traced = [] if self.traced is None else [self.traced.to_json()]
        grown = [] if self.grown is None else [[self.grown[0], column_text(self.grown[1], "<u4")]]
        return [self.sums, self.positions, *([list(map(list, self.deeper))] if self.deeper else []), *traced, *grown]

    @classmethod
    def from_json(cls, ranks: int, value: Any, *, tracing: bool, grid: BudgetGrid | None) -> "_Row":
        """Return the row that `to_json` gave. Raises LookupError, TypeError, ValueError."""
        if not tracing and grid is None and len(listed(value)) == 3:
            sums, count, levels = listed(value)
            below = (list_of_length(2, level) for level in listed(levels))
            deeper = tuple((list(numbers(list_of_length(ranks, level))), natural(number)) for level, number in below)
            return cls(list(numbers(list_of_length(ranks, sums))), natural(count), deeper=deeper)
        sums, count, *more = list_of_length(2 + tracing + (grid is not None), value)
        positions = natural(count)
        found = TracedRow.from_json(positions, more[0]) if tracing else None
        grown = None
        if grid is not None:
            tokens, steps = list_of_length(2, more[-1])
            grown = natural(tokens), column("<u4", math.prod(grid.shape), steps).reshape(grid.shape)
        return cls(list(numbers(list_of_length(ranks, sums))), positions, found, grown)


def profile_acceptance(
    pair: Pair,
    prompts: PromptSet,
    settings: AcceptanceSettings,
    *,
    dynamic: BudgetGrid | None = None,
    journal: Path | None = None,
    progress: Progress = lambda what, done, total: None,
) -> AcceptanceProfile:
    """Measure the chance of each rank on texts of the target or of the data set; `rank_chances` defines it.

    Positions are those that decoding drafts for: after the first generated token, up to EOS. Standard errors treat
    prompts as the independent units (linearised ratio estimator); each prompt's draws are its own, so they are in it.
    With `dynamic`, the steps of dynamic trees of these budgets are counted on the same texts. Finished batches survive an interruption in
    `journal`, which the caller discards once the profile is saved. Raises CapacityError, ModelError (non-finite logits), ProfileError (nothing
    to measure), SettingsError for `dynamic` where steps could not be counted.
    """
    return _measured(pair, prompts, settings, journal, progress, dynamic, tracing=False)[0]


def trace_acceptance(
    pair: Pair,
    prompts: PromptSet,
    settings: AcceptanceSettings,
    *,
    dynamic: BudgetGrid | None = None,
    journal: Path | None = None,
    progress: Progress = lambda what, done, total: None,
) -> tuple[AcceptanceProfile, Trace]:
    """Measure as `profile_acceptance` does, and also return the trace of the same texts. Raises SettingsError where steps could not be replayed."""
    settings.require_traceable()
    profile, rows = _measured(pair, prompts, settings, journal, progress, dynamic, tracing=True)
    traced = [row.traced for row in rows if row.traced is not None]
    return profile, trace_of(pair, prompts, settings, traced, profile.provenance or {})


@torch.inference_mode()
def _measured(
    pair: Pair,
    prompts: PromptSet,
    settings: AcceptanceSettings,
    journal: Path | None,
    progress: Progress,
    dynamic: BudgetGrid | None,
    *,
    tracing: bool,
) -> tuple[AcceptanceProfile, list[_Row]]:
    """Return the profile, and what was measured on the text of every prompt, batch by batch, with finished batches in the journal."""
    if isinstance(pair.draft, BoundHead) and (tracing or dynamic is not None):
        raise SettingsError(
            f"{pair.draft.name} is a head, whose steps are not counted on known texts yet; leave {'`trace`' if tracing else '`dynamic`'} out"
        )
    if dynamic is not None:
        settings.require_traceable("dynamic")
        dynamic = dynamic.of_vocabulary(pair.vocabulary_size)
    require_fit(pair, prompts, settings)
    found: dict[int, _Row] = {}
    source = TextSource(pair, prompts, settings.method, settings.gen_len, settings.sampling, settings.batch_size)
    batches = source.batches

    def read(key: str, value: Any) -> list[_Row]:
        rows = list_of_length(len(batches[int(key)]), value)
        return [_Row.from_json(settings.max_branch, row, tracing=tracing, grid=dynamic) for row in rows]

    with Journal(pair.own(journal), _fingerprint(pair, prompts, settings, dynamic, tracing=tracing), read) as log:
        for number, batch in enumerate(batches):
            on_token = _step_progress(progress, number, len(batches), settings.gen_len)
            work = partial(_measure, pair, source, batch, settings, on_token, dynamic, tracing=tracing)
            rows = log.piece(str(number), work, lambda rows: [row.to_json() for row in rows])
            found.update({index: row for (index, _), row in zip(batch, rows, strict=True)})
            progress("profiling acceptance", (number + 1) * settings.gen_len, len(batches) * settings.gen_len)
    measured = [found[index] for index in sorted(found)]
    profile = _profile(pair, prompts, settings, measured)
    if dynamic is None:
        return profile, measured
    tokens, steps = zip(*(row.grown for row in measured if row.grown is not None), strict=True)
    return replace(profile, dynamic=DynamicAcceptance(dynamic, tokens, np.stack(steps, axis=-1))), measured


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
    dynamic: BudgetGrid | None,
    *,
    tracing: bool,
) -> list[_Row]:
    """Return what was measured on the text of each prompt of a batch."""
    generators = [prompt_generator(settings.seed, index, pair.target.device) for index, _ in batch]
    pixels = pair.pixels(*(prompt for _, prompt in batch))
    streams = [prompt_generator(settings.seed, index, pair.target.device, "children") for index, _ in batch]
    found = [_Row([], 0)] * len(batch)
    for texts in source.texts(batch, generators, partial(readable, pair.draft), on_token=on_token, pixels=pixels):
        for part in chunks(texts.tokens, pair.target.vocabulary_size):
            rows, valid, tokens = texts.rows[part], texts.valid[part], texts.tokens[part]
            below: list[tuple[list[list[float]], list[int]]] = []
            if valid.shape[1]:
                seen = None if pixels is None else pixels[rows]
                levels = draft_levels(pair, tokens, valid, seen)
                logits, p, own = next(levels), target_chances(pair, tokens, valid, settings, seen), [streams[row] for row in rows]
                chances = _chances(logits, p, valid, settings, own)
                for depth, deeper in enumerate(levels, start=1):
                    there = valid[:, depth:]
                    below.append((_chances(deeper, p[:, depth:], there, settings, own).sum(1).tolist(), there.sum(1).tolist()))
            else:  # the draft can read no token behind these prompts
                logits, chances = (torch.empty(len(rows), 0, width) for width in (pair.target.vocabulary_size, settings.max_branch))
            following = tokens[:, tokens.shape[1] - valid.shape[1] :]
            for place, (row, sums, count) in enumerate(zip(rows, chances.sum(1).tolist(), valid.sum(1).tolist(), strict=True)):
                said = grown = None
                length, ended, prompt = texts.lengths[part][place], texts.ended[part][place], batch[row][1]
                if tracing:
                    said = traced_row(pair, logits[place, :count], following[place, :count], length, eos=ended)
                if dynamic is not None and not isinstance(pair.draft, BoundHead):
                    known = traced_text(pair, prompt, length, eos=ended)
                    text = tokens[place, len(prompt.ids) : len(prompt.ids) + known.drafted + 1].tolist()
                    seen = None if pixels is None else pixels[row]
                    steps = dynamic_steps(pair.draft, pair.vocabulary_size, prompt.ids, text, known, settings.gen_len, dynamic, seen)
                    grown = length - 1, steps
                found[row] = _Row(sums, count, said, grown, tuple((level[place], counts[place]) for level, counts in below))
    return found


def draft_logits(pair: Pair, texts: Tensor, valid: Tensor, pixels: Tensor | None = None) -> Tensor:
    """Return the draft's logits before each of the last positions of texts, [batch, positions, vocabulary of the target].

    For `texts` and `valid` see `rank_chances`. Tokens that the draft does not know have -inf. Raises ModelError for logits that are not finite.
    """
    return next(draft_levels(pair, texts, valid, pixels))


def draft_levels(pair: Pair, texts: Tensor, valid: Tensor, pixels: Tensor | None = None) -> Iterator[Tensor]:
    """Yield the logits of `draft_logits`, and for a head also those of its deeper levels, as far as the texts have any.

    At level d + 1 a head proposes from d tokens of its own reading, so that the first d positions are left out: [batch, positions - d, vocabulary].
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


def rank_chances(
    pair: Pair,
    logits: Tensor,
    texts: Tensor,
    valid: Tensor,
    settings: AcceptanceSettings,
    generators: Sequence[torch.Generator],
    pixels: Tensor | None = None,
) -> Tensor:
    """Return the chance that the child of each rank is accepted, at each of the last positions of every text.

    `texts` int64 [batch, length]; `valid` bool [batch, positions] marks the last `positions` tokens that count as next tokens, before
    which the draft's `logits` are those of `draft_logits`.
    Under `topk` the chance of rank k is exactly p(token_k); in greedy decoding on the target's own text it is 1 if the text goes on with
    that token, else 0. Under `swor` and `swr` it is the mean, over draws of the children, of the residual chain's chances given the
    children. Returns float64 [batch, positions, ranks], 0 where not valid.
    """
    return _chances(logits, target_chances(pair, texts, valid, settings, pixels), valid, settings, generators)


def target_chances(pair: Pair, texts: Tensor, valid: Tensor, settings: AcceptanceSettings, pixels: Tensor | None = None) -> Tensor:
    """Return the target's distribution before each of the last positions of texts, float32 [batch, positions, vocabulary]. See `rank_chances`."""
    start = texts.shape[1] - valid.shape[1] - 1
    following = texts[:, start + 1 :, None]
    if settings.sampling.greedy and settings.method == "on-policy":  # the text is the target's own argmax
        whole = torch.zeros(*following.shape[:2], pair.target.vocabulary_size, dtype=torch.float32, device=texts.device)
        return whole.scatter_(-1, following, 1.0)
    scores = score(pair.target, texts[:, :-1], start, pixels)
    require_finite(int(finite(scores)))
    return torch.stack([distribution(row, settings.sampling) for row in scores])


def _chances(logits: Tensor, p: Tensor, valid: Tensor, settings: AcceptanceSettings, generators: Sequence[torch.Generator]) -> Tensor:
    """Return the chances of `rank_chances`, for the target's distributions `p` of the same positions."""
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


def _profile(pair: Pair, prompts: PromptSet, settings: AcceptanceSettings, rows: Sequence[_Row]) -> AcceptanceProfile:
    counts = [row.positions for row in rows]
    positions = sum(counts)
    if positions == 0:
        raise ProfileError("no position to measure: the target ended every prompt with its first token; use other prompts")
    probability, errors = ratio(np.array([row.sums for row in rows]), counts)
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
        prompts=len(rows),
        method=settings.method,
        by_depth=_by_depth(pair.draft, rows, probability.tolist()),
        prompt_sums=tuple(tuple(row.sums) for row in rows),
        prompt_positions=tuple(counts),
        prompt_categories=categories if any(categories := tuple(prompt.category for prompt in prompts)) else (),
        prompt_set=prompts.describe(),
        pair_sha256=pair.sha256,
        provenance=pair.provenance(
            temperature=settings.sampling.temperature,
            top_p=settings.sampling.top_p,
            dataset=prompts.label,
            seed=settings.seed,
        ),
    )


def _by_depth(draft: Draft, rows: Sequence[_Row], first: list[float]) -> tuple[tuple[float, ...], ...] | None:
    """Return the chances of the ranks at each level of a head, of which the first is known; None for a draft whose levels are alike.

    A head that proposes all levels at once has nothing behind the last, where every chance is 0.
    """
    if not isinstance(draft, BoundHead):
        return None
    found = [tuple(first)]
    for depth in range(max(len(row.deeper) for row in rows)):
        there = [row.deeper[depth] for row in rows if len(row.deeper) > depth]
        positions = sum(count for _, count in there)
        if not positions:
            break
        found.append(tuple((np.sum([sums for sums, _ in there], axis=0) / positions).tolist()))
    if len(found) == draft.parallel_levels:
        found.append((0.0,) * len(first))
    return tuple(found)


def _step_progress(progress: Progress, number: int, batches: int, gen_len: int) -> Callable[[int], None]:
    return lambda done: progress("profiling acceptance", number * gen_len + done, batches * gen_len)


def _fingerprint(pair: Pair, prompts: PromptSet, settings: AcceptanceSettings, dynamic: BudgetGrid | None, *, tracing: bool) -> str:
    where = pair.place, str(pair.target.dtype)
    more = [*(["trace"] if tracing else []), *([] if dynamic is None else [asdict(dynamic)])]
    return fingerprint(pair.describe(), prompts.fingerprint, asdict(settings), *where, *more)
