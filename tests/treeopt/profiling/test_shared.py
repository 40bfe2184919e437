"""Several processes measure what one measures, to the last bit, however many there are."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.reference.pairs import prompt_set, tiny_pair
from tests.reference.processes import together
from treeopt.profiles.budget_grid import BudgetGrid
from treeopt.profiling.acceptance import profile_acceptance, trace_acceptance
from treeopt.profiling.potential import measure_potential
from treeopt.profiling.settings import AcceptanceSettings, PotentialSettings
from treespec.data.prompts import PromptSet
from treespec.decoding.drafting import drafting_of
from treespec.decoding.rules import Sampling
from treespec.evaluation.runner import evaluate
from treespec.evaluation.settings import EvaluationSettings
from treespec.files.processes import Processes
from treespec.models.pairs import Pair
from treespec.trees.tree import SpeculationTree

EOS = frozenset({3, 11})
MAKING = threading.Lock()
GREEDY = AcceptanceSettings(gen_len=6, max_branch=4, batch_size=2)
SAMPLED = replace(GREEDY, sampling=Sampling(0.9, 0.95), drafting=drafting_of("swor"), draws=2)


def pair_of_its_own() -> Pair:
    """A pair whose weights are the same each time: torch's seed is one for all threads."""
    with MAKING:
        return tiny_pair(eos=EOS)


def prompts() -> PromptSet:
    """Seven prompts of two lengths, so that the last batch of each length has one."""
    found = prompt_set(7)
    return replace(found, prompts=tuple(replace(one, ids=one.ids[: 5 + one.row % 2]) for one in found))


def profile(settings: AcceptanceSettings, journal: Path, processes: Processes) -> Mapping[str, Any]:
    return profile_acceptance(pair_of_its_own(), prompts(), settings, journal=journal, processes=processes).to_json()


def trace(journal: Path, processes: Processes) -> Mapping[str, Any]:
    grid = BudgetGrid((1, 2), 3, 6)
    found = trace_acceptance(pair_of_its_own(), prompts(), GREEDY, dynamic=grid, journal=journal, processes=processes)
    return {"profile": found[0].to_json(), "trace": found[1].to_json()}


def potential(journal: Path, processes: Processes) -> Mapping[str, Any]:
    pair = pair_of_its_own()
    settings = PotentialSettings("on-policy", gen_len=6, batch_size=2)
    return measure_potential(pair, [pair.draft, pair.target], prompts(), settings, journal=journal, processes=processes).to_json()


def evaluation(journal: Path, processes: Processes) -> Mapping[str, Any]:
    settings = EvaluationSettings(gen_len=6, sampling=Sampling(0.9), drafting=drafting_of("swor"), save_tokens=True)
    chains = [SpeculationTree.chain(1)]
    tree = SpeculationTree((-1, 0, 0, 1))
    return evaluate(pair_of_its_own(), tree, prompts(), settings, against=chains, journal=journal, processes=processes).to_json()


WORK: dict[str, Callable[[Path, Processes], Mapping[str, Any]]] = {
    "greedy": lambda journal, processes: profile(GREEDY, journal, processes),
    "sampled": lambda journal, processes: profile(SAMPLED, journal, processes),
    "trace": trace,
    "potential": potential,
    "evaluation": evaluation,
}
TIMES = ("seconds", "per_second", "speedup", "intervals_95", "beyond_chain", "utc", "load_average", "processes", "notes")


def untimed(value: Any) -> Any:
    """Without what is timed, and what says when and by how many."""
    if isinstance(value, Mapping):
        return {key: untimed(one) for key, one in value.items() if not any(word in key for word in TIMES)}
    return [untimed(one) for one in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("work", WORK)
def test_the_result_is_that_of_one_process(work: str, tmp_path: Path) -> None:
    one = WORK[work](tmp_path / "one", Processes())
    for size in (2, 3):
        for found in together(size, lambda processes: WORK[work](tmp_path / f"{size}", processes)):  # noqa: B023
            assert untimed(found) == untimed(one)
            record = found.get("profile", found)["provenance"]
            assert record["processes"] == size
    kept = [path for path in tmp_path.iterdir() if ".rank" in path.name]
    assert kept, "each has a journal of its own"


def test_a_report_says_that_several_decoded(tmp_path: Path) -> None:
    assert not any("processes shared" in note for note in evaluation(tmp_path / "one", Processes())["notes"])
    found = together(2, lambda processes: evaluation(tmp_path / "two", processes))[0]
    assert "2 processes shared the prompts, each with models of its own: the speeds are those of one process" in found["notes"]
