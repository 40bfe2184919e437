"""A head of a hub id is what its folder is: from the local cache, and fetched where the hub answers."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from tests.reference.head_files import EAGLE3, target, tensors, write
from treespec import hub
from treespec.errors import ModelError
from treespec.models import contents
from treespec.models.heads import loading
from treespec.models.heads.info import contents_of_head
from treespec.models.heads.loading import load_head

NAME, COMMIT = "someone/head", "c0ffee" * 6 + "c0de"


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the local cache that holds an EAGLE-3 head."""
    repository = tmp_path / "cache" / f"models--{NAME.replace('/', '--')}"
    folder = repository / "snapshots" / COMMIT
    layout: Any = EAGLE3["official"]
    made = Path(write(tmp_path / "made", layout.config, tensors(layout.shapes), layout.file))
    shutil.copytree(made, folder)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub, "is_reachable", lambda: False)
    return folder


def same(found: Any, wanted: Any) -> bool:
    own, other = found.state_dict(), wanted.state_dict()
    return own.keys() == other.keys() and all(torch.equal(own[key], other[key]) for key in own)


def test_a_head_in_the_cache_is_loaded(snapshot: Path) -> None:
    assert same(load_head(NAME, target()), load_head(str(snapshot), target()))
    assert same(load_head(NAME, target(), revision=COMMIT), load_head(str(snapshot), target()))
    with pytest.raises(ModelError, match=f"at revision other, .* pass `revision` {COMMIT}"):
        load_head(NAME, target(), revision="other")


def test_a_head_on_the_hub_is_fetched_and_nothing_else(snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the hub's library does is played: the small files come one by one, and the rest when it is a head."""
    near, asked = tmp_path / "near", []

    def one(name: str, file: str, **options: Any) -> str | None:
        if not (snapshot / file).is_file():
            return None
        near.mkdir(exist_ok=True)
        return str(shutil.copy(snapshot / file, near / file))

    def whole(name: str, **options: Any) -> str:
        asked.append((name, options))
        return str(snapshot)

    monkeypatch.setattr(hub, "is_reachable", lambda: True)
    monkeypatch.setattr(contents, "cached_file", one)
    monkeypatch.setattr(loading, "snapshot_download", whole)
    found = contents_of_head(NAME, "v2")
    assert found is not None
    assert (found[0].name, found[1].folder) == ("eagle3", snapshot)
    assert asked == [(NAME, {"revision": "v2", "allow_patterns": ["*.json", "*.safetensors", "*.bin", "*.pt"]})]
    assert same(load_head(NAME, target(), revision="v2"), load_head(str(snapshot), target()))
    (snapshot / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    asked.clear()
    assert contents_of_head(NAME) is None
    assert asked == [], "the weights of what is no head are left to whoever loads models"
