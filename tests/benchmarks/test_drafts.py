"""The drafts that are compared belong to one target, and the large head reads as much as it should."""

import argparse
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from benchmarks import drafts
from treeopt.training.heads import write_head
from treespec.embedded import TARGET_FOLDER
from treespec.models.heads.making import NewEagle3
from treespec.models.heads.target import HeadTarget


def test_every_draft_is_of_the_same_target(tmp_path: Path) -> None:
    pair = drafts.pair_for(argparse.Namespace(inflate=False, device="cpu"))
    new = NewEagle3.of("embedded-target", LlamaConfig.from_pretrained(TARGET_FOLDER), None)
    write_head(tmp_path / "head", new, new.made(HeadTarget.of(pair.target.module, "embedded-target"), None, 0))
    found = drafts.pairs_for(argparse.Namespace(inflate=False, device="cpu", head=str(tmp_path / "head")), tmp_path)
    assert list(found) == ["model", "EAGLE-3 head", "n-grams"]
    assert len({id(pair.target) for pair in found.values()}) == 1
    assert len({pair.sha256 for pair in found.values()}) == 3


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
