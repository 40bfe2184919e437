"""The folder of a training run: its record, its checkpoints, and in the end a plain model folder."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from treespec.errors import OutputError, TrainingError
from treespec.files import check_writable, make_folder, read_json, refuse, write_json

SCHEMA = "treeopt.training"
RECORD = "training.json"
_STAGING = ".saving"
_WHOLE = ("config.json", "optimizer.pt", "scheduler.pt", "trainer_state.json")
"""What every checkpoint has beside weights and states of random streams; the last one is written last."""


def require_free(folder: Path, *, resume: bool) -> None:
    """Make the folder where it is missing. Raises OutputError where it cannot be written, TrainingError where it is taken.

    A folder that holds a model or checkpoints without a record of training belongs to something else. One that holds a
    record needs `resume`; with it, an empty folder is as good as a new one.
    """
    make_folder(folder)
    check_writable(folder / RECORD)
    if (folder / RECORD).exists():
        if not resume:
            raise TrainingError(f"{folder} holds a training run already; pass --resume to go on with it, or another folder")
        return
    foreign = sorted(path.name for pattern in ("config.json", "*.safetensors", "checkpoint-*") for path in folder.glob(pattern))
    if foreign:
        raise TrainingError(f"{folder} holds another model ({foreign[0]}), which training would overwrite; pass another folder")


@dataclass(frozen=True)
class Run:
    """How far a run has come: its record once it is finished, else its newest whole checkpoint, else nothing."""

    record: dict[str, Any] | None = None
    checkpoint: Path | None = None

    @property
    def history(self) -> list[dict[str, Any]] | None:
        """What was logged, where the checkpoint is that of the last step, so that there is nothing left to train."""
        if self.checkpoint is None:
            return None
        state = json.loads((self.checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        history: list[dict[str, Any]] = state["log_history"]
        return history if state["global_step"] >= state["max_steps"] else None


def open_run(folder: Path, known: Mapping[str, Any]) -> Run:
    """Record a new run, or check that a run that is there is `known` and say how far it has come.

    `known` is plain JSON: groups of named values that decide what is trained. Raises TrainingError that names what differs.
    """
    if not (folder / RECORD).exists():
        write_json(folder / RECORD, {"schema": SCHEMA, "version": 1, "finished": False, **known})
        return Run()
    found = read_json(folder / RECORD, schema=SCHEMA, version=1, error=TrainingError)
    for group, values in json.loads(json.dumps(known)).items():
        before = found.get(group)
        if not isinstance(before, dict):
            raise TrainingError(f"{folder / RECORD} has no {group}; it was not written by this treeopt, pass another folder")
        for name, value in values.items():
            if before.get(name) != value:
                raise TrainingError(
                    f"{folder} was trained with {name.replace('_', '-')} {_short(before.get(name))}, and now it is {_short(value)}; "
                    "resume with the same, or train into another folder"
                )
    return Run(record=found) if found.get("finished") else Run(checkpoint=newest_checkpoint(folder))


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step that was written to its end; those that were not are passed over."""
    steps = {int(number): path for path in folder.glob("checkpoint-*") if (number := path.name.removeprefix("checkpoint-")).isdecimal()}
    return next((path for step, path in sorted(steps.items(), reverse=True) if _is_whole(path, step)), None)


def _is_whole(checkpoint: Path, step: int) -> bool:
    if not all((checkpoint / name).is_file() for name in _WHOLE):
        return False
    if not any(checkpoint.glob("*.safetensors")) or not any(checkpoint.glob("rng_state*.pth")):
        return False
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except ValueError:  # torn
        return False
    return isinstance(state, dict) and state.get("global_step") == step


def write_model(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Save a model and its tokenizer as a plain folder, file by file whole, the configuration last. Raises OutputError."""
    staging = folder / _STAGING
    try:
        shutil.rmtree(staging, ignore_errors=True)
        model.save_pretrained(staging)
        if tokenizer is not None:
            tokenizer.save_pretrained(staging)
        for path in sorted(staging.iterdir(), key=lambda path: path.name == "config.json"):
            os.replace(path, folder / path.name)
        staging.rmdir()
    except OSError as e:
        refuse(folder, e)
    except Exception as e:  # safetensors has an error of its own for a full disk
        raise OutputError(f"cannot write the model to {folder}: {' '.join(str(e).split())[:200]}") from e


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
