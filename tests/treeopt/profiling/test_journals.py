"""What stands in a journal is believed only where it has the shape of the work that it is of."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.reference.journals import line_of
from tests.reference.pairs import prompt_set, tiny_pair
from treeopt.profiling.acceptance import profile_acceptance, trace_acceptance
from treeopt.profiling.latency import profile_latency
from treeopt.profiling.potential import measure_potential
from treeopt.profiling.settings import AcceptanceSettings, LatencySettings, PotentialSettings
from treespec.evaluation.runner import evaluate
from treespec.evaluation.settings import EvaluationSettings
from treespec.trees.tree import SpeculationTree

Work = Callable[[Path, Callable[[str, int, int], None]], Any]


def acceptance(journal: Path, progress: Any) -> Any:
    settings = AcceptanceSettings(gen_len=4, max_branch=3, batch_size=2)
    return profile_acceptance(tiny_pair(), prompt_set(4), settings, journal=journal, progress=progress)


def trace(journal: Path, progress: Any) -> Any:
    settings = AcceptanceSettings(gen_len=4, max_branch=3, batch_size=2)
    return trace_acceptance(tiny_pair(), prompt_set(4), settings, journal=journal, progress=progress)


def latency(journal: Path, progress: Any) -> Any:
    return profile_latency(tiny_pair(), LatencySettings((1, 2), (1,), (8,), repetitions=8), journal=journal, progress=progress)


def potential(journal: Path, progress: Any) -> Any:
    pair = tiny_pair()
    prompts, settings = prompt_set(4, 6, continuation=4), PotentialSettings(gen_len=4, batch_size=2)
    return measure_potential(pair, [pair.draft], prompts, settings, journal=journal, progress=progress)


def evaluation(journal: Path, progress: Any) -> Any:
    settings = EvaluationSettings(gen_len=4)
    return evaluate(tiny_pair(), SpeculationTree.chain(2), prompt_set(2), settings, journal=journal, progress=progress)


def altered(value: Any, depth: int, change: Callable[[Any], Any]) -> Any:
    """With the first item at a depth changed."""
    if depth == 0:
        return change(value)
    if isinstance(value, dict):
        first = next(iter(value))
        return {**value, first: altered(value[first], depth - 1, change)}
    return [altered(value[0], depth - 1, change), *value[1:]]


CHANGES: dict[str, Callable[[Any], Any]] = {
    "null": lambda value: None,
    "text": lambda value: "odd",
    "nothing": lambda value: [],
    "one more": lambda value: [*value, value[0]] if isinstance(value, list) else [value, value],
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("work", "depth"), [(acceptance, 3), (trace, 3), (latency, 3), (potential, 2), (evaluation, 0)])
def test_a_value_of_another_shape_is_measured_again(work: Work, depth: int, change: str, tmp_path: Path) -> None:
    whole = tmp_path / "journal"
    work(whole, lambda what, done, total: None)
    header, first, *rest = whole.read_text().splitlines()
    entry = json.loads(first)
    for level in range(depth + 1):
        value = altered(entry["value"], level, CHANGES[change])
        journal = tmp_path / f"journal-{level}"
        journal.write_text("\n".join([header, line_of({**entry, "value": value}), *rest, ""]))
        work(journal, lambda what, done, total: None)
        again = [json.loads(line)["value"] for line in journal.read_text().splitlines()[1:]]
        assert len(again) == 2 + len(rest), "it is passed over, and what was measured again stands at the end"
        assert again[-1] != value


@pytest.mark.parametrize("change", [*CHANGES.values(), lambda value: -1, lambda value: "AAAA"])
@pytest.mark.parametrize("key", ["tokens", "eos", "rank", "log_probability", "top_log_probability"])
def test_a_traced_row_of_another_shape_is_measured_again(key: str, change: Callable[[Any], Any], tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    _, whole = trace(journal, lambda what, done, total: None)
    header, first, *rest = journal.read_text().splitlines()
    entry = json.loads(first)
    said = entry["value"][0]["traced"]
    said[key] = change(said[key])
    journal.write_text("\n".join([header, line_of(entry), *rest, ""]))
    _, again = trace(journal, lambda what, done, total: None)
    assert len(journal.read_text().splitlines()) == 4, "it is passed over, and what was measured again stands at the end"
    assert again.to_json()["columns"] == whole.to_json()["columns"]
