"""The benchmark of predictions: its trees were not profiled, and every rule has some."""

import pytest
import torch

from benchmarks import predictions
from benchmarks.small_pair import small_pair
from treeopt.profiling.bench import cells_of
from treeopt.profiling.grid import Grid
from treeopt.profiling.latency import profile_latency
from treespec.decoding.plans import DynamicBudget
from treespec.trees.tree import SpeculationTree


def settings(*words: str) -> predictions.ChosenSettings:
    asked = {"samplings": predictions.SAMPLINGS, "draftings": predictions.DRAFTINGS, "dynamic": True, "words": words}
    return predictions.ChosenSettings(predictions.SIZES, predictions.WIDTHS, (160,), 4, **asked)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_tree_of_the_comparison_was_profiled(device: str) -> None:
    profiled = {cell.spec.plan for cell in cells_of(settings(), Grid.of(settings(), device, 32_000), 32_000)}
    systems = predictions.systems_for(settings(), 128)
    plans = {system.plan for system in systems if system.plan is not None}
    assert not plans & profiled
    for rule in settings().rules:
        own = [system.plan for system in systems if system.rule == rule and system.plan is not None]
        assert len(own) == 6, rule.name
        assert all(isinstance(plan, DynamicBudget if rule.mode == "dynamic" else SpeculationTree) for plan in own)
    assert [rule.name for rule in settings("traversal").rules] == [
        "topk, temperature 0",
        "swor, traversal, temperature above 0",
        "swor, traversal, temperature above 0, top-p below 1",
    ]


@torch.inference_mode()
def test_a_small_random_pair_is_predicted_and_measured() -> None:
    pair = small_pair("cpu", torch.float32, layers=1, draft_layers=1)
    assert pair.vocabulary_size == 49_152
    few = predictions.ChosenSettings((1, 2, 4, 8), (1, 2, 4), (130,), 4, samplings=predictions.SAMPLINGS[1:2], words=("topk",))
    systems = predictions.systems_for(few, 8)
    assert [(s.rule.name, None if s.plan is None else s.plan.size) for s in systems] == [
        ("topk, temperature 0", None),
        ("topk, temperature 0", 8),
        ("topk, temperature above 0", None),
        ("topk, temperature above 0", 8),
    ]
    decoding = predictions.Decoding(pair, systems, 3)
    decoding.round(warm_up=True)
    decoding.round()
    profile = profile_latency(pair, few)
    for system, (seconds,) in zip(systems, decoding.seconds, strict=True):
        assert seconds > 0
        assert predictions.predicted(profile, system) > 0
