"""A tiny pair on disk to train with, and an uninterrupted run."""

import json

import pytest

from tests.reference.pairs import prompt_set, tiny_pair
from tests.reference.training import SETTINGS
from treeopt.training.settings import TrainSources
from treeopt.training.train import TrainResult, train_draft


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> TrainSources:
    """Folders of a random target and of a draft with much noise on the same weights; rows of random token ids."""
    folder = tmp_path_factory.mktemp("pair")
    pair = tiny_pair()
    pair.target.module.save_pretrained(folder / "target")
    pair.draft.module.save_pretrained(folder / "weak")
    with (folder / "rows.jsonl").open("w") as file:
        for prompt in prompt_set(140, 30):
            file.write(json.dumps({"input_ids": prompt.ids}) + "\n")
    return TrainSources(str(folder / "target"), str(folder / "rows.jsonl"), draft=str(folder / "weak"))


@pytest.fixture(scope="session")
def whole(sources: TrainSources, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """An uninterrupted run."""
    return train_draft(sources, SETTINGS, tmp_path_factory.mktemp("runs") / "whole")
