"""The drafts that are compared belong to one target, and the large head reads as much as it should."""

import argparse
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

import treeopt
from benchmarks import drafts
from treespec.files.journal import Journal
from treespec.models.heads.making import NewEagle3
from treespec.models.pairs import Pair


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    return drafts.pairs_for(argparse.Namespace(inflate=False, device="cpu", head="embedded-eagle3"), tmp_path_factory.mktemp("drafts"))


def test_every_draft_is_of_the_same_target(pairs: dict[str, Pair]) -> None:
    assert list(pairs) == ["model", "EAGLE-3 head", "n-grams"]
    assert pairs["EAGLE-3 head"].draft.describe()["name"] == "embedded-eagle3", "the name, and not the folder of this machine"
    assert len({id(pair.target) for pair in pairs.values()}) == 1
    assert len({pair.sha256 for pair in pairs.values()}) == 3


def test_a_comparison_goes_on_where_it_stopped(pairs: dict[str, Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = argparse.Namespace(prompts=2, evaluated=1, gen_len=8, repetitions=2, temperatures=[0.0])
    sizes = {"sizes": (1, 2, 4), "widths": (1, 2)}
    monkeypatch.setattr(treeopt, "profile_latency", partial(treeopt.profile_latency, **sizes))
    wanted = {kind: pairs[kind] for kind in ("model", "n-grams")}
    with Journal(tmp_path / "a.journal", "key") as journal:
        first = drafts.compare({"model": wanted["model"]}, arguments, journal)
        both = drafts.compare(wanted, arguments, journal)
        assert json.loads(json.dumps(both[0])) == json.loads(json.dumps(first[0])), "measured once"
        monkeypatch.setattr(drafts, "tuned", lambda *_: pytest.fail("all is known"))
        again = drafts.compare(wanted, arguments, journal)
    assert [row["draft"] for row in again] == ["model", "n-grams"]
    assert all(row["tokens_per_step"] >= 1 for row in again)


def test_a_level_reads_the_weights_of_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"vocab_size": 80, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    monkeypatch.setattr(drafts, "WIDE", LlamaConfig.from_dict(drafts.WIDE.to_dict() | small | {"head_dim": 8}))
    monkeypatch.setattr(drafts, "WIDTHS", (1, 2))
    found = drafts.level_seconds("cpu", torch.float32)
    fused, attention, mlp, norms, lm_head = 3 * 32 * 32, 64 * (32 + 16 + 16) + 32 * 32, 3 * 32 * 48, 4 * 32, 80 * 32
    assert found["weight_bytes"] == 4 * (fused + attention + mlp + norms + lm_head)
    assert set(found["draft_seconds"]) == {1, 2}


def test_the_large_head_is_as_heavy_as_it_says() -> None:
    wide = drafts.WIDE
    new = NewEagle3.of("wide", wide, None)
    weights = sum(torch.Size(shape).numel() for shape in new.shapes.values()) + wide.vocab_size * wide.hidden_size
    assert 2 * weights / 1e9 == pytest.approx(0.77, abs=0.01)
