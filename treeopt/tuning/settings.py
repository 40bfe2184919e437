"""The settings of a tuning run, as plain data, and the candidates that they name. No torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from treeopt.profiles.samples import ENOUGH
from treeopt.profiling.settings import AcceptanceSettings, LatencySettings
from treespec.checks import require_kind, require_number, require_whole
from treespec.decoding.drafting import Drafting
from treespec.decoding.rules import TOPK, Sampling
from treespec.decoding.verifiers import AT_LEAST_SEQUENTIAL
from treespec.errors import SettingsError, counted
from treespec.evaluation.settings import EvaluationSettings


@dataclass(frozen=True)
class TuneSettings:
    """Settings of a whole run. Every one of the `samplings` goes with every one of the `draftings` and every draft.

    `choose_prompts` are those on which candidates are compared, if there are several, and `evaluate_prompts` those that are decoded in the end; the
    others are profiled. `context` is the number of tokens in the cache that latencies are measured at (None: the longest prompt and half of
    `gen_len`). With `minutes`, prompts and repetitions are chosen so that the run takes that long.
    """

    samplings: tuple[Sampling, ...] = (Sampling(),)
    draftings: tuple[Drafting, ...] = (Drafting(),)
    choose_prompts: int = 16
    evaluate_prompts: int = 16
    gen_len: int = EvaluationSettings.gen_len
    max_branch: int = AcceptanceSettings.max_branch
    draws: int = AcceptanceSettings.draws
    sizes: tuple[int, ...] | None = None
    widths: tuple[int, ...] | None = None
    context: int | None = None
    repetitions: int = LatencySettings.repetitions
    max_size: int | None = None
    max_depth: int | None = None
    seed: int = 0
    batch_size: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        require_whole(1, choose_prompts=self.choose_prompts, evaluate_prompts=self.evaluate_prompts)
        require_whole(2, gen_len=self.gen_len)
        limits = {"max_size": self.max_size, "max_depth": self.max_depth, "context": self.context}
        require_whole(1, **{name: value for name, value in limits.items() if value is not None})
        if self.minutes is not None:
            require_number(minutes=self.minutes)
            if not 0 < self.minutes < math.inf:
                raise SettingsError(
                    f"`minutes` is {self.minutes}, but it must be a number above 0; leave it out for a run without a budget"
                )
        require_kind(tuple, samplings=self.samplings, draftings=self.draftings)
        self.latency(2)
        for sampling in self.samplings:
            for drafting in self.draftings:
                if drafting.samples(sampling) and drafting.verifier not in AT_LEAST_SEQUENTIAL:
                    raise SettingsError(
                        f"`verifier` {drafting.verifier} accepts other shares of {drafting.rule} children than a profile tells, so it cannot be "
                        f"compared; pass {' or '.join(sorted(AT_LEAST_SEQUENTIAL))}"
                    )
                self.acceptance(Candidate(1, sampling, drafting))

    def require_timed(self, sizes: Sequence[int]) -> None:
        """Raise SettingsError, before anything is measured, for trees that may be larger than the largest of the sizes to time, in ascending order."""
        if self.max_size is not None and self.max_size > sizes[-1]:
            raise SettingsError(
                f"`max_size` is {self.max_size}, but the largest tree that is timed here has {counted(sizes[-1], 'node')}; ask for at most "
                f"{sizes[-1]}, or name the sizes to time by `sizes`"
            )

    def acceptance(self, candidate: "Candidate") -> AcceptanceSettings:
        """Return how the acceptance of a candidate is measured."""
        return AcceptanceSettings(
            candidate.sampling,
            candidate.drafting,
            self.draws,
            self.gen_len,
            self.max_branch,
            seed=self.seed,
            batch_size=self.batch_size,
        )

    def latency(self, longest: int, repetitions: int | None = None) -> LatencySettings:
        """Return how latencies are measured behind prompts of at most `longest` tokens."""
        return LatencySettings(
            self.sizes,
            self.widths,
            (self.context or longest + self.gen_len // 2,),
            repetitions or self.repetitions,
            self.seed,
            samplings=self.samplings,
            draftings=self.draftings,
        )

    def evaluation(self, candidate: "Candidate") -> EvaluationSettings:
        """Return how the tree of a candidate is evaluated."""
        return EvaluationSettings(self.gen_len, sampling=candidate.sampling, drafting=candidate.drafting, seed=self.seed)

    def candidates(self, drafts: int) -> tuple["Candidate", ...]:
        """Return what can be chosen with so many drafts. Settings that give the same children and the same verification count once."""
        found: dict[tuple[object, ...], Candidate] = {}
        for draft in range(1, drafts + 1):
            for sampling in self.samplings:
                for drafting in self.draftings:
                    one = Candidate(draft, sampling, drafting)
                    found.setdefault((draft, sampling, one.children, drafting.verifier if one.sampled else None), one)
        return tuple(found.values())


@dataclass(frozen=True)
class Candidate:
    """One thing to choose: a draft, by its number from 1, how the target samples, and how children are drafted and verified."""

    draft: int
    sampling: Sampling
    drafting: Drafting

    @property
    def sampled(self) -> bool:
        """Return whether children are random."""
        return self.drafting.samples(self.sampling)

    @property
    def children(self) -> str:
        """Return the rule of the children in short, with the draft's temperature if they are random and it is not the target's."""
        if not self.sampled:
            return TOPK.name
        own = self.drafting.temperature
        return self.drafting.rule + ("" if own in (None, self.sampling.temperature) else f"-d{own:g}")

    @property
    def profile_name(self) -> str:
        """Return the name of its acceptance profile, which does not depend on the verifier: `topk-t0`, `swor-t0.6-p0.9`."""
        mass = f"-p{self.sampling.top_p:g}" if self.sampling.top_p < 1 else ""
        return f"{self.children}-t{self.sampling.temperature:g}{mass}"

    @property
    def name(self) -> str:
        """Return its name among the candidates of a run."""
        return f"{self.draft}/{self.profile_name}" + (f"-{self.drafting.verifier}" if self.sampled else "")


PILOT_PROMPTS = 8
"""Prompts of a pilot, which tells how uncertain things are, per candidate."""

PILOT_REPETITIONS = ENOUGH
"""Repetitions of a pilot's latencies: the fewest that have intervals."""


def shares(rows: int, profile: int, choose: int, evaluate: int) -> tuple[int, int, int]:
    """Return how many rows are compared on, profiled and evaluated, in this order: those asked for, or in proportion where there are fewer.

    Raises SettingsError where there are too few for each to have one.

    >>> shares(100, 64, 16, 16), shares(48, 64, 16, 16), shares(5, 64, 0, 16)
    ((16, 64, 16), (8, 32, 8), (0, 4, 1))
    """
    asked = profile + choose + evaluate
    if rows >= asked:
        return choose, profile, evaluate
    fewest = 2 + (choose > 0)
    if rows < fewest:
        raise SettingsError(
            f"there {'is' if rows == 1 else 'are'} {rows} usable row{'' if rows == 1 else 's'}, but profiling, choosing and evaluating need rows of their "
            f"own, {fewest} at least; pass a larger `dataset`, or a smaller `prompt_len`"
        )
    compared = min(max(1, rows * choose // asked), rows - 2) if choose else 0
    decoded = min(max(1, rows * evaluate // asked), rows - compared - 1)
    return compared, rows - compared - decoded, decoded


def names(candidates: Sequence[Candidate], drafts: Sequence[str]) -> list[str]:
    """Return the names of candidates for people: the draft, if there are several, the rule and the target's sampling."""
    several = len(drafts) > 1
    found = []
    for one in candidates:
        mass = f", top-p {one.sampling.top_p:g}" if one.sampling.top_p < 1 else ""
        verified = f" by {one.drafting.verifier}" if one.sampled else ""
        found.append(
            (f"{drafts[one.draft - 1]}: " if several else "") + f"{one.children}{verified}, temperature {one.sampling.temperature:g}{mass}"
        )
    return found
