"""What is said of several candidates: which figures they were compared by, and whether these have intervals."""

from dataclasses import replace

import pytest

from treeopt.growmap_making import generate
from treeopt.profiles.acceptance import AcceptanceProfile
from treeopt.profiles.latency import LatencyProfile
from treeopt.profiles.samples import LatencySample
from treeopt.tuning.result import Score, basis, candidates_table
from treeopt.tuning.settings import TuneSettings
from treespec.trees.tree import SpeculationTree


@pytest.fixture
def score() -> Score:
    """The score of a candidate that was compared on four prompts."""
    acceptance = AcceptanceProfile("topk", 0.0, 1.0, (0.6, 0.2), 0.2, (0.02, 0.01), 900, 30)
    target = tuple(LatencySample(size, 64, (0.010,) * 4) for size in (1, 2, 4))
    latency = LatencyProfile(target, (LatencySample(1, 64, (0.001,) * 4), LatencySample(2, 64, (0.001,) * 4)), (0.0005,) * 4)
    made = generate(acceptance, latency=latency)
    return Score(TuneSettings().candidates(1)[0], "a draft", made, 1.8, 0.012, 150.0, (140.0, 160.0), 4)


def test_the_title_speaks_of_intervals_only_where_there_are_some(score: Score) -> None:
    bare = replace(score, interval=None)
    root = replace(bare, generated=replace(bare.generated, result=replace(bare.generated.result, tree=SpeculationTree((-1,)))))
    several = [score, score], [score, root], [score, bare], [bare, bare], [root, root], [bare]
    titles = [candidates_table(scores).title for scores in several]
    assert titles == [
        "candidates, with 95 % intervals, the chosen one first",
        "candidates, with 95 % intervals, the chosen one first",
        "candidates, with 95 % intervals where there are samples enough, the chosen one first",
        "candidates, with too few samples for 95 % intervals, the chosen one first",
        "candidates, the chosen one first",
        "chosen",
    ]


def test_what_candidates_were_compared_by_is_said(score: Score) -> None:
    left = replace(score, compared_on=0)
    assert "on 4 prompts, from which no tree was grown" in basis([score, score])
    assert basis([score, score]).endswith("may order the candidates differently")
    assert basis([score, score, left]).endswith("; 1 candidate was certainly slower after the pilot and got no more than that")
    assert basis([left, left]).startswith("the candidates were not compared on prompts of their own")
