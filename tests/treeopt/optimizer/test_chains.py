"""The best chain: the least cost over all depths, by the objective, one by one."""

import numpy as np
import pytest

from treeopt.optimizer.chains import best_chain
from treeopt.optimizer.frontier import expected_tokens
from treeopt.profiles.latency_model import LatencyModel
from treespec.trees.tree import SpeculationTree


def model(random: np.random.Generator, largest: int = 24) -> LatencyModel:
    sizes = sorted({1, largest, *random.integers(2, largest, 5).tolist()})
    target = tuple((size, 0.01 * float(1 + 0.05 * size + random.random())) for size in sizes)
    return LatencyModel(128, target, ((1, 0.001 * float(1 + random.random())), (8, 0.004)), 0.002, 0.001)


@pytest.mark.parametrize("seed", range(20))
def test_no_depth_costs_less(seed: int) -> None:
    random = np.random.default_rng(seed)
    rows, times = random.random((int(random.integers(1, 5)), 3)) / 1.5, model(random)
    deepest = int(random.integers(1, 40))

    def cost(tokens: np.ndarray, seconds: np.ndarray) -> np.ndarray:
        return seconds**2 / tokens if seed % 2 else seconds / tokens

    found = best_chain(rows, times, deepest, cost)
    assert found is not None
    costs = []
    for depth in range(1, min(deepest, 23) + 1):
        chain = SpeculationTree.chain(depth)
        costs.append(float(cost(np.array([expected_tokens(chain, rows)]), np.array([times.step_seconds(chain)]))[0]))
    assert found.depth == 1 + int(np.argmin(costs))
    chain = SpeculationTree.chain(found.depth)
    assert found.expected_tokens_per_step == pytest.approx(expected_tokens(chain, rows), rel=1e-12)
    assert found.predicted_seconds_per_step == times.step_seconds(chain)


def test_there_is_none_where_no_chain_was_timed_or_allowed() -> None:
    random = np.random.default_rng(0)
    assert best_chain(np.array([[0.5]]), LatencyModel(1, ((1, 0.1),), ((1, 0.1),), 0.0), 5) is None
    assert best_chain(np.array([[0.5]]), model(random), 0) is None
