"""Measure the acceptance profile of a pair: which of the draft's ranks the target accepts, position by position."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from treeopt.profiles import AcceptanceProfile
from treespec.continuation import continue_prompts
from treespec.errors import CapacityError, ModelError, ProfileError
from treespec.journal import Journal
from treespec.models.loading import Pair
from treespec.models.tree_model import TreeModel
from treespec.prompts import Prompt, PromptSet
from treespec.sampling import Sampling, distribution, prompt_generator
from treespec.step import finite, require_finite

Progress = Callable[[str, int, int], None]
_LOGITS_AT_ONCE = 1 << 27
"""Elements of one [batch, positions, vocabulary] block that a scoring pass may hold."""


@dataclass(frozen=True)
class AcceptanceSettings:
    """How to measure. `on-policy` ranks the target's own continuations, `teacher-forced` the data set's own text."""

    drafting: str = "topk"
    temperature: float = 0.0
    top_p: float = 1.0
    gen_len: int = 128
    max_branch: int = 32
    method: str = "on-policy"
    seed: int = 0
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.drafting != "topk":
            raise ProfileError(f"drafting {self.drafting!r} cannot be profiled; use topk")
        if self.method not in ("on-policy", "teacher-forced"):
            raise ProfileError(f"method is {self.method!r}, but it must be on-policy or teacher-forced")
        if self.gen_len < 2 or self.max_branch < 1 or self.batch_size < 1:
            raise ProfileError(
                f"gen-len {self.gen_len}, max-branch {self.max_branch} and batch size {self.batch_size} must be at least 2, 1 and 1: "
                "the first generated token comes from the prompt pass and is never drafted"
            )


@torch.inference_mode()
def profile_acceptance(
    pair: Pair,
    prompts: PromptSet,
    settings: AcceptanceSettings,
    *,
    journal: Path | None = None,
    progress: Progress = lambda what, done, total: None,
) -> AcceptanceProfile:
    """Chance of each rank, exactly in closed form: under `topk` rank k is accepted with probability p(token_k).

    Positions are those that decoding drafts for: after the first generated token, up to EOS. Standard errors treat
    prompts as the independent units (linearised ratio estimator). Finished batches survive an interruption in `journal`,
    which the caller discards once the profile is saved. Raises CapacityError, ModelError (non-finite logits),
    ProfileError (nothing to measure).
    """
    draft = pair.draft
    if draft is None:
        raise ModelError("an acceptance profile needs a draft model; pass --draft")
    vocabulary = min(pair.target.vocabulary_size, draft.vocabulary_size)
    if settings.max_branch > vocabulary:
        raise ProfileError(
            f"max-branch is {settings.max_branch}, but the vocabulary has {vocabulary} tokens; pass --max-branch {vocabulary} or less"
        )
    longest = max(len(p.ids) for p in prompts.prompts) + settings.gen_len
    for role, model in (("target", pair.target), ("draft", draft)):
        if model.max_positions is not None and longest > model.max_positions:
            raise CapacityError(
                f"prompts and continuations need {longest} positions, but the {role} has {model.max_positions}; lower --prompt-len or --gen-len"
            )
    sums: dict[int, tuple[list[float], int]] = {}
    batches = _batches(prompts, settings.batch_size)
    with Journal(journal, _fingerprint(pair, prompts, settings)) as log:
        for number, batch in enumerate(batches):
            key = str(number)
            measured = log.get(key)
            if measured is None:
                measured = _measure(
                    pair, draft, batch, settings, vocabulary, _step_progress(progress, number, len(batches), settings.gen_len)
                )
                log.put(key, measured)
            sums.update({index: (row, count) for (index, _), (row, count) in zip(batch, measured, strict=True)})
            progress("profiling acceptance", (number + 1) * settings.gen_len, len(batches) * settings.gen_len)
    return _profile(pair, prompts, settings, [sums[i] for i in sorted(sums)])


def _batches(prompts: PromptSet, size: int) -> list[list[tuple[int, Prompt]]]:
    """Runs of equally long prompts, each with its index in the set."""
    batches: list[list[tuple[int, Prompt]]] = []
    for index, prompt in sorted(enumerate(prompts.prompts), key=lambda item: len(item[1].ids)):
        last = batches[-1] if batches else []
        if last and len(last) < size and len(last[0][1].ids) == len(prompt.ids):
            last.append((index, prompt))
        else:
            batches.append([(index, prompt)])
    return batches


def _measure(
    pair: Pair,
    draft: TreeModel,
    batch: list[tuple[int, Prompt]],
    settings: AcceptanceSettings,
    vocabulary: int,
    on_token: Callable[[int], None],
) -> list[tuple[list[float], int]]:
    """Per prompt: (sum over positions of the chance of each rank, positions)."""
    device = pair.target.device
    sampling = Sampling(settings.temperature, settings.top_p)
    ids = torch.tensor([p.ids for _, p in batch], device=device)
    start = ids.shape[1]
    if settings.method == "on-policy":
        generators = [prompt_generator(settings.seed, index, device) for index, _ in batch]
        texts, valid = continue_prompts(
            pair.target.module, ids, settings.gen_len, sampling, generators, pair.eos_token_ids, vocabulary, on_token
        )
    else:
        texts, valid = _own_text(batch, ids, settings.gen_len)
    valid = valid[:, 1:]  # the first token comes from the prompt pass: position `start` is the first that is drafted
    rows = max(1, _LOGITS_AT_ONCE // (texts.shape[1] * vocabulary))
    found: list[tuple[list[float], int]] = []
    for first in range(0, len(batch), rows):
        text, kept = texts[first : first + rows], valid[first : first + rows]
        best, ranked = draft.score(text[:, :-1], start)[..., :vocabulary].topk(settings.max_branch, dim=-1)
        require_finite(int(best[..., 0][kept].isfinite().all()), role="draft")
        if sampling.greedy and settings.method == "on-policy":
            accepted = (ranked == text[:, start + 1 :, None]).double()  # the text is the target's own argmax
        else:
            accepted = target_mass(pair.target.score(text[:, :-1], start)[..., :vocabulary], ranked, sampling)
        totals = (accepted * kept[..., None]).sum(1)
        found += [(row.tolist(), int(count)) for row, count in zip(totals.cpu(), kept.sum(1).cpu(), strict=True)]
    return found


def target_mass(logits: Tensor, ranked: Tensor, sampling: Sampling) -> Tensor:
    """p(token_k) of every ranked token. [batch, positions, vocabulary], [batch, positions, ranks] -> float64 [batch, positions, ranks]."""
    require_finite(int(finite(logits)))
    return torch.stack([distribution(row, sampling).gather(-1, ranks) for row, ranks in zip(logits, ranked, strict=True)]).double()


def _own_text(batch: list[tuple[int, Prompt]], ids: Tensor, gen_len: int) -> tuple[Tensor, Tensor]:
    """Prompts with their rows' own continuations, padded by repetition. (int64 [batch, length + gen_len], bool [batch, gen_len])."""
    texts = torch.zeros(len(batch), gen_len, dtype=torch.int64)
    valid = torch.zeros(len(batch), gen_len, dtype=torch.bool)
    for row, (_, prompt) in enumerate(batch):
        own = prompt.continuation[:gen_len]
        texts[row, : len(own)] = torch.tensor(own, dtype=torch.int64)
        valid[row, : len(own)] = True
    return torch.cat([ids, texts.to(ids.device)], dim=1), valid.to(ids.device)


def _profile(pair: Pair, prompts: PromptSet, settings: AcceptanceSettings, sums: list[tuple[list[float], int]]) -> AcceptanceProfile:
    totals = np.array([row for row, _ in sums])
    counts = np.array([count for _, count in sums], dtype=np.float64)
    positions = int(counts.sum())
    if positions == 0:
        raise ProfileError(
            "no position to measure: every prompt ended with its first token, or rows hold no text after the prompt; use longer rows"
        )
    probability = totals.sum(0) / positions
    residual = totals - counts[:, None] * probability
    prompts_used = len(sums)
    correction = prompts_used / (prompts_used - 1) if prompts_used > 1 else float("nan")
    errors = np.sqrt(correction * (residual**2).sum(0)) / positions if prompts_used > 1 else np.zeros_like(probability)
    return AcceptanceProfile(
        drafting=settings.drafting,
        temperature=settings.temperature,
        top_p=settings.top_p,
        rank_probability=tuple(probability.tolist()),
        none_accepted=max(0.0, 1.0 - float(probability.sum())),
        standard_error=tuple(errors.tolist()),
        positions=positions,
        prompts=prompts_used,
        method=settings.method,
        prompt_sums=tuple(tuple(row) for row, _ in sums),
        prompt_positions=tuple(count for _, count in sums),
        provenance=pair.provenance(
            temperature=settings.temperature,
            top_p=settings.top_p,
            dataset=f"{prompts.dataset}[{prompts.start}:{prompts.end}]",
            seed=settings.seed,
        ),
    )


def _step_progress(progress: Progress, number: int, batches: int, gen_len: int) -> Callable[[int], None]:
    return lambda done: progress("profiling acceptance", number * gen_len + done, batches * gen_len)


def _fingerprint(pair: Pair, prompts: PromptSet, settings: AcceptanceSettings) -> str:
    known: list[Any] = [pair.describe(), prompts.fingerprint, asdict(settings), str(pair.target.device), str(pair.target.dtype)]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
