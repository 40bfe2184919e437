import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from treeopt.optimizer.search import OptimizationResult
from treeopt.optimizer.sequoia_config import SequoiaConfig, optimize_config, read_sequoia_config
from treeopt.profiles.acceptance import read_acceptance
from treespec.errors import OptimizerError, ProfileError

RANKS = [0.634183, 0.107946, 0.056972, 0.022489, 0.01949]
DEMO: dict[str, Any] = {
    "acceptance_rate_vector": "vector.pt",
    "max_depth": 10,
    "max_budget": 128,
    "draft_time": 0.3,
    "valid_budget": [1, 2, 4, 8, 16, 32],
    "target_time": [10, 10, 10, 12, 14, 18],
    "dst": "tree.pt",
}


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Path]:
    """Writes a configuration with its vector beside it; keys given as None are left out."""

    def write(**changes: Any) -> Path:
        torch.save(torch.tensor([0.0, *RANKS, 1 - sum(RANKS)]), tmp_path / "vector.pt")
        data = {key: value for key, value in (DEMO | changes).items() if value is not None}
        (tmp_path / "config.json").write_text(json.dumps(data))
        return tmp_path / "config.json"

    return write


def chosen(path: Path) -> OptimizationResult:
    """What Sequoia would choose for a configuration and its acceptance vector."""
    read = read_sequoia_config(path)
    return optimize_config(read, read_acceptance(read.acceptance_path))


def test_fields_are_read_as_sequoia_means_them(config: Callable[..., Path], tmp_path: Path) -> None:
    read = read_sequoia_config(config())
    assert read == SequoiaConfig(
        acceptance_path=tmp_path / "vector.pt",
        max_depth=10,
        draft_time=0.3,
        valid_budget=(1, 2, 4, 8, 16, 32),
        target_time=(10.0, 10.0, 10.0, 12.0, 14.0, 18.0),
        max_budget=128,
        max_branch=None,
    )


def test_draft_time_is_charged_once_per_level_and_only_valid_budgets_count(
    config: Callable[..., Path], all_trees: Callable, tokens_of: Callable
) -> None:
    budgets, times = [1, 3, 6], [10.0, 10.5, 11.0]
    result = chosen(config(max_depth=4, valid_budget=budgets, target_time=times))
    scores = {
        (size, levels): (levels * 0.3 + time) / max(tokens_of(tree, [RANKS]) for tree in all_trees(size, levels - 1, 5))
        for size, time in zip(budgets, times, strict=True)
        for levels in range(1, 5)
        if all_trees(size, levels - 1, 5)
    }
    assert result.predicted_seconds_per_step is not None
    assert result.predicted_seconds_per_step / result.expected_tokens_per_step == pytest.approx(min(scores.values()))
    size, levels = min(scores, key=scores.__getitem__)
    assert result.tree.size == size
    assert result.tree.depth <= levels - 1
    assert result.predicted_speedup == pytest.approx(times[0] / min(scores.values()))
    assert result.certified_gap == 0.0


def test_levels_are_edges_plus_one(config: Callable[..., Path]) -> None:
    assert chosen(config(max_depth=2, valid_budget=[3], target_time=[1])).tree.depth == 1
    only_root = chosen(config(max_depth=1))
    assert only_root.tree.size == 1
    assert only_root.predicted_seconds_per_step == pytest.approx(10.3)  # even the root's level is charged


def test_max_branch_limits_the_children(config: Callable[..., Path]) -> None:
    result = chosen(config(max_branch=2, valid_budget=[15], target_time=[10]))
    assert result.tree.max_branch <= 2


def test_more_levels_than_nodes_are_harmless(config: Callable[..., Path]) -> None:
    assert chosen(config(max_depth=60000)).tree == chosen(config(max_depth=32)).tree


def test_the_vector_may_lie_in_the_current_folder(config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = config()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "vector.pt").rename(elsewhere / "vector.pt")
    monkeypatch.chdir(elsewhere)
    assert read_sequoia_config(path).acceptance_path == Path("vector.pt")
    (elsewhere / "vector.pt").unlink()
    with pytest.raises(ProfileError, match="no file"):
        chosen(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_depth": None}, "has no 'max_depth'"),
        ({"acceptance_rate_vector": None}, "has no 'acceptance_rate_vector'"),
        ({"max_depth": "ten"}, "max_depth 'ten', but a whole number"),
        ({"max_depth": True}, "max_depth True, but a whole number"),
        ({"draft_time": [1]}, "but a number"),
        ({"draft_time": 10**400}, r"draft_time 1000.*, but a number up to 1e\+12 is needed"),
        ({"target_time": [10, 10, 10, 12, 14, 1e308]}, r"target_time 1e\+308, but a number up to 1e\+12 is needed"),
        ({"max_depth": 0}, "max_depth is 0"),
        ({"max_depth": 10**9}, "max_depth is 1000000000"),
        ({"valid_budget": [1, 2]}, "valid_budget has 2 entries and target_time 6"),
        ({"valid_budget": [], "target_time": []}, "valid_budget has 0 entries"),
        ({"valid_budget": [0, 2, 4, 8, 16, 32]}, "valid_budget is 0, 2"),
        ({"max_budget": 16}, "valid_budget goes up to 32, but max_budget is 16"),
        ({"draft_time": -1}, "draft_time must be 0 or more"),
        ({"target_time": [10, 10, 10, 12, 14, 0]}, "every target_time above 0"),
        ({"max_depth": 2, "valid_budget": [30], "target_time": [1]}, "such a tree has at most 6 nodes"),
        ({"solver": None, "valid_budget": [1, 2.5], "target_time": [1, 1]}, "valid_budget 2.5, but a whole number"),
    ],
)
def test_configurations_that_cannot_be(config: Callable[..., Path], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptimizerError, match=message):
        chosen(config(**changes))


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(OptimizerError, match="no file"):
        read_sequoia_config(path)
    for content, message in (("{", "no valid JSON"), ("[1]", "holds a JSON list")):
        path.write_text(content)
        with pytest.raises(OptimizerError, match=message):
            read_sequoia_config(path)


def test_profile_and_configuration_from_memory(acceptance: Callable) -> None:
    config = SequoiaConfig(Path("unused"), 3, 0.1, (4,), (1.0,))
    assert optimize_config(config, acceptance([0.5, 0.4])).tree.size == 4
