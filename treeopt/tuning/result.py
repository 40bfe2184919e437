"""The result of a tuning run: the candidates side by side, what was chosen, and how it did."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from treeopt.growmap_making import Generated
from treeopt.optimizer.search import acceptance_rows
from treeopt.optimizer.uncertainty import certainty
from treeopt.profiles.acceptance import AcceptanceProfile
from treeopt.profiles.intervals import quotient
from treeopt.profiles.latency import LatencyProfile
from treeopt.tuning.settings import Candidate
from treespec.errors import counted
from treespec.evaluation.report import EvaluationReport
from treespec.tables import Drawing, Drawn, Table, milliseconds, number
from treespec.trees.growmap import GrowMap


@dataclass(frozen=True)
class Score:
    """The expectations of a candidate: `tokens_per_step` on prompts that its tree was not grown from, if there were some, and its times."""

    candidate: Candidate
    name: str
    generated: Generated
    tokens_per_step: float
    seconds_per_step: float
    tokens_per_second: float
    interval: tuple[float, float] | None
    """The 95 % interval of the tokens per second; None where the profiles do not tell their errors."""
    compared_on: int
    """Prompts of its own that it was compared on; 0 where it was the only candidate, or was left out of the race."""

    @classmethod
    def of(
        cls, candidate: Candidate, name: str, generated: Generated, compared: AcceptanceProfile | None, latency: LatencyProfile
    ) -> "Score":
        """Return the score of a tree, with the acceptance on the prompts that it is compared on (None: on those that it was grown from)."""
        result = generated.result
        seconds = result.predicted_seconds_per_step
        assert seconds is not None  # there is a latency profile
        tokens, certain = result.expected_tokens_per_step, result.certainty
        if compared is not None and result.tree.size > 1:
            rows = acceptance_rows(compared)
            tokens = float(sum(result.tree.path_probabilities(rows[: max(1, result.tree.depth)].tolist())))
            context = generated.growmap.metadata.get("context")
            model, ends = latency.at_context(context, generated.rule), latency.ends(context, generated.rule)
            certain = certainty(result.tree, compared, rows, model, ends)
        interval = None
        if certain.tokens_per_step is not None and certain.seconds_per_step is not None:
            fast = quotient([certain.tokens_per_step], [certain.seconds_per_step])
            interval = fast.low, fast.high
        return cls(candidate, name, generated, tokens, seconds, tokens / seconds, interval, 0 if compared is None else compared.prompts)

    def summary(self) -> dict[str, Any]:
        """Return plain data."""
        tree, drafting = self.generated.result.tree, self.candidate.drafting
        return {
            "name": self.name,
            "draft": self.candidate.draft,
            "drafting": self.candidate.drafting.rule,
            "draft_temperature": drafting.temperature,
            "verifier": drafting.verifier if self.candidate.sampled else None,
            "temperature": self.candidate.sampling.temperature,
            "top_p": self.candidate.sampling.top_p,
            "size": tree.size,
            "depth": tree.depth,
            "expected_tokens_per_step": self.tokens_per_step,
            "predicted_seconds_per_step": self.seconds_per_step,
            "expected_tokens_per_second": self.tokens_per_second,
            "interval_95": None if self.interval is None else list(self.interval),
            "predicted_speedup": self.generated.result.predicted_speedup,
            "compared_on": self.compared_on,
        }


@dataclass(frozen=True)
class Tuning(Drawn):
    """The result of a run: the `scores` of all candidates, the fastest first, its growmap and its report.

    `seconds` are by stage. They are those of the runs that finished it: what a run that was interrupted in it took is not known.
    """

    out: Path
    scores: tuple[Score, ...]
    growmap: GrowMap
    acceptance: AcceptanceProfile
    latency: LatencyProfile
    report: EvaluationReport
    files: tuple[str, ...]
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def chosen(self) -> Score:
        """Return the candidate that was chosen."""
        return self.scores[0]

    def summary(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "out": str(self.out),
            "files": list(self.files),
            "chosen": self.chosen.summary(),
            "candidates": [score.summary() for score in self.scores],
            "notes": list(self.notes),
            "evaluation": self.report.summary(),
            "seconds": dict(self.seconds),
        }

    def drawing(self) -> Drawing:
        """Return the tables of the candidates and of the evaluation."""
        whole = sum(self.seconds.values())
        stages = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in self.seconds.items())
        return Drawing(
            [
                candidates_table(self.scores),
                *self.notes,
                *self.report.drawing(),
                f"{whole:.0f} s, not counting interrupted work ({stages})",
                f"{self.out}: {' '.join(self.files)}",
            ]
        )


def candidates_table(scores: Sequence[Score]) -> Table:
    """Return the table of candidates, the chosen one first."""
    rows = [
        (
            score.name,
            str(score.generated.result.tree.size),
            str(score.generated.result.tree.depth),
            number(score.tokens_per_step, 3),
            milliseconds(score.seconds_per_step),
            number(score.tokens_per_second, 1, score.interval),
            number(score.generated.result.predicted_speedup, 2),
        )
        for score in scores
    ]
    title = "chosen" if len(scores) == 1 else f"candidates{_intervals(scores)}, the chosen one first"
    heads = ("candidate", "size", "depth", "tokens per step", "ms per step", "expected tokens/s", "predicted speed-up")
    return Table(title, heads, rows, left=("candidate",))


def _intervals(scores: Sequence[Score]) -> str:
    """Return which of the candidates have an interval, in words; none of trees that are the root alone, of which nothing is uncertain."""
    known = [score.interval is not None for score in scores if score.generated.result.tree.size > 1]
    if not any(known):
        return ", with too few samples for 95 % intervals" if known else ""
    return ", with 95 % intervals" + ("" if all(known) else " where there are samples enough")


def basis(scores: Sequence[Score]) -> str:
    """Return what the figures of several candidates come from, and why the promised speed-ups may tell another order."""
    compared = max(score.compared_on for score in scores)
    if not compared:
        return "the candidates were not compared on prompts of their own: tokens per step and tokens/s are those that each one's growmap promises"
    left = sum(not score.compared_on for score in scores)
    slower = f"; {counted(left, 'candidate was', 'candidates were')} certainly slower after the pilot and got no more than that"
    return (
        f"the candidates were compared by expected tokens/s: the tokens per step that the chances of the ranks on {counted(compared, 'prompt')}, from which "
        "no tree was grown, give each tree, over the predicted time of a step. The predicted speed-up is what each growmap promises from the prompts "
        f"that its tree was grown from, so the two may order the candidates differently{slower if left else ''}"
    )


def doubt(scores: Sequence[Score]) -> str | None:
    """Return that the first two candidates cannot be told apart, or None if they can or there is one only."""
    if len(scores) < 2:
        return None
    first, second = scores[:2]
    if first.interval is None or second.interval is None or first.interval[0] > second.interval[1]:
        return None
    (low, high), (least, most) = first.interval, second.interval
    return (
        f"cannot tell which of the first two candidates is faster: {first.tokens_per_second:.1f} tokens/s with the 95 % interval from {low:.1f} to "
        f"{high:.1f}, and {second.tokens_per_second:.1f} from {least:.1f} to {most:.1f}; more prompts would tell, if there is a difference"
    )
