"""The best chain: the least cost over all depths, by the objective, one by one."""

import numpy as np
import pytest

from tests.reference.ranked import alike, ranked
from treeopt.optimizer.chains import best_chain, replayed_chain
from treeopt.optimizer.frontier import expected_tokens
from treeopt.optimizer.replay import replay
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


@pytest.mark.parametrize("seed", range(6))
def test_on_texts_no_depth_takes_less_time_either(seed: int) -> None:
    random = np.random.default_rng(seed)
    trace, times = ranked([alike(random, [0.7, 0.2], 30) for _ in range(5)]), model(random)
    found = replayed_chain(trace, times, 12)
    assert found is not None
    rates = {}
    for depth in range(1, 13):
        chain = SpeculationTree.chain(depth)
        tokens = replay(chain, trace).tokens_per_step
        assert tokens is not None
        rates[depth] = times.step_seconds(chain) / tokens.mean
    assert found.depth == min(rates, key=lambda depth: rates[depth])
    assert found.predicted_seconds_per_step / found.expected_tokens_per_step == pytest.approx(rates[found.depth])
    assert replayed_chain(trace, times, 0) is None
