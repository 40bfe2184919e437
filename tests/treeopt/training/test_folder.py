"""The folder of a run: which checkpoints are whole, which folders are free."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.reference.folders import names
from treeopt.training.folder import newest_checkpoint, open_run, require_free
from treeopt.training.train import TrainResult
from treespec.errors import TrainingError


def cut(name: str) -> Callable[[Path], None]:
    def damage(checkpoint: Path) -> None:
        (file,) = checkpoint.glob(name)
        os.truncate(file, file.stat().st_size - 2)  # not the end of a line alone

    return damage


def zeros(name: str, share: float) -> Callable[[Path], None]:
    """A page that never reached the disk."""

    def damage(checkpoint: Path) -> None:
        (file,) = checkpoint.glob(name)
        content = bytearray(file.read_bytes())
        start = int(share * len(content))
        content[start : start + 512] = bytes(len(content[start : start + 512]))
        file.write_bytes(content)

    return damage


def missing_shard(checkpoint: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "damage",
    [
        cut("model.safetensors"),
        lambda checkpoint: os.truncate(checkpoint / "model.safetensors", 5),
        zeros("model.safetensors", 0),
        zeros("model.safetensors", 0.001),
        cut("optimizer.pt"),
        zeros("optimizer.pt", 0.5),
        cut("scheduler.pt"),
        cut("rng_state.pth"),
        cut("trainer_state.json"),
        missing_shard,
        lambda checkpoint: (checkpoint / "config.json").unlink(),
    ],
)
def test_a_checkpoint_is_whole_or_the_one_before_is_taken(whole: TrainResult, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    for name in ("checkpoint-40", "checkpoint-60"):
        shutil.copytree(whole.folder / name, tmp_path / name)
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-60"
    damage(tmp_path / "checkpoint-60")
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-40"
    damage(tmp_path / "checkpoint-40")
    assert newest_checkpoint(tmp_path) is None


@pytest.mark.parametrize("made", ["checkpoint-5", "texts-0.jsonl", "texts-0.jsonl.0.journal", "held-out-0.jsonl"])
def test_a_record_alone_locks_nothing_but_what_was_made_does(tmp_path: Path, made: str) -> None:
    known = {"settings": {"a": 1, "b": 1}}
    for resume in (False, True):
        open_run(tmp_path, known)
        require_free(tmp_path, resume=resume)
        assert names(tmp_path) == []
    open_run(tmp_path, known)
    (tmp_path / made).mkdir()
    with pytest.raises(TrainingError, match="holds a training run already; pass `resume`"):
        require_free(tmp_path, resume=False)
    require_free(tmp_path, resume=True)
    assert open_run(tmp_path, {"settings": {"a": 1, "b": 2}}, free=("b",)).record is None
    with pytest.raises(TrainingError, match="was trained with `b` 1, and now it is 2"):
        open_run(tmp_path, {"settings": {"a": 1, "b": 2}}, free=("a",))
