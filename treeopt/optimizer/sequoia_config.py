"""Sequoia's own search configuration, optimised with Sequoia's own meaning (Infini-AI-Lab/Sequoia, `tree_search.py`)."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from treeopt.optimizer.frontier import largest_size
from treeopt.optimizer.search import OptimizationResult, acceptance_rows, solve
from treeopt.profiles.acceptance import AcceptanceProfile
from treespec.errors import OptimizerError, counted
from treespec.files.fields import MOST_SECONDS
from treespec.files.kinds import NOUNS
from treespec.files.reading import read_object
from treespec.trees.limits import MAX_SIZE

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class SequoiaConfig:
    """Limits and prices in Sequoia's words.

    `max_depth` counts levels: edges + 1. A tree limited to l levels costs `l * draft_time` and, with
    `valid_budget[i]` nodes, `target_time[i]`; all times are in one unit, whichever it is.
    """

    acceptance_path: Path
    max_depth: int
    draft_time: float
    valid_budget: tuple[int, ...]
    target_time: tuple[float, ...]
    max_budget: int | None = None
    max_branch: int | None = None

    def __post_init__(self) -> None:
        if len(self.valid_budget) != len(self.target_time) or not self.valid_budget:
            raise OptimizerError(
                f"valid_budget has {counted(len(self.valid_budget), 'entry', 'entries')} and target_time {len(self.target_time)}; "
                "give one time for each budget, at least one"
            )
        for name, least, values in (
            ("max_depth", 1, (self.max_depth,)),
            ("max_branch", 1, () if self.max_branch is None else (self.max_branch,)),
            ("max_budget", 1, () if self.max_budget is None else (self.max_budget,)),
            ("valid_budget", 1, self.valid_budget),
        ):
            if any(not least <= value <= MAX_SIZE for value in values):
                raise OptimizerError(f"{name} is {', '.join(map(str, values))}, but it must lie in [{least}, {MAX_SIZE}]")
        if self.max_budget is not None and max(self.valid_budget) > self.max_budget:
            raise OptimizerError(
                f"valid_budget goes up to {max(self.valid_budget)}, but max_budget is {self.max_budget}; raise max_budget or drop the larger ones"
            )
        if not (math.isfinite(self.draft_time) and self.draft_time >= 0) or any(not math.isfinite(t) or t <= 0 for t in self.target_time):
            raise OptimizerError("draft_time must be 0 or more and every target_time above 0; measure them again")


def read_sequoia_config(path: StrPath) -> SequoiaConfig:
    """Read Sequoia's JSON. The path of the acceptance vector is taken from the current folder, else from the file's own folder.

    The key `dst`, the place where Sequoia writes its tree, is not read: here the caller says where. Raises OptimizerError, naming the key.
    """
    data = read_object(path, "Sequoia configuration", error=OptimizerError, limit=1 << 20)
    if (schema := str(data.get("schema"))) in NOUNS:
        remedy = f"pass it as `{schema.removeprefix('treeopt.')}`" if schema in ("treeopt.acceptance", "treeopt.latency") else "pass one"
        raise OptimizerError(f"{path} is {NOUNS[schema]}, but a Sequoia configuration is needed; {remedy}")
    vector = Path(_field(path, data, "acceptance_rate_vector", str))
    if not vector.is_file() and not vector.is_absolute():
        vector = Path(path).parent / vector
    try:
        return SequoiaConfig(
            acceptance_path=vector,
            max_depth=_field(path, data, "max_depth", int),
            draft_time=float(_field(path, data, "draft_time", float)),
            valid_budget=tuple(_list(path, data, "valid_budget", int)),
            target_time=tuple(float(t) for t in _list(path, data, "target_time", float)),
            max_budget=_field(path, data, "max_budget", int, optional=True),
            max_branch=_field(path, data, "max_branch", int, optional=True),
        )
    except OptimizerError as e:
        raise e if str(e).startswith(str(path)) else OptimizerError(f"{path}: {e}") from e


def optimize_config(
    config: SequoiaConfig, acceptance: AcceptanceProfile, *, solver: str = "auto", smoothing: str = "none"
) -> OptimizationResult:
    """Return the best tree of the budget and level limit with the least time per token.

    The result's `predicted_seconds_per_step` has the unit of the configuration's times; its speed-up is over the first
    `target_time`, as in Sequoia. Its gap is 0: under this price no tree of a valid budget is better. Raises
    OptimizerError if no valid budget is feasible.
    """
    rows = acceptance_rows(acceptance, smoothing)
    branches = min(config.max_branch or rows.shape[1], rows.shape[1])
    budgets = np.array(config.valid_budget)
    levels = min(config.max_depth, int(budgets.max()))  # more levels than nodes cost more and give nothing
    frontier = solve(rows, int(budgets.max()), levels - 1, branches, solver=solver)
    tokens = frontier.values[:, budgets].T
    seconds = np.array(config.target_time)[:, None] + np.arange(1, levels + 1) * config.draft_time
    scores = np.where(tokens > 0, seconds / np.where(tokens > 0, tokens, 1.0), np.inf)
    budget, depth = divmod(int(np.argmin(scores)), levels)  # of equal ones the first budget, as in Sequoia
    if not np.isfinite(scores[budget, depth]):
        feasible = largest_size(config.max_depth - 1, branches)
        raise OptimizerError(
            f"no valid_budget of {', '.join(map(str, config.valid_budget))} fits {counted(config.max_depth, 'level')} with "
            f"{counted(branches, 'branch', 'branches')}: "
            f"such a tree has at most {counted(feasible, 'node')}; add a budget of at most {feasible}"
        )
    return OptimizationResult(
        tree=frontier.tree(int(budgets[budget]), int(depth)),
        expected_tokens_per_step=float(tokens[budget, depth]),
        predicted_seconds_per_step=float(seconds[budget, depth]),
        predicted_speedup=float(config.target_time[0] / scores[budget, depth]),
        certified_gap=0.0,
        solver=frontier.solver,
        table=frontier,
    )


def _field(path: StrPath, data: dict[str, Any], key: str, kind: type, *, optional: bool = False) -> Any:
    value = data.get(key)
    if value is None:
        if optional:
            return None
        raise OptimizerError(f"{path} has no {key!r}, which a Sequoia configuration needs; add it")
    return _checked(path, key, value, kind)


def _list(path: StrPath, data: dict[str, Any], key: str, kind: type) -> list[Any]:
    return [_checked(path, key, value, kind) for value in _field(path, data, key, list)]


def _checked(path: StrPath, key: str, value: Any, kind: type) -> Any:
    fits = isinstance(value, int | float) and abs(value) <= MOST_SECONDS if kind is float else isinstance(value, kind)
    if isinstance(value, bool) or not fits:
        words = {int: "a whole number", float: f"a number up to {MOST_SECONDS:g}", str: "text", list: "a list"}
        raise OptimizerError(f"{path} has {key} {value!r:.40}, but {words[kind]} is needed there")
    return value
