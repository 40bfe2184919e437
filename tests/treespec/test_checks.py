"""Settings of the wrong kind are errors of one class that name the parameter, before any work is done."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from treeopt.profiling.settings import AcceptanceSettings, LatencySettings, PotentialSettings
from treespec.decoding.drafting import Drafting
from treespec.decoding.plans import DynamicBudget
from treespec.decoding.rules import Sampling
from treespec.decoding.step import StepSpec
from treespec.errors import SettingsError, TreeError
from treespec.evaluation.settings import EvaluationSettings
from treespec.text.settings import stop_strings
from treespec.trees.tree import SpeculationTree


class Nameless:
    """A plan of no drafter, and one that cannot be hashed."""

    size, depth = 2, 1
    drafter = "nobody"


class Unhashable(Nameless):
    drafter = "tree"
    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sampling("0.8"), "`temperature` is '0.8', but it must be a number"),
        (lambda: Sampling(None), "`temperature` is None"),
        (lambda: Drafting(["topk"]), "`drafting` is ..topk.., but it must be one of topk, swor, swr"),
        (lambda: Drafting("swor", temperature="a"), "`draft_temperature` is 'a', but it must be a number"),
        (lambda: Drafting("swor", verifier="nope"), "`verifier` is 'nope', but it must be one of"),
        (lambda: DynamicBudget("3", 1, 3), "`size` is '3', but it must be a whole number"),
        (lambda: DynamicBudget(3, 1, 2.5), "`width` is 2.5, but it must be a whole number"),
        (lambda: EvaluationSettings(gen_len=1.5), "`gen_len` is 1.5, but it must be a whole number"),
        (lambda: EvaluationSettings(seed=-1), "`seed` is -1, but it must be 0 or more"),
        (lambda: EvaluationSettings(sampling=0.8), r"`sampling` is 0.8, but it must be a Sampling; write sampling=Sampling\(...\)"),
        (lambda: EvaluationSettings(drafting="swor"), "`drafting` is 'swor', but it must be a Drafting"),
        (lambda: AcceptanceSettings(max_branch=2.5), "`max_branch` is 2.5"),
        (lambda: AcceptanceSettings(gen_len=1), "`gen_len` is 1, but it must be 2 or more"),
        (lambda: PotentialSettings(seed="q"), "`seed` is 'q'"),
        (lambda: LatencySettings(contexts=None), "`contexts` is None, but it must be a tuple"),
        (lambda: LatencySettings(sizes=[1, 2]), r"`sizes` is \[1, 2\], but it must be a tuple"),
        (lambda: LatencySettings(sizes=(1.5,)), "`sizes` is 1.5, but it needs whole numbers from 1 to"),
        (lambda: LatencySettings(repetitions=0), "`repetitions` is 0, but it must be 1 or more"),
        (lambda: LatencySettings(repetitions=10**12), "`repetitions` is 1000000000000, but it must be 10,000 or less"),
        (lambda: AcceptanceSettings(draws=10_001), "`draws` is 10001, but it must be 10,000 or less"),
        (lambda: StepSpec(Nameless()), "is no plan whose drafter is one of tree, dynamic"),
        (lambda: StepSpec("tree"), "`plan` is a str, but it must be a growmap, its file"),
        (lambda: StepSpec(DynamicBudget), "`plan` is the class DynamicBudget, but it must be"),
        (lambda: stop_strings(5), "`stop` is 5, but it must be a string or several"),
        (
            lambda: EvaluationSettings(gen_len=np.int64(5)),
            r"`gen_len` is .*5.*, but it must be a whole number of Python; pass int\(gen_len\)",
        ),
        (lambda: StepSpec(Unhashable()), "a plan must be hashable, but Unhashable is not; make it a frozen dataclass"),
    ],
)
def test_wrong_kinds_are_settings_errors(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        make()


@pytest.mark.parametrize("make", [lambda: SpeculationTree.k_ary(10, 12), lambda: SpeculationTree.k_chains(10**8, 10**8)])
def test_trees_that_are_far_too_large_are_refused_before_they_are_made(make: Callable[[], Any]) -> None:
    with pytest.raises(TreeError, match="above the limit of 65536 nodes"):
        make()
