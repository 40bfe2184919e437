"""A tiny run of tuning: the embedded pair on ten short prompts, at toy sizes."""

from typing import Any

import pytest

import treeopt


@pytest.fixture(scope="session")
def pair() -> Any:
    return treeopt.load_pair("embedded-target", "embedded-draft")


@pytest.fixture(scope="session")
def prompts(pair: Any) -> Any:
    return treeopt.load_prompts("stdlib", pair, num_prompts=10, prompt_len=16)


@pytest.fixture(scope="session")
def toy() -> dict[str, Any]:
    """Settings of a run of two seconds."""
    return {
        "gen_len": 8,
        "max_branch": 4,
        "sizes": [1, 2, 4],
        "widths": [1, 2],
        "repetitions": 4,
        "choose_prompts": 2,
        "evaluate_prompts": 2,
        "batch_size": 2,
    }
