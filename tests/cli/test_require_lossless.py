"""`evaluate --require-lossless`: only a real mismatch makes the exit code 1, and then the report is there all the same."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from treespec.evaluation.report import read_report
from treespec.models.tree_model import TreeModel
from treespec.trees.growmap import GrowMap
from treespec.trees.tree import SpeculationTree

Pair = tuple[Path, Path]
TREE = SpeculationTree.k_ary(2, 2)


@pytest.fixture
def evaluate(run: Any, pair: Pair, rows: Path, tmp_path: Path) -> Any:
    """Evaluate a tree on two prompts, with more options."""
    GrowMap(TREE).write(tmp_path / "t.pt")
    models = ["--target", pair[0], "--draft", pair[1], "--device", "cpu"]
    texts = ["--dataset", rows, "--num-prompts", 2, "--prompt-len", 8, "--gen-len", 12, "-o", "r.json"]
    return lambda *options: run("evaluate", *models, *texts, "--growmap", "t.pt", *options)


def spoil(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Change the target's logits in passes over the whole tree."""
    honest = TreeModel.forward

    def sloppy(self: TreeModel, tokens: Tensor, place: Any, keep: Tensor | None = None) -> Tensor:
        logits = honest(self, tokens, place, keep)
        return change(logits) if tokens.shape[0] == TREE.size else logits

    monkeypatch.setattr(TreeModel, "forward", sloppy)


def test_equal_outputs_pass(evaluate: Any) -> None:
    outcome = evaluate("--require-lossless")
    assert outcome.code == 0, outcome.err
    assert "require-lossless" not in outcome.err


def test_a_real_mismatch_is_an_exit_code_and_a_line_after_the_whole_result(
    evaluate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, torch.neg)
    assert evaluate().code == 0, "without the option, a mismatch is in the report alone"
    outcome = evaluate("--require-lossless", "--format", "json")
    assert outcome.code == 1
    assert outcome.json["lossless"] == "mismatch"
    assert outcome.err.splitlines()[-1] == (
        "error: 2 of 2 outputs differ from autoregressive decoding by more than rounding; r.json says where"
    )
    assert read_report(tmp_path / "r.json").mismatches == 2
    assert not list(tmp_path.glob("*.journal"))


def test_ties_are_no_mismatch_and_are_said_with_their_gap(evaluate: Any, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """All logits are equal but for rounding, which is another one in passes over trees."""
    whole = TreeModel.__init__

    def equal(self: TreeModel, *arguments: Any, **options: Any) -> None:
        whole(self, *arguments, **options)
        with torch.no_grad():
            self.module.get_output_embeddings().weight.fill_(0.37)

    monkeypatch.setattr(TreeModel, "__init__", equal)
    spoil(monkeypatch, lambda logits: torch.nextafter(logits, logits + torch.arange(logits.shape[-1]) % 7))
    outcome = evaluate("--require-lossless")
    assert outcome.code == 0, outcome.err
    assert "lossless up to rounding: 2 of 2 outputs part from autoregressive decoding at a tie" in outcome.out
    assert re.search(r"are closer than rounding \(gap \S+e-0\d at most\)", outcome.out)


def test_outputs_that_are_not_compared_are_said_to_be_none(evaluate: Any, run: Any, pair: Pair, rows: Path) -> None:
    outcome = evaluate("--require-lossless", "--temperature", 0.8)
    assert outcome.code == 0
    assert "outputs are random at this temperature and were not compared, so --require-lossless has checked nothing" in outcome.err
    texts = ["--dataset", rows, "--num-prompts", 1, "--prompt-len", 8, "--gen-len", 4]
    outcome = run("evaluate", "--target", pair[0], "--device", "cpu", *texts, "--mode", "baseline", "--require-lossless")
    assert outcome.code == 0
    assert "--mode baseline has no other output to compare, so --require-lossless changes nothing" in outcome.err
    assert "has checked nothing" not in outcome.err
