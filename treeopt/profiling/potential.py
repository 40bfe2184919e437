"""Measure the potential of drafts before any tuning: how far their distributions are from the target's, on the same texts."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from treeopt.profiles.potential import MEASURES, DraftPotential, PotentialReport
from treeopt.profiling.settings import PotentialSettings
from treeopt.profiling.texts import Batch, TextSource, chunks, no_room, require_drafted, require_positions, require_text
from treespec.data.prompts import PromptSet
from treespec.decoding.sampling import distribution, prompt_generator, require_finite
from treespec.decoding.scoring import score
from treespec.errors import ModelError, ProfileError
from treespec.files import fields
from treespec.files.fields import list_of_length, natural
from treespec.files.fingerprint import fingerprint
from treespec.files.processes import ALONE, Processes
from treespec.files.provenance import public_name
from treespec.files.spreading import spread
from treespec.kernels.plain import scaled
from treespec.models.drafts import Draft, DraftInfo, recorded_name
from treespec.models.info import ModelInfo
from treespec.models.pairs import Target
from treespec.models.positions import readable
from treespec.models.tree_model import TreeModel

Progress = Callable[[str, int, int], None]


@torch.inference_mode()
def measure_potential(
    target: Target,
    drafts: Sequence[Draft],
    prompts: PromptSet,
    settings: PotentialSettings,
    *,
    left_out: Mapping[str, str] = MappingProxyType({}),
    journal: Path | None = None,
    processes: Processes = ALONE,
    progress: Progress = lambda what, done, total: None,
) -> PotentialReport:
    """Measure KL divergence, total variation and agreement of each draft with the target, over the positions that decoding drafts for.

    `target` may be a pair without a draft. `left_out` is recorded: drafts that do not fit, with the reasons. The texts, and the target's
    distributions on them, are made once for all drafts; they end where one of the drafts has no more positions. Finished batches survive an
    interruption in `journal`, which the caller discards once the report is saved. Several `processes`, which all call this with models of their
    own, share the batches, and all get the report. Raises CapacityError, ModelError (no draft, non-finite logits), ProcessesError, ProfileError
    (nothing to measure).
    """
    require_fit(target.target, drafts, prompts, settings)
    shared = _shared(target.target, drafts)
    names = _distinct([recorded_name(draft) for draft in drafts])
    source = TextSource(target, prompts, settings.method, settings.gen_len, settings.sampling, settings.batch_size)
    batches = source.batches
    found: dict[int, list[Any]] = {}

    def read(key: str, value: Any) -> list[Any]:
        rows = [list_of_length(2, row) for row in list_of_length(len(batches[int(key)]), value)]
        per_draft = [
            (natural(count), [list_of_length(len(MEASURES), sums) for sums in list_of_length(len(drafts), found)]) for count, found in rows
        ]
        return [(count, [[None if x is None else fields.number(x) for x in sums] for sums in found]) for count, found in per_draft]

    work = _fingerprint(target, drafts, prompts, settings)
    done = spread(
        [str(number) for number in range(len(batches))],
        lambda key, on_token: _measure(target, drafts, source, batches[int(key)], settings, shared, on_token),
        journal=target.own(journal, work),
        fingerprint=work,
        read=read,
        keep=lambda rows: rows,
        processes=processes,
        units=settings.gen_len,
        progress=partial(progress, "measuring potential"),
    )
    for key, measured in done.items():
        found.update({index: row for (index, _), row in zip(batches[int(key)], measured, strict=True)})
    rows = [found[index] for index in sorted(found)]
    positions = tuple(count for count, _ in rows)
    if sum(positions) == 0:
        raise ProfileError(
            "no position to measure: the target ended every prompt with its first token; use other prompts, or `method` teacher-forced"
        )
    provenance = target.provenance(
        temperature=settings.sampling.temperature,
        top_p=settings.sampling.top_p,
        dataset=prompts.label,
        seed=settings.seed,
        processes=processes.place.size,
    )
    return PotentialReport(
        drafts=tuple(DraftPotential(name, _sums([sums[i] for _, sums in rows])) for i, name in enumerate(names)),
        positions=positions,
        method=settings.method,
        temperature=settings.sampling.temperature,
        top_p=settings.sampling.top_p,
        gen_len=settings.gen_len,
        seed=settings.seed,
        prompt_set=prompts.describe(),
        left_out=_without_folders(left_out, target.target.name),
        provenance={**provenance, "models": {**provenance["models"], **{f"draft {i}": name for i, name in enumerate(names)}}},
    )


def require_fit(
    target: TreeModel | ModelInfo, drafts: Sequence[Draft | DraftInfo], prompts: PromptSet, settings: PotentialSettings
) -> None:
    """Raise CapacityError, ModelError or ProfileError for prompts on which these models, which need not be loaded, cannot be measured."""
    if not drafts:
        raise ModelError("a potential needs at least one draft model; pass `draft`")
    require_text(prompts, settings.method)
    names = _distinct([public_name(draft.name) for draft in drafts])
    require_positions(target, prompts, settings.gen_len)
    require_drafted({f"draft {n}": d for n, d in zip(names, drafts, strict=True)}, prompts)


def without_room(drafts: Sequence[DraftInfo], prompts: PromptSet) -> dict[str, str]:
    """Return the drafts, by name, that can draft nothing after any of the prompts, each with the reason."""
    return {draft.name: f"draft {draft.name} {reason}" for draft in drafts if (reason := no_room(draft, prompts)) is not None}


def _without_folders(left_out: Mapping[str, str], target: str) -> dict[str, str]:
    """Return the same for records, where names have no folders."""
    return {
        public_name(draft): reason.replace(draft, public_name(draft)).replace(target, public_name(target))
        for draft, reason in left_out.items()
    }


def _measure(
    target: Target,
    drafts: Sequence[Draft],
    source: TextSource,
    batch: Batch,
    settings: PotentialSettings,
    shared: Tensor,
    on_token: Callable[[int], None],
) -> list[tuple[int, list[list[float | None]]]]:
    """Return for each prompt the number of positions and, for each draft, the sum of every measure over them."""
    generators = [prompt_generator(settings.seed, index, target.target.device) for index, _ in batch]
    pixels = target.pixels(*(prompt for _, prompt in batch))

    def most(ids: Sequence[int]) -> int | None:
        return min((limit for draft in drafts if (limit := readable(draft, ids)) is not None), default=None)

    found: list[tuple[int, list[list[float | None]]]] = [(0, [[0.0] * len(MEASURES) for _ in drafts])] * len(batch)
    for texts in source.texts(batch, generators, most, on_token=on_token, pixels=pixels):
        start = texts.tokens.shape[1] - texts.valid.shape[1] - 1
        for part in chunks(texts.tokens, target.target.vocabulary_size) if texts.valid.shape[1] else ():
            rows, read, counted = texts.rows[part], texts.tokens[part, :-1], texts.valid[part]
            seen = None if pixels is None else pixels[rows]
            scores = _scores(target.target, read, seen, start, shared, counted, "target")
            side = TargetSide.of(scores, settings)
            per_draft = []
            for draft in drafts:
                measured = side.against(_scores(draft, read, seen, start, shared, counted, "draft"))
                sums = [None if m is None else m.where(counted, 0.0).sum(1, dtype=torch.float64).tolist() for m in measured]
                per_draft.append(sums)
            for place, (row, count) in enumerate(zip(rows, counted.sum(1).tolist(), strict=True)):
                found[row] = count, [[None if m is None else m[place] for m in sums] for sums in per_draft]
    return found


def _shared(target: TreeModel, drafts: Sequence[Draft]) -> Tensor:
    """Return the ids, int64 [shared], that the target and all drafts can give a probability; distributions are compared over them."""
    unknown = {token for draft in drafts for token in draft.unknown}
    ids = [token for token in range(min(model.vocabulary_size for model in (target, *drafts))) if token not in unknown]
    return torch.tensor(ids, device=target.device)


def _scores(model: Draft, texts: Tensor, pixels: Tensor | None, start: int, shared: Tensor, valid: Tensor, role: str) -> Tensor:
    """Return logits [batch, positions, shared ids] after the tokens from `start` on, finite where `valid`. Raises ModelError."""
    scores = score(model, texts, start, pixels)
    scores = scores if scores.shape[-1] == shared.shape[0] else scores[..., shared]
    require_finite(int(scores.amax(-1)[valid].isfinite().all()), role=role)
    return scores


@dataclass(frozen=True)
class TargetSide:
    """The target's side of the comparison with a draft, at [batch, positions]; float32 over the vocabulary."""

    probabilities: Tensor
    logarithms: Tensor
    """Logarithms of the probabilities; the smallest float32 for a probability of 0."""
    best: Tensor
    """int64 [batch, positions]: the most likely token."""
    settings: PotentialSettings

    @classmethod
    def of(cls, logits: Tensor, settings: PotentialSettings) -> "TargetSide":
        """Return the target's side from its logits [batch, positions, vocabulary]."""
        if settings.compared.top_p < 1:
            probabilities = torch.stack([distribution(row, settings.compared) for row in logits])
            logarithms = probabilities.log().clamp_min(torch.finfo(torch.float32).min)
        else:
            logarithms = _logarithms(logits, settings.compared.temperature)
            probabilities = logarithms.exp()
        return cls(probabilities, logarithms, logits.argmax(-1), settings)

    def against(self, logits: Tensor) -> tuple[Tensor | None, ...]:
        """Return the MEASURES of a draft with these logits at each position; float64 sums over the vocabulary, no NaN for finite logits."""
        ours, theirs = self.logarithms, _logarithms(logits, self.settings.compared.temperature)
        sampled = theirs.exp()
        kl = _dot(self.probabilities, ours - theirs)
        reverse = None if self.settings.compared.top_p < 1 else _dot(sampled, theirs - ours)
        variation = (self.probabilities - sampled).abs_().sum(-1, dtype=torch.float64) / 2
        best = logits.argmax(-1)
        agreement = (best == self.best).double()
        child = agreement if self.settings.sampling.greedy else self.probabilities.gather(-1, best[..., None])[..., 0].double()
        return kl, reverse, variation, agreement, child


def _logarithms(logits: Tensor, temperature: float) -> Tensor:
    """Return the logarithms of the softmax at a temperature, in float32; finite even where a probability is too small for it."""
    return scaled(logits.float(), temperature).log_softmax(-1).clamp_min(torch.finfo(torch.float32).min)


def _dot(weights: Tensor, values: Tensor) -> Tensor:
    """Return the sum of weights * values over the vocabulary in float64; a weight of 0 counts nothing, whatever its value."""
    return (weights * values).where(weights > 0, 0.0).sum(-1, dtype=torch.float64)


def _sums(rows: Sequence[Sequence[float | None]]) -> dict[str, tuple[float, ...] | None]:
    """Return the sums of all prompts for each measure; None for a measure that was not taken."""
    columns = dict(zip(MEASURES, zip(*rows, strict=True), strict=True))
    return {
        name: None if None in column else tuple(float(value) for value in column if value is not None) for name, column in columns.items()
    }


def _distinct(names: Sequence[str]) -> list[str]:
    """Return the names, numbered if several are the same."""
    often, seen = Counter(names), Counter[str]()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if often[name] == 1 else f"{name} ({seen[name]})")
    return found


def _fingerprint(target: Target, drafts: Sequence[Draft], prompts: PromptSet, settings: PotentialSettings) -> str:
    models = [target.describe(), *(draft.describe() for draft in drafts)]
    return fingerprint(models, prompts.fingerprint, asdict(settings), target.place, str(target.target.dtype))
