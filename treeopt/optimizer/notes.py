"""Sentences about a result for people: what its figures rest on, and where they are in doubt."""

from collections.abc import Iterator

from treeopt.optimizer.search import OptimizationResult
from treeopt.optimizer.uncertainty import Lead
from treeopt.profiles.acceptance import AcceptanceProfile
from treeopt.profiles.latency import OWN_ENGINE, LatencyProfile
from treeopt.profiles.latency_model import LatencyModel
from treeopt.profiles.samples import ENOUGH
from treeopt.profiles.stability import instability, is_busy, too_few
from treespec.decoding.step_rule import StepRule
from treespec.decoding.verifiers import traversal_note
from treespec.errors import counted

MOST_ERROR = 0.1
"""Largest median relative error of a fit that is not called noisy."""


def notes(result: OptimizationResult, model: LatencyModel, rule: StepRule) -> Iterator[str]:
    """Yield what is to be known about a result whose times are those of a `rule`."""
    said = traversal_note(rule.verifier, result.tree)
    if said is not None:
        yield f"the expected tokens per step are {said}"
    tokens, speedup = result.expected_tokens_per_step, result.predicted_speedup
    if speedup is not None and speedup > tokens:
        yield (
            f"the latency profile is noisy: a speed-up of {speedup:.2f} x from {tokens:.2f} tokens per step would need passes over a tree "
            "that are faster than passes over one token; stop what else runs here and profile the latency again"
        )
    smallest = model.target[0][0]
    if smallest > 1:
        yield (
            f"the speed-up compares with a pass of {smallest} nodes, because autoregressive steps were not timed; "
            "profile the latency with size 1 too"
        )
    told = result.rival is None or result.rival.certainty.lead is None or result.rival.certainty.lead.told
    if result.tree.size == 1 and result.table.max_size > 1 and told:
        yield f"speculation with this draft does not pay on this hardware: no tree is faster than autoregressive decoding ({rule.name})"
    elif result.tree.size == 1:
        why = ", because no larger size was considered" if result.table.max_size == 1 else ""
        yield f"the tree is the root alone{why}: nothing is drafted"


def other_context(times: LatencyProfile, context: int | None) -> Iterator[str]:
    """Yield that the times are not measured ones of the context that was asked for."""
    if context is None or context in times.contexts:
        return
    if times.is_extrapolated(context):
        before, last = times.contexts[-2:]
        yield (
            f"the times at context {context} are extrapolated from those at {before} and {last}: they are no measurement, and the intervals "
            "know nothing of it"
        )
    else:
        taken = min(measured for measured in times.contexts if measured > context)
        yield f"the latency was not profiled at context {context}: the times at {taken}, the next larger one, are taken"


def levels_unknown(result: OptimizationResult, acceptance: AcceptanceProfile) -> Iterator[str]:
    """Yield that the interval of the tokens knows how far the chances of the first level are off, but not those of a head's deeper levels."""
    rows = acceptance.by_depth or ()
    if len(rows) > 1 and not acceptance.deeper and result.tree.depth > 1 and result.certainty.tokens_per_step is not None:
        yield (
            f"the acceptance profile has chances at {counted(len(rows), 'level')}, but the sums of prompts of the first alone: the intervals take deeper "
            "levels to be as far off as the first; profile the acceptance again to have their own"
        )


def tellings(result: OptimizationResult, acceptance: AcceptanceProfile) -> Iterator[str]:
    """Yield what cannot be told: whether the tree is faster than plain decoding, or plain decoding than the best tree."""
    chosen, rival = result.certainty.lead, result.rival
    if chosen is not None and not chosen.told:
        yield f"cannot tell whether this tree is faster than plain decoding: {_beyond(chosen, acceptance.prompts, 'its predicted speed-up')}"
    if rival is not None and rival.certainty.lead is not None and not rival.certainty.lead.told:
        what = f"the speed-up of the best tree, of {rival.tree.size} nodes and depth {rival.tree.depth},"
        yield f"cannot tell whether plain decoding is faster than every tree: {_beyond(rival.certainty.lead, acceptance.prompts, what)}"


def telling_apart(first: OptimizationResult, second: OptimizationResult, prompts: int) -> str | None:
    """Return that the trees of the first two acceptance profiles cannot be told apart, with what would; None if they can, or nothing is known."""
    lead = first.certainty.ahead_of(second.certainty)
    if lead is None or lead.told:
        return None
    return (
        f"cannot tell which of the first two acceptance profiles gives the faster tree: {_beyond(lead, prompts, 'the lead of the first')}"
    )


def _beyond(lead: Lead, prompts: int, what: str) -> str:
    """Return a lead with its interval, and what would make it certain."""
    whole, needed = lead.whole, lead.prompts_needed(prompts)
    if needed is None:
        remedy = "the times alone leave it open; close other programs and profile the latency again, with more `repetitions`"
    elif prompts == 0:  # the profile does not say how many
        remedy = "an acceptance profile of more prompts would tell"
    else:
        remedy = f"an acceptance profile of some {needed:,} prompts would tell, in place of {prompts:,}, if the figures stay as they are"
    return f"{what} is {whole.value:.2f} x, and the 95 % interval from {whole.low:.2f} to {whole.high:.2f} holds 1; {remedy}"


def noise(times: LatencyProfile) -> str | None:
    """Return that the times are those of a restless machine, if so many points are unstable, or that too few samples of treeopt's own tell it."""
    if not is_busy(times.points):
        few = too_few(times.points) if times.engine == OWN_ENGINE else None
        if few is None:
            return None
        return (
            f"noise in the latency profile cannot be told from {counted(few, 'sample')} of a point, and its times have no intervals; "
            f"`treeopt profile latency` with `repetitions` {ENOUGH} or more tells it"
        )
    return (
        f"the latency profile was taken while the machine did other work, or changed its speed: {instability(times.points)}; it cannot tell what an idle "
        "machine gives, so close other programs and profile the latency again"
    )


def doubts(model: LatencyModel, rule: StepRule) -> Iterator[str]:
    """Yield why the times of a rule may be wrong."""
    fitted = model.fitted
    if fitted is None:
        return
    if fitted.error > MOST_ERROR:
        yield (
            f"the latency profile is noisy for ({rule.name}): what is fitted to its steps misses their times by {100 * fitted.error:.0f} % "
            "in the median; stop what else runs here and profile the latency again"
        )
    if fitted.short:
        yield (
            f"the latency profile holds too few steps of ({rule.name}): {fitted.steps} different ones, to which {fitted.numbers} numbers are to be "
            "fitted; profile the latency with more tree sizes"
        )
