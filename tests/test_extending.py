"""docs/extending.md: its code runs as it stands there, and what it adds is lossless by the enumeration that tests the others."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.reference.enumeration import Tables, matched_outcome, sampled_outcome, target_distribution, total_variation
from treespec.data.prompts import load_prompts
from treespec.decoding.drafters import DRAFTERS
from treespec.decoding.drafters.base import DrafterSetup
from treespec.decoding.drafting import Drafting
from treespec.decoding.rules import Sampling
from treespec.decoding.timing import NoTimer
from treespec.decoding.verifiers import VERIFIERS
from treespec.evaluation.runner import evaluate
from treespec.evaluation.settings import EvaluationSettings
from treespec.models.pairs import load_target
from treespec.trees.placement import Prefix
from treespec.trees.tree import SpeculationTree

BLOCKS = re.findall(r"^```python\n(.*?)^```", Path(__file__).parents[1].joinpath("docs/extending.md").read_text(), flags=re.M | re.S)
EXACT = 1e-12
TREES = [SpeculationTree.k_ary(2, 2), SpeculationTree.from_paths([(0, 0), (0, 1), (1,), (2,)]), SpeculationTree.chain(3)]


@pytest.fixture(scope="module")
def page() -> Iterator[dict[str, Any]]:
    """The names that the page's code leaves, while its drafter and its verifier are in the tables."""
    names: dict[str, Any] = {"__name__": "extending"}
    before = dict(DRAFTERS), dict(VERIFIERS)
    for block in BLOCKS:
        exec(compile(block, "docs/extending.md", "exec"), names)
    yield names
    for table, entries in zip((DRAFTERS, VERIFIERS), before, strict=True):
        table.clear()
        table.update(entries)  # type: ignore[arg-type]


def tables(seed: int, depth: int, vocabulary: int = 3) -> Tables:
    """A random target and a random draft."""
    generator = torch.Generator().manual_seed(seed)

    def rows(level: int) -> torch.Tensor:
        return torch.rand(vocabulary**level, vocabulary, generator=generator, dtype=torch.float64).softmax(-1)

    return Tables(tuple(rows(level) for level in range(depth + 1)), tuple(rows(level) for level in range(depth + 1)))


@pytest.mark.parametrize("name", ["Lookup", "LookupDrafter", "OwnDraw", "OtherTokens"])
def test_additions_are_short(name: str) -> None:
    block = next(block for block in BLOCKS if f"class {name}" in block)
    lines = [line for line in block.splitlines() if line.strip() and not line.startswith(("from ", "import "))]
    assert len(lines) < 40


def test_the_page_runs(page: dict[str, Any]) -> None:
    lookup, own = page["by_lookup"], page["by_own_draw"]
    assert (lookup.mode, lookup.lossless) == ("lookup", "match")
    assert lookup.tree == {"size": 5, "depth": 4}
    assert lookup.tokens_per_step > 1.1, "what was looked up is accepted now and then"
    assert own.settings["verifier"] == "own-draw"
    assert own.tokens_per_step > 1.1


@pytest.mark.parametrize("replacement", [False, True], ids=["swor", "swr"])
@pytest.mark.parametrize("tree", TREES, ids=lambda tree: str(tree.level_widths))
def test_the_verifier_is_lossless(page: dict[str, Any], tree: SpeculationTree, replacement: bool) -> None:
    for seed in range(3):
        models = tables(seed, tree.depth)
        found = {name: sampled_outcome(tree, models, replacement=replacement, verifier=name) for name in ("own-draw", "sequential")}
        for outcome in found.values():
            assert total_variation(outcome.distribution, target_distribution(models, tree.depth + 1)) < EXACT
        assert found["own-draw"].accepted < found["sequential"].accepted, "it ignores what the children were drawn from"


def test_a_verifier_that_draws_from_the_whole_target_is_seen(page: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page["OtherTokens"], "rest", lambda self, last: self.p.index_select(0, last[None])[0])
    tree, models = TREES[0], tables(0, 2)
    outcome = sampled_outcome(tree, models, replacement=False, verifier="own-draw")
    assert total_variation(outcome.distribution, target_distribution(models, tree.depth + 1)) > 1e-3


def test_the_drafter_is_lossless(page: dict[str, Any]) -> None:
    """Its tokens depend on the text alone, so each text is one tree, and the target's choice decides about it."""
    plan = page["Lookup"](depth=2)
    drafter = DRAFTERS["lookup"](plan, DrafterSetup(None, torch.device("cpu"), 3, Sampling(1.0), Drafting()))
    seen = set()
    for seed in range(8):
        text = torch.randint(0, 3, (9,), generator=torch.Generator().manual_seed(seed))
        drafter.begin(text[:-1], None)
        proposal = drafter.propose(text[-2:], Prefix.of(8, "cpu"), 20, None, NoTimer())
        seen.add(tuple(proposal.tokens[1:].tolist()))
        models = tables(seed, 2)
        outcome = matched_outcome(SpeculationTree.chain(2), models, proposal.tokens)
        assert total_variation(outcome.distribution, target_distribution(models, 3)) < EXACT
        assert outcome.accepted > 0
    assert len(seen) > 2, "texts differ in what they look up"


def test_an_objective_of_one_s_own_has_a_growmap(page: dict[str, Any]) -> None:
    assert 0 <= page["smoothest"].promise.certified_gap < 1
    assert page["smoothest"].promise.seconds_per_step <= page["fastest"].promise.seconds_per_step


@pytest.mark.gpu
def test_the_drafter_s_steps_are_captured(page: dict[str, Any]) -> None:
    target = load_target("embedded-target", device="cuda", dtype="float32")
    prompts = load_prompts("stdlib", target.tokenizer, num_prompts=2, prompt_len=64)
    report = evaluate(target, page["Lookup"](depth=4), prompts, EvaluationSettings(gen_len=48))
    assert (report.lossless, report.settings["engine"]) == ("match", "captured")
    assert report.tokens_per_step == page["by_lookup"].tokens_per_step
