"""Sentences about a result for people: what its figures rest on, and where they are in doubt."""

from collections.abc import Iterator

from treeopt.optimizer.search import OptimizationResult
from treeopt.profiles.latency_model import LatencyModel
from treespec.decoding.step_rule import StepRule
from treespec.decoding.verifiers import traversal_note

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
    if result.tree.size == 1 and result.table.max_size > 1:
        yield f"speculation with this draft does not pay on this hardware: no tree is faster than autoregressive decoding ({rule.name})"
    elif result.tree.size == 1:
        yield "the tree is the root alone, as it was asked for: nothing is drafted"


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
