"""Reports of replays: what may be given, what is said of it, and what is predicted beside it."""

from pathlib import Path
from typing import Any

import pytest

import treeopt
from tests.reference.traces import trace_of
from treeopt.optimizer.replay_report import replay_trees
from treeopt.profiles.acceptance import AcceptanceProfile
from treeopt.profiles.trace import Trace
from treespec.decoding.plans import DynamicBudget
from treespec.errors import ProfileError, SettingsError
from treespec.files.provenance import Provenance
from treespec.trees.growmap import GrowMap
from treespec.trees.tree import SpeculationTree

MODELS = {"target": "large", "draft": "small"}
TREE = SpeculationTree.chain(2)


@pytest.fixture
def trace() -> Trace:
    texts = [[0, 0, 1, 0, 1, 0], [0, 1, 1, 0, 0, 0]]
    return trace_of(lambda context: [2.0, 1.0, 0.0], 3, [(1,), (2,)], texts, 6, provenance={"models": MODELS})


def test_trees_are_given_in_every_form(trace: Trace, tmp_path: Path) -> None:
    GrowMap(TREE).write(tmp_path / "tree.pt")
    trace.write(tmp_path / "trace.json")
    forms = [TREE, GrowMap(TREE), tmp_path / "tree.pt", str(tmp_path / "tree.pt")]
    found = treeopt.replay(forms, tmp_path / "trace.json")
    assert [one.name for one in found.trees] == ["tree (3, 2)", "tree (3, 2)", *[str(tmp_path / "tree.pt")] * 2]
    figures = [{key: value for key, value in one.to_json().items() if key != "name"} for one in found.trees]
    assert figures == [figures[0]] * 4
    assert (figures[0]["steps"], figures[0]["tokens"], figures[0]["tokens_per_step"]) == (6, 12, 10 / 6)
    for form in forms:
        (alone,) = treeopt.replay(form, trace).trees
        assert alone.replay.steps.tolist() == [3, 3]


def test_what_is_promised_for_the_pair_and_the_sampling_stands_beside(trace: Trace) -> None:
    def grown(models: dict[str, str], **metadata: Any) -> GrowMap:
        known = {"expected_tokens_per_step": 1.7, "drafting": "topk", "temperature": 0.0, "top_p": 1.0}
        return GrowMap(TREE, known | metadata, Provenance(models=models))

    trees = [
        grown(MODELS),
        grown({"target": "large@abc", "draft": "elsewhere/small"}),
        grown({"target": "other"}),
        grown(MODELS, temperature=0.5),
    ]
    assert [one.predicted for one in replay_trees([*trees, TREE], trace).trees] == [1.7, 1.7, None, None, None]
    profile = AcceptanceProfile("topk", 0.0, 1.0, (0.5, 0.25), 0.25, (), 10, 2, provenance={"models": MODELS})
    assert [one.predicted for one in replay_trees([trees[2], SpeculationTree.k_ary(3, 1)], trace, profile).trees] == [1.75, None]
    assert "predicted" in str(replay_trees(trees[0], trace))
    assert "predicted" not in str(replay_trees(TREE, trace))


@pytest.mark.parametrize(
    ("trees", "words"),
    [
        ([], "`trees` names no tree; pass one or more"),
        (
            [DynamicBudget(4, 2, 2)],
            r"`trees` has DynamicBudget\(size=4, depth=2, width=2\), but steps can be replayed for trees that stay the same",
        ),
        ([None], "`trees` has None, but"),
        (3, "`trees` has 3, but"),
    ],
)
def test_what_is_no_tree_is_refused(trace: Trace, trees: Any, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        replay_trees(trees, trace)


def test_one_text_has_no_interval_and_no_text_no_step() -> None:
    draft = lambda context: [1.0, 0.0]  # noqa: E731
    found = replay_trees(TREE, trace_of(draft, 2, [(1,)], [[0, 0, 1]], 3))
    assert found.trees[0].to_json()["interval_95"] is None
    assert "95 %" not in str(found)
    assert repr(found) == "ReplayReport(trees=1, prompts=1)"
    with pytest.raises(ProfileError, match="the trace has no step to replay"):
        replay_trees(TREE, trace_of(draft, 2, [(1,), (1,)], [[0], [0]], 3, eos=frozenset({0})))
