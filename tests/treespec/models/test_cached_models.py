"""A hub id whose files lie in the local cache is what a folder with these files is; nothing is said of hub or cache that is not so."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from transformers import PreTrainedModel

from treespec import hub
from treespec.errors import ModelError
from treespec.models import loading
from treespec.models.loading import load_model, tokenizer_or_none
from treespec.models.pairs import load_pair

COMMIT = "c0ffee" * 6 + "c0de"
Build = Callable[..., PreTrainedModel]
Cache = Callable[..., Path]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "is_reachable", lambda: False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


@pytest.fixture
def cached(tmp_path: Path, tiny_module: Build, tokenizer_into: Callable[..., None]) -> Cache:
    """Put a tiny model into the local cache; return the folder of its files, which are links as the hub's library makes them."""

    def put(name: str, tokenizer: bool = True, pickled: bool = False, ref: str | None = "main", lacks: str = "") -> Path:
        made = tmp_path / "made"
        module = tiny_module("llama")
        module.save_pretrained(made)
        if pickled:
            (made / "model.safetensors").unlink()
            torch.save(module.state_dict(), made / "pytorch_model.bin")
        if tokenizer:
            tokenizer_into(made)
        repository = tmp_path / "cache" / f"models--{name.replace('/', '--')}"
        snapshot, blobs = repository / "snapshots" / COMMIT, repository / "blobs"
        snapshot.mkdir(parents=True)
        shutil.move(made, blobs)
        for path in blobs.iterdir():
            if path.name != lacks:
                (snapshot / path.name).symlink_to(path)
        if ref is not None:
            (repository / "refs").mkdir()
            (repository / "refs" / ref).write_text(COMMIT)
        return snapshot

    return put


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("tokenizer", [False, True])
def test_a_cached_id_is_like_a_folder(tokenizer: bool, pickled: bool, cached: Cache) -> None:
    folder = cached("someone/model", tokenizer, pickled)
    assert (tokenizer_or_none("someone/model") is None) == (tokenizer_or_none(str(folder)) is None) == (not tokenizer)
    loaded, same = load_model("someone/model"), load_model(str(folder))
    assert all(torch.equal(a, b) for a, b in zip(loaded.module.parameters(), same.module.parameters(), strict=True))
    assert (loaded.format, loaded.revision, loaded.digest) == ("bin" if pickled else "safetensors", COMMIT, None)
    assert loaded.module.config.name_or_path == "someone/model"


def test_a_cached_draft_without_tokenizer_pairs(cached: Cache, tmp_path: Path) -> None:
    target = cached("someone/target")
    cached("someone/draft", tokenizer=False)
    for name in ("someone/target", str(target)):
        pair = load_pair(name, "someone/draft")
        assert pair.tokenizer is not None
    assert pair.provenance()["models"]["draft"] == f"someone/draft@{COMMIT}"


def test_a_cached_vocabulary_that_must_be_told(cached: Cache) -> None:
    from tests.treespec.models.test_tokenizer_files import tekken

    folder = cached("someone/model", tokenizer=False)
    (folder / "tekken.json").write_bytes(tekken())
    tokenizer = tokenizer_or_none("someone/model")
    assert tokenizer is not None
    assert tokenizer.decode([267]) == "the"


@pytest.mark.parametrize("revision", ["v2", COMMIT])
def test_revisions(revision: str, cached: Cache) -> None:
    cached("someone/model", ref="v2")
    assert load_model("someone/model", revision=revision).revision == COMMIT
    with pytest.raises(ModelError, match=f"in the local cache, but not at revision main, .* pass `revision` {COMMIT}, which is there"):
        load_model("someone/model")


@pytest.mark.parametrize(
    ("lacks", "message"),
    [
        ("config.json", r"in the local cache, but not as a whole \(folder someone/model holds no config.json\), and the hub \(http"),
        ("model.safetensors", r"in the local cache, but not as a whole \(folder someone/model holds no model.safetensors, no "),
    ],
)
def test_a_part_of_a_model_in_the_cache(lacks: str, message: str, cached: Cache) -> None:
    cached("someone/model", lacks=lacks)
    with pytest.raises(ModelError, match=message):
        load_model("someone/model")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "models/T",
            r"there is no folder models/T, the hub \(http://127.0.0.1:9\) cannot be reached, and models/T is not in the local cache",
        ),
        ("T", r"there is no folder T, the hub \(.*\) cannot be reached, and T is not in the local cache; check the path"),
        (
            "embedded-eagel3",
            "there is no model embedded-eagel3; those that come with treeopt are embedded-target, embedded-draft and embedded-eagle3",
        ),
        ("embedded-owner/T", "embedded-owner/T is not in the local cache"),
        ("models/T/", "there is no folder models/T/, and it is no hub id"),
        ("./T", "there is no folder ./T, and it is no hub id"),
        ("models/T.gguf", "there is no file models/T.gguf, and it is no hub id"),
        ("T.GGUF", "there is no file T.GGUF, and it is no hub id"),
    ],
)
def test_a_mistyped_folder(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(name)


def test_offline_mode_is_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ModelError, match=r"no folder models/T, the hub is not asked in offline mode \(HF_HUB_OFFLINE\), and models/T is not in"
    ):
        load_model("models/T")


class _Api:
    def __init__(self, files: list[str]) -> None:
        self.files = files

    def list_repo_files(self, name: str, revision: str | None = None) -> list[str]:
        return self.files


def test_pickles_on_the_hub_are_downloaded_and_checked(cached: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not left to transformers, which would ask a service to convert them."""
    folder = cached("someone/model", tokenizer=False, pickled=True)
    asked: list[dict[str, Any]] = []

    def download(name: str, **options: Any) -> str:
        asked.append(options)
        return str(folder)

    place = loading.Place("someone/model", local=False)
    monkeypatch.setattr(loading, "HfApi", lambda: _Api([path.name for path in folder.iterdir()]))
    monkeypatch.setattr(loading, "snapshot_download", download)
    found = loading._with_weights("someone/model", place, None)
    assert (found.path, found.local, found.commit) == (str(folder), True, COMMIT)
    assert asked == [{"revision": None, "allow_patterns": ["*.json", "pytorch_model*.bin"]}]
    monkeypatch.setattr(loading, "HfApi", lambda: _Api(["model.safetensors"]))
    assert loading._with_weights("someone/model", place, None) is place
    monkeypatch.setattr(loading, "HfApi", lambda: _Api(["model.gguf", "config.json"]))
    with pytest.raises(ModelError, match="has neither model.safetensors nor pytorch_model.bin on the hub.* GGUF file of this one"):
        loading._with_weights("someone/model", place, None)


def test_a_tokenizer_that_the_hub_does_not_have_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "is_reachable", lambda: True)
    monkeypatch.setattr(loading, "HfApi", lambda: _Api(["config.json", "model.safetensors"]))
    assert tokenizer_or_none("someone/model") is None
