"""The EAGLE-3 head that comes along: its size, what it proposes, and the outputs with it."""

import pytest

import treeopt
from treespec.embedded import HEAD_FOLDER
from treespec.models.pairs import Pair


@pytest.fixture(scope="module")
def pair() -> Pair:
    return treeopt.load_pair("embedded-target", "embedded-eagle3", device="cpu")


def test_the_embedded_head_is_small_and_public() -> None:
    files = [file for file in HEAD_FOLDER.iterdir() if file.is_file()]
    assert {file.name for file in files} == {"config.json", "model.safetensors"}
    assert sum(file.stat().st_size for file in files) <= 3_000_000


def test_the_embedded_head_is_right_more_often_than_the_embedded_draft(pair: Pair) -> None:
    first = {}
    for name in ("embedded-eagle3", "embedded-draft"):
        draft = pair if name == "embedded-eagle3" else treeopt.load_pair("embedded-target", name, device="cpu")
        prompts = treeopt.load_prompts("stdlib", draft, num_prompts=4)
        first[name] = treeopt.profile_acceptance(draft, prompts, gen_len=32).rank_probability[0]
    assert first["embedded-eagle3"] > 0.85
    assert first["embedded-eagle3"] > first["embedded-draft"] + 0.05


def test_outputs_with_the_embedded_head_are_those_of_the_target(pair: Pair) -> None:
    prompts = treeopt.load_prompts("stdlib", pair, num_prompts=2, prompt_len=32)
    report = treeopt.evaluate(pair, treeopt.SpeculationTree.k_ary(2, 3), prompts, gen_len=24)
    assert report.lossless == "match"
    assert report.tokens_per_step > 2
