"""The best chain: how deep it is when one token follows the other, without branches, by the same chances, times and objective as trees."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from treeopt.optimizer.frontier import Rows
from treeopt.optimizer.objective import Objective, seconds_per_token
from treeopt.optimizer.replay import replay
from treeopt.profiles.latency_model import LatencyModel
from treeopt.profiles.trace import Trace
from treespec.trees.tree import SpeculationTree


@dataclass(frozen=True)
class BestChain:
    """The chain of least cost, and its predictions."""

    depth: int
    expected_tokens_per_step: float
    predicted_seconds_per_step: float
    replayed: bool = False
    """Whether the tokens per step are those of a replay, and not expected from chances."""

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data, which says that the tokens are those of a replay only where they are."""
        return {name: value for name, value in asdict(self).items() if name != "replayed" or value}


def best_chain(rows: Rows, model: LatencyModel, deepest: int, objective: Objective = seconds_per_token) -> BestChain | None:
    """Return the chain of depth 1 to `deepest` with the least cost, the shallower of equal ones; None if no depth has a known time.

    `rows` are the chances of ranks by depth of the parent, [depths, ranks]; the last row serves all deeper parents. A chain ends at the latest where
    its next node has no chance.
    """
    deepest = min(deepest, model.largest_size - 1)
    if deepest < 1:
        return None
    first = rows[np.minimum(np.arange(deepest), len(rows) - 1), 0]
    deepest = max(1, int(np.cumprod(first > 0).sum()))
    first = first[:deepest]
    tokens = 1 + np.cumsum(np.cumprod(first))
    seconds = np.array([model.step_seconds(SpeculationTree.chain(depth)) for depth in range(1, deepest + 1)])
    place = int(np.asarray(objective(tokens, seconds)).argmin())
    return BestChain(place + 1, float(tokens[place]), float(seconds[place]))


def replayed_chain(trace: Trace, model: LatencyModel, deepest: int) -> BestChain | None:
    """Return the chain of depth 1 to `deepest` with the fewest seconds per token, the shallower of equal ones, by its steps on the texts of a trace.

    None if no depth has a known time, or the trace has no step. Raises ProfileError for a trace of random children.
    """
    found = []
    for depth in range(1, min(deepest, model.largest_size - 1, deepest if trace.levels is None else trace.levels) + 1):
        chain = SpeculationTree.chain(depth)
        tokens = replay(chain, trace).tokens_per_step
        if tokens is None:
            return None
        found.append(BestChain(depth, tokens.mean, model.step_seconds(chain), replayed=True))
    return min(found, key=lambda one: one.predicted_seconds_per_step / one.expected_tokens_per_step, default=None)
