"""Settings of a measurement, as plain data: acceptance, latency and potential. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from treeopt.profiles.samples import ENOUGH
from treespec.checks import require_at_most, require_kind, require_whole
from treespec.decoding.drafting import Drafting
from treespec.decoding.plans import DynamicBudget
from treespec.decoding.rules import TOPK, Sampling
from treespec.decoding.step_rule import GREEDY, StepRule
from treespec.errors import SettingsError
from treespec.trees.limits import MAX_SIZE

METHODS = ("on-policy", "teacher-forced")
"""`on-policy` measures on the target's own continuation of a prompt, `teacher-forced` on the row's."""

MOST_SAMPLES = 10_000
"""Most draws of a position's children, and most repetitions of a point; with so many, the machine and the text are what errs."""
_COLDEST = 1e-20
"""Lowest temperature: below it, logits that differ in rounding alone are further apart than a report's sums may be."""


@dataclass(frozen=True)
class AcceptanceSettings:
    """Settings of an acceptance profile. `on-policy` ranks the target's own continuations, `teacher-forced` the data set's own text.

    `draws` is the number of samples of each position's children, if children are sampled. `batch_size` prompts share a pass; None: 64 where
    passes are captured or read whole texts, else 16.
    """

    sampling: Sampling = Sampling()
    drafting: Drafting = Drafting()
    draws: int = 8
    gen_len: int = 128
    max_branch: int = 32
    method: str = METHODS[0]
    seed: int = 0
    batch_size: int | None = None

    def __post_init__(self) -> None:
        _require_texts(self.method, self.gen_len)
        require_whole(1, max_branch=self.max_branch, draws=self.draws, **_given(self.batch_size))
        require_at_most(MOST_SAMPLES, draws=self.draws)
        require_whole(0, seed=self.seed)
        require_kind(Sampling, sampling=self.sampling)
        require_kind(Drafting, drafting=self.drafting)

    def require_traceable(self, what: str = "trace") -> None:
        """Raise SettingsError if steps could not be counted on these texts: they must be the target's own, and no child random.

        `what` is the parameter that asks for it.
        """
        if self.method != METHODS[0]:
            raise SettingsError(
                f"`{what}` counts on the target's own choices, but `method` is {self.method}; pass `method` {METHODS[0]}, or leave `{what}` out"
            )
        if self.drafting.samples(self.sampling):
            raise SettingsError(
                f"`{what}` is of steps whose children are the draft's most likely tokens, but `drafting` is {self.drafting.rule}; "
                f"pass `drafting` {TOPK.name}, or leave `{what}` out"
            )


@dataclass(frozen=True)
class PotentialSettings:
    """Settings of a potential: the data set's own text (`teacher-forced`) or the target's (`on-policy`), and `gen_len` tokens per prompt.

    `batch_size` prompts share a pass; None: 64 where passes are captured or read whole texts, else 16.
    """

    method: str = METHODS[1]
    sampling: Sampling = Sampling()
    gen_len: int = 256
    seed: int = 0
    batch_size: int | None = None

    def __post_init__(self) -> None:
        _require_texts(self.method, self.gen_len)
        require_whole(1, **_given(self.batch_size))
        require_whole(0, seed=self.seed)
        require_kind(Sampling, sampling=self.sampling)
        if 0 < self.sampling.temperature < _COLDEST:
            raise SettingsError(
                f"`temperature` is {self.sampling.temperature:g}, but divergences at it are beyond all bounds; pass {_COLDEST:g} or more, "
                "or 0 for greedy decoding"
            )

    @property
    def compared(self) -> Sampling:
        """The sampling that gives the compared distributions: the target's own, or the plain softmax if it is greedy."""
        return Sampling(1.0) if self.sampling.greedy else self.sampling


@dataclass(frozen=True)
class LatencySettings:
    """Settings of a latency profile: the tree sizes, draft level widths and context lengths, each measured `repetitions` times.

    The repetitions are rounded up to whole bursts of `BURST`; those of the default are the fewest that give intervals. `sizes` and `widths` None
    stand for those of `default_sizes` and `default_widths` that are needed on the pair's device (`grid.needed`); size 1, an autoregressive step,
    is always measured. `topk` at temperature 0 is always measured, and beside it every one of `draftings`, and dynamic trees if `dynamic`, with
    every one of `samplings`: settings of one rule (`StepRule`) are measured once.
    """

    sizes: tuple[int, ...] | None = None
    widths: tuple[int, ...] | None = None
    contexts: tuple[int, ...] = (256,)
    repetitions: int = ENOUGH
    seed: int = 0
    samplings: tuple[Sampling, ...] = (Sampling(),)
    draftings: tuple[Drafting, ...] = (Drafting(),)
    dynamic: bool = False

    def __post_init__(self) -> None:
        require_kind(tuple, contexts=self.contexts, samplings=self.samplings, draftings=self.draftings)
        for name, given in (("samplings", self.samplings), ("draftings", self.draftings)):
            if not given:
                raise SettingsError(f"`{name}` is empty, but steps need one or more; leave it out for greedy steps")
        for sampling in self.samplings:
            require_kind(Sampling, sampling=sampling)
        for drafting in self.draftings:
            require_kind(Drafting, drafting=drafting)
        widest = (MAX_SIZE - 1) // 2  # of two levels behind a root
        for name, values, least, most in (
            ("sizes", self.sizes, 1, MAX_SIZE),
            ("widths", self.widths, 1, widest),
            ("contexts", self.contexts, 2, None),
        ):
            if values is None:
                continue
            require_kind(tuple, **{name: values})
            if not values or any(type(v) is not int or v < least or v > (v if most is None else most) for v in values):
                limits = f"of {least} or more" if most is None else f"from {least} to {most}"
                raise SettingsError(f"`{name}` is {','.join(map(str, values)) or 'empty'}, but it needs whole numbers {limits}")
        require_whole(1, repetitions=self.repetitions)
        require_at_most(MOST_SAMPLES, repetitions=self.repetitions)
        require_whole(0, seed=self.seed)

    @property
    def rules(self) -> dict[StepRule, tuple[Sampling, Drafting]]:
        """Return the rules to measure, `topk` at temperature 0 first, with settings of each."""
        found = {GREEDY: (Sampling(), Drafting())}
        for sampling in self.samplings:
            for drafting in self.draftings:
                found.setdefault(StepRule.of(sampling, drafting), (sampling, drafting))
            if self.dynamic:
                found.setdefault(StepRule.of(sampling, Drafting(), DynamicBudget.drafter), (sampling, Drafting()))
        return found


def default_sizes(device: str, vocabulary: int = MAX_SIZE) -> tuple[int, ...]:
    """Return tree sizes on both sides of the edges at which matrix tiles fill up: vector registers on a CPU, 64 and 128 rows on a GPU.

    A root has no more children than the vocabulary has tokens.
    """
    edges: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 17, 20, 24, 28, 32, 33, 40, 48, 64)
    if device != "cpu":
        edges = (1, 2, 4, 8, 12, 16, 17, 24, 32, 48, 64, 65, 80, 96, 112, 128, 129)
        edges = (*edges, *range(136, 257, 8), 257, 288, 320, 352, 384, 448, 512)
    return tuple(size for size in edges if size <= vocabulary + 1)


def default_widths(device: str, vocabulary: int = MAX_SIZE) -> tuple[int, ...]:
    """Return draft level widths. Trees need them up to their widest level only."""
    largest = min(vocabulary, 32 if device == "cpu" else 256)
    return tuple(w for w in (1, 2, 3, 4, 6, 8, 12, 16, 17, 24, 32, 33, 48, 64, 65, 96, 128, 129, 192, 256) if w <= largest)


def dynamic_widths_of(widths: Sequence[int], device: str, vocabulary: int) -> list[int]:
    """Return those of the draft level widths, ascending, at which dynamic trees are measured: fewer of the default ones, else all up to 64.

    If none is so narrow, they are measured at all of them.
    """
    few = (2, 4, 8, 12, 16, 24, 32, 48, 64) if tuple(widths) == default_widths(device, vocabulary) else range(1, 65)
    return [width for width in sorted(widths) if width in few] or sorted(widths)


def _given(batch_size: int | None) -> dict[str, int]:
    """Return the batch size, if there is one, by its name."""
    return {} if batch_size is None else {"batch_size": batch_size}


def _require_texts(method: str, gen_len: int) -> None:
    """Raise SettingsError for an unknown method, or too few tokens to measure on."""
    if method not in METHODS:
        raise SettingsError(f"`method` is {method!r}, but it must be {' or '.join(METHODS)}")
    require_whole(2, gen_len=gen_len)  # the first generated token comes from the prompt pass and is never drafted
