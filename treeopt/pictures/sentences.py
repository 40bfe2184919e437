"""The sentences beside the tables and pictures of a page: where figures come from, which one is promised, and how far their intervals go."""

import re
from collections.abc import Sequence

from treeopt.pictures.evaluations import Pair
from treeopt.profiles.acceptance import AcceptanceProfile
from treeopt.profiles.latency import LatencyProfile
from treeopt.profiles.samples import ENOUGH
from treeopt.profiles.stability import too_few
from treespec.errors import counted, listed
from treespec.evaluation.report import EvaluationReport
from treespec.tables import Figure, Table
from treespec.trees.growmap import GrowMap

_NAME = re.compile(r"`([a-z][a-z_.]*)`(?: (\d+))?")
"""The name of a parameter in backticks, as messages of the library have them, and its value where that is a count."""
_WORDS = {
    "gen_len": ("the limit of {} tokens", "the limit of tokens"),
    "repetitions": ("{} repetitions", "repetitions"),
    "top_p": ("top-p {}", "top-p"),
}
"""Words for parameters whose names do not say them, with a value and without."""
_ENDING = ", 95 % intervals over prompts"
"""The end of the title of the speeds."""


def in_words(text: str) -> str:
    """Return a message with words in place of the names of parameters, which mean nothing to those who look at a page.

    >>> in_words("4 texts ended at `gen_len` 32; raise `max_depth`, or run `treeopt grow` with `repetitions` 24 or more")
    '4 texts ended at the limit of 32 tokens; raise max depth, or run `treeopt grow` with 24 repetitions or more'
    """

    def shown(found: re.Match[str]) -> str:
        name: str = found[1]
        value: str | None = found[2]
        plain = name.replace("_", " ")
        valued, alone = _WORDS.get(name, (f"{plain} {{}}", plain))
        return alone if value is None else valued.format(value)

    return _NAME.sub(shown, text)


def grounds(grown: GrowMap | None) -> str | None:
    """Return what the promise of a growmap comes from; None if there is none: without a growmap, or of the root alone."""
    if grown is None or grown.promise.tokens_per_step is None or grown.tree.size == 1:
        return None
    if is_replayed(grown):
        return "the tokens per step that trees grown in the same way gave when replayed on prompts held out"
    return "the chances of the ranks in the acceptance profile"


def is_replayed(grown: GrowMap) -> bool:
    """Return whether a growmap promises what was replayed on prompts held out, and not what chances expect."""
    return bool(grown.metadata.get("acceptance_model"))


def promised(report: EvaluationReport, grown: GrowMap | None) -> list[str]:
    """Return the sentence on the speed-up that was promised of a run, if one was."""
    found, source = report.predicted.speedup, grounds(grown)
    return [] if found is None else [f"A speed-up of {found:.2f} x was promised" + (f", from {source}." if source else ".")]


def speeds(table: Table) -> str:
    """Return the sentence below the table of speeds: its title, without the intervals where there are none."""
    return table.title if has_interval(table) else f"{table.title.removesuffix(_ENDING)}; one prompt is too few for 95 % intervals"


def prediction(
    pairs: Sequence[Pair], grown: GrowMap | None, acceptance: AcceptanceProfile | None, latency: LatencyProfile | None
) -> list[str]:
    """Return the sentences below predicted figures beside measured ones."""
    source = grounds(grown)
    said = ["Predicted figures come from the profiles, measured ones from decoding other prompts."]
    if source is not None:
        said.append(f"The predicted tokens per step and speed-up are those that the growmap promises: they come from {source}.")
    measured = any(pair.measured_interval for pair in pairs)
    if measured or any(pair.predicted_interval for pair in pairs):
        said.append("Brackets hold 95 % intervals" + (", those of measured figures over the prompts." if measured else "."))
    if not measured:
        said.append("One prompt is too few for 95 % intervals of what was measured.")
    why: dict[str, list[str]] = {}
    for pair in pairs:
        if pair.predicted_interval is None and (grown is None or grown.tree.size > 1):  # of the root alone nothing is uncertain
            why.setdefault(_reason(pair, acceptance, latency), []).append(pair.name.removesuffix(", x"))
    return [*said, *(f"There is no 95 % interval of the predicted {listed(names)}: {reason}." for reason, names in why.items())]


def _reason(pair: Pair, acceptance: AcceptanceProfile | None, latency: LatencyProfile | None) -> str:
    """Return why a figure that these profiles predict has no interval."""
    few = None if latency is None or not pair.timed else too_few(latency.points)
    if few is not None:
        return f"the latency profile has {counted(few, 'sample')} of a point, which {_is(few)} too few, for it takes {ENOUGH}"
    if acceptance is not None and acceptance.prompts == 1:
        return "the acceptance profile has 1 prompt, which is too few"
    return "the growmap has none"


def acceptance(profile: AcceptanceProfile | None, report: EvaluationReport | None) -> str:
    """Return the sentences below the chances by rank."""
    said = "How often the target accepts the draft's token of each rank."
    if profile is not None and profile.standard_error:
        said += " Bars are 95 % intervals over prompts."
    elif profile is not None and profile.prompts == 1:
        said += " One prompt is too few for 95 % intervals."
    if report is not None and report.observed:
        known = all(row.offered is not None for row in report.observed)
        said += f" Observed shares are those of the nodes that decoding visited{'' if known else ', whether or not they had a child of that rank'};"
        said += " fewer than ten are left out."
    return said


def latency(profile: LatencyProfile, *, starred: bool) -> str:
    """Return the sentences below the staircase, on which the chosen tree may be `starred`."""
    drawn = (*profile.target, *profile.draft)
    bare = [len(sample.seconds) for sample in drawn if sample.interval is None]
    if not bare:
        said = "Median times with 95 % intervals."
    elif len(bare) < len(drawn):
        said = f"Median times, with 95 % intervals where a point has {ENOUGH} samples or more: fewer are too few."
    else:
        most = max(bare)
        said = f"Median times without 95 % intervals: {counted(most, 'sample')} of a point {_is(most)} too few, for it takes {ENOUGH}."
    return f"{said} A size between two measured ones takes the time of the larger one." + " The star is the tree that was chosen." * starred


def speedups(grown: GrowMap | None) -> str:
    """Return the sentences below the speed-up over size and depth, which is not always the one that is promised."""
    said = (
        "Each cell is the best tree of that size within that depth, built by the solver from the chances of the ranks and timed by the latency "
        "profile: times as fast as autoregressive decoding. The framed cell is the tree that was chosen; hatched cells hold no tree, or none "
        "whose time is known."
    )
    if grown is None or grown.promise.speedup is None:
        return said
    figure, source = f"{grown.promise.speedup:.2f} x", grounds(grown)
    if source is None:
        return said
    if is_replayed(grown):
        return (
            f"{said} These figures compare trees with one another and are no promise: chances take all positions of a text alike, while steps begin "
            f"where drafts failed. The growmap promises {figure}, from {source}."
        )
    return f"{said} What the growmap promises, {figure}, comes from the same chances."


def categories(table: Table) -> str:
    """Return the sentence below the table of categories."""
    if not has_interval(table):
        return "One prompt of a category is too few for a 95 % interval."
    return "Brackets hold 95 % intervals over the prompts of the category; one prompt alone is too few for one."


def has_interval(table: Table) -> bool:
    """Return whether some cell of a table holds an interval."""
    return any(isinstance(cell, Figure) and cell.interval is not None for row in table.rows for cell in row)


def _is(count: int) -> str:
    return "is" if count == 1 else "are"
