"""`evaluate --against`: chains beside a growmap, from the options to the table and the JSON."""

from pathlib import Path
from typing import Any

import pytest

from treespec.evaluation.report import read_report
from treespec.trees.growmap import GrowMap
from treespec.trees.tree import SpeculationTree

Pair = tuple[Path, Path]


@pytest.fixture
def evaluate(run: Any, pair: Pair, rows: Path, tmp_path: Path) -> Any:
    """Evaluate on two prompts, with more options."""
    best = {"depth": 2, "expected_tokens_per_step": 1.5, "predicted_seconds_per_step": 0.01}
    GrowMap(SpeculationTree.k_ary(2, 2), {"best_chain": best}).write(tmp_path / "t.pt")
    GrowMap(SpeculationTree.k_ary(2, 2)).write(tmp_path / "unknown.pt")
    models = ["--target", pair[0], "--draft", pair[1], "--device", "cpu"]
    texts = ["--dataset", rows, "--num-prompts", 2, "--prompt-len", 8, "--gen-len", 12, "-o", "r.json"]
    return lambda *options: run("evaluate", *models, *texts, *options)


def test_the_table_has_the_chain_and_a_sentence_what_the_tree_is_worth(evaluate: Any, tmp_path: Path) -> None:
    outcome = evaluate("--growmap", "t.pt", "--against", "chain")
    assert outcome.code == 0, outcome.err
    assert "chain of depth 2" in outcome.out
    assert "the tokens per second of the chain of depth 2 (95 % interval" in outcome.out.replace("\n", " ")
    report = read_report(tmp_path / "r.json")
    assert report.beyond_chain is not None
    assert report.beyond_chain.depth == 2
    assert "chain of depth 2" in str(report)


def test_depths_go_with_any_tree(evaluate: Any) -> None:
    for tree in (("--growmap", "unknown.pt"), ("--dynamic", "--size", 6, "--depth", 2)):
        outcome = evaluate(*tree, "--against", "chain:1,3", "--format", "json")
        assert outcome.code == 0, outcome.err
        assert [chain["depth"] for chain in outcome.json["chains"]] == [1, 3]
        assert outcome.json["beyond_chain"]["depth"] in (1, 3)
        assert outcome.json["beyond_chain"]["ratio"] > 0
        assert any("chain" in note for note in outcome.json["notes"])
    assert evaluate("--growmap", "t.pt", "--format", "json").json["beyond_chain"] is None


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--growmap", "unknown.pt", "--against", "chain"), 1, "grow it again, or pass --against chain:DEPTH, as in chain:4"),
        (("--dynamic", "--size", "6", "--depth", "2", "--against", "chain"), 2, "there is none; pass --against chain:DEPTH"),
        (("--growmap", "t.pt", "--against", "tree"), 2, "--against is 'tree', but it must be chain"),
        (("--growmap", "t.pt", "--against", "chain:0"), 2, "--against asks for a chain of depth 0"),
        (("--growmap", "t.pt", "--against", "chain:900", "--max-length", "64"), 1, "the tree has 901 nodes (depth 900)"),
        (("--mode", "baseline", "--against", "chain"), 2, "--mode baseline runs no tree; drop one of them"),
    ],
)
def test_bad_usage_is_refused_in_one_line_before_any_weight_is_read(evaluate: Any, options: tuple[str, ...], code: int, said: str) -> None:
    outcome = evaluate(*options)
    assert outcome.code == code
    assert said in " ".join(outcome.err.split())
