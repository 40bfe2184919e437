"""The folder of a training run: its record, its checkpoints, and in the end a plain model folder."""

import json
import os
import shutil
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from treeopt.training.record import NAME as RECORD
from treeopt.training.record import SCHEMA, VERSION
from treespec.errors import ModelError, OutputError, TrainingError
from treespec.files.locks import alone
from treespec.files.reading import read_json
from treespec.files.writing import check_writable, make_folder, write_json
from treespec.models.headers import header_of
from treespec.models.weights import INDEX, files_by_tensor

LOCK = ".treeopt.lock"
"""The file that keeps a second run out as long as one trains."""
STAGING = ".saving"
"""The folder in which the files of a finished draft are written, before each is moved to its place."""
_WHOLE = ("config.json", "optimizer.pt", "scheduler.pt", "trainer_state.json")
"""Files that every checkpoint has beside weights and states of random streams; the last one is written last."""
_MADE = ("checkpoint-*", "texts-*", "held-out-*")
"""Patterns of the files that an unfinished run leaves in its folder and that are worth keeping."""


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Let one run at a time train in a folder. It is created if it is not there, and removed again if it stays empty. Raises OutputError."""
    new = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
    try:
        with alone(make_folder(folder) / LOCK, folder):
            yield
    finally:
        with suppress(OSError):  # there is something in it
            for path in new:
                path.rmdir()


def require_free(folder: Path, *, resume: bool, kind: str | None = None) -> None:
    """Raise OutputError if a folder cannot be written, TrainingError if it is taken, or holds a run of another `kind` of head (None: a model).

    A folder that holds a model or checkpoints without a record of training belongs to something else. One that holds a
    record needs `resume`; with it, an empty folder is as good as a new one. A record alone, of a run that ended before it had
    written a text or a checkpoint, is as good as none and is removed.
    """
    check_writable(folder / RECORD)
    begun = (folder / RECORD).exists()
    if begun and (any(next(folder.glob(pattern), None) for pattern in _MADE) or _read(folder).get("finished")):
        if not resume:
            raise TrainingError(f"{folder} holds a training run already; pass `resume` to go on with it, or another folder")
        _require_kind(folder, kind)
        return
    foreign = sorted(path.name for pattern in ("config.json", "*.safetensors", "checkpoint-*") for path in folder.glob(pattern))
    if foreign:
        raise TrainingError(f"{folder} holds another model ({foreign[0]}), which training would overwrite; pass another folder")
    if begun:
        (folder / RECORD).unlink()


def _require_kind(folder: Path, kind: str | None) -> None:
    """Raise TrainingError if a run trains something of another kind. A record that does not say what it trained is judged later, by `open_run`."""
    sources = _read(folder).get("sources")
    if not isinstance(sources, dict) or sources.get("kind") == kind:
        return
    before = sources.get("kind")
    was, now = (f"a head of the kind {one}" if one else "a model" for one in (before, kind))
    remedy = f"`kind` {_short(before)}" if before else "`draft` or `config` in place of `kind`"
    raise TrainingError(
        f"{folder} holds a run that trains {was}, but {now} is asked for; resume with {remedy}, or train into another folder"
    )


@dataclass(frozen=True)
class Run:
    """The progress of a run: its record if it is finished, else its newest whole checkpoint, else nothing."""

    record: dict[str, Any] | None = None
    checkpoint: Path | None = None

    @property
    def history(self) -> list[dict[str, Any]] | None:
        """The log of a checkpoint at the last step, so that nothing is left to train; None otherwise."""
        if self.checkpoint is None:
            return None
        state = json.loads((self.checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        history: list[dict[str, Any]] = state["log_history"]
        return history if state["global_step"] >= state["max_steps"] else None


def open_run(folder: Path, known: Mapping[str, Any], free: Collection[str] = ()) -> Run:
    """Record a new run, or check that a run that is there is `known`, and return its progress.

    `known` is plain JSON: groups of named values, of which all but those named in `free` decide what is trained. Raises
    TrainingError that names what differs.
    """
    if not (folder / RECORD).exists():
        write_json(folder / RECORD, {"schema": SCHEMA, "version": VERSION, "finished": False, **known})
        return Run()
    found = _read(folder)
    for group, values in json.loads(json.dumps(known)).items():
        before = found.get(group)
        if not isinstance(before, dict):
            raise TrainingError(f"{folder / RECORD} has no {group}; it was not written by this treeopt, pass another folder")
        for name, value in values.items():
            if name not in free and before.get(name) != value:
                raise TrainingError(
                    f"{folder} was trained with `{name}` {_short(before.get(name))}, and now it is {_short(value)}; "
                    "resume with the same, or train into another folder"
                )
    return Run(record=found) if found.get("finished") else Run(checkpoint=newest_checkpoint(folder))


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the whole checkpoint of the highest step; checkpoints that are not whole are passed over."""
    return next((path for step, path in sorted(_checkpoints(folder).items(), reverse=True) if _is_whole(path, step)), None)


def drop_later(folder: Path, checkpoint: Path | None) -> None:
    """Remove the checkpoints after the newest whole one; the Trainer would count them among those to keep, or write over them."""
    for step, path in _checkpoints(folder).items():
        if checkpoint is None or step > _step(checkpoint):
            shutil.rmtree(path)


def _checkpoints(folder: Path) -> dict[int, Path]:
    return {_step(path): path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()}


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _is_whole(checkpoint: Path, step: int) -> bool:
    """Return whether all files are there with the lengths that they state, and the pickles with their checksums."""
    weights, states = list(checkpoint.glob("*.safetensors")), list(checkpoint.glob("rng_state*.pth"))
    if not weights or not states or not all((checkpoint / name).is_file() for name in _WHOLE):
        return False
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        index = checkpoint / INDEX
        shards = set(files_by_tensor(checkpoint.name, index).values()) if index.is_file() else set()
        for path in weights:
            header_of(checkpoint.name, path)
        archives = [checkpoint / "optimizer.pt", checkpoint / "scheduler.pt", *states]
        return state["global_step"] == step and shards <= {path.name for path in weights} and all(_is_archive(path) for path in archives)
    except (ModelError, ValueError, KeyError, TypeError, AttributeError):  # a torn file
        return False


def _is_archive(path: Path) -> bool:
    """Return whether a file of torch.save is a zip archive whose members have their checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError):
        return False


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Turn the errors of libraries that cannot write a file in this block into OutputError with the remedy."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as e:  # torch and safetensors have errors of their own for a full disk
        reason = getattr(e, "strerror", None) or " ".join(str(e).split())[:200]
        raise OutputError(
            f"cannot save {path}: {reason}; free some space, or mend what else is in the way, then run the same with `resume`"
        ) from e


def write_model(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, others: Collection[Path] = ()) -> None:
    """Save a model, its tokenizer and `others` as a plain folder. Each file is written whole, the configuration last. Raises OutputError."""
    staging = folder / STAGING
    with saving(folder):
        shutil.rmtree(staging, ignore_errors=True)
        model.save_pretrained(staging)
        if tokenizer is not None:
            tokenizer.save_pretrained(staging)
        for path in others:
            shutil.copyfile(path, staging / path.name)
        for path in staging.glob("*.safetensors"):
            shutil.copymode(staging / "config.json", path)  # safetensors has written them for their owner alone
        for path in sorted(staging.iterdir(), key=lambda path: path.name == "config.json"):
            os.replace(path, folder / path.name)
        staging.rmdir()


def _read(folder: Path) -> dict[str, Any]:
    return read_json(folder / RECORD, schema=SCHEMA, version=VERSION, error=TrainingError)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
