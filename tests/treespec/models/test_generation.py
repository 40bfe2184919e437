"""What is taken from a model's generation config: the tokens at which `generate` stops, and what is not applied of the rest."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from treespec.decoding.loop import Request, decode_autoregressive
from treespec.errors import ModelError
from treespec.models.generation import not_applied
from treespec.models.info import ModelInfo
from treespec.models.pairs import load_target

Build = Callable[..., PreTrainedModel]
PROMPT = (3, 5, 7, 11)


@pytest.fixture
def folder(tmp_path: Path, tiny_module: Build, tokenizer_into: Callable[..., None]) -> Callable[..., Path]:
    """A model whose config has one EOS and whose tokenizer another (3); `generation`: the file's content, None without the file."""

    def make(generation: Any, own: Any = None) -> Path:
        tiny_module("llama", eos_token_id=own).save_pretrained(tmp_path)
        tokenizer_into(tmp_path)
        path = tmp_path / "generation_config.json"
        path.unlink(missing_ok=True)
        if generation is not None:
            path.write_text(json.dumps(generation))
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("generation", "own", "wanted"),
    [
        ({"eos_token_id": None}, 2, set()),
        ({}, 2, set()),
        ({"eos_token_id": [5, 7]}, 2, {5, 7}),
        ({"eos_token_id": 5}, None, {5}),
        ({"eos_token_id": []}, 2, set()),
        ({"eos_token_id": 4000}, 2, {4000}),
        (None, 2, {2}),
        (None, [2, 9], {2, 9}),
        (None, None, set()),
    ],
)
def test_decoding_stops_where_generate_stops(generation: Any, own: Any, wanted: set[int], folder: Callable[..., Path]) -> None:
    target = load_target(str(folder(generation, own)))
    assert target.eos_token_ids == wanted
    module, ids = target.target.module, torch.tensor([PROMPT])
    # a text that holds every token sooner or later, so that each EOS ends it somewhere
    if wanted:
        expected = module.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=60, do_sample=False, pad_token_id=0)
        records = decode_autoregressive(target.target, Request(PROMPT, 60, target.eos_token_ids))
        assert [t for record in records for t in record.tokens] == expected[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize("value", [-1, "x", True, 5.0, [5, -1], [[5]], {"id": 5}, 1 << 70, float("inf")])
def test_values_that_are_no_ids_are_refused_before_a_weight_is_read(value: Any, folder: Callable[..., Path]) -> None:
    path = folder({"eos_token_id": value})
    with pytest.raises(ModelError, match=r"eos_token_id is .*, but it must be a token id \(0 or more\), a list of them or null; correct"):
        ModelInfo.of(str(path))


@pytest.mark.parametrize("content", ["[1]", "nothing", '"x"', ""])
def test_a_file_that_is_no_generation_config_is_refused(content: str, folder: Callable[..., Path]) -> None:
    path = folder(None)
    (path / "generation_config.json").write_text(content)
    with pytest.raises(ModelError, match=r"generation_config\.json"):
        ModelInfo.of(str(path))


GREEDY = [
    ({}, ()),
    ({"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "bad_words_ids": [], "min_length": 0, "num_beams": 1}, ()),
    ({"temperature": 0.6, "top_p": 0.9, "top_k": 20}, ()),
    ({"do_sample": False, "temperature": 0.6}, ()),
    ({"repetition_penalty": 1.2, "eos_token_id": 2}, ("repetition_penalty 1.2",)),
    (
        {"no_repeat_ngram_size": 3, "bad_words_ids": [[5]], "suppress_tokens": [7]},
        ("no_repeat_ngram_size 3", "bad_words_ids [[5]]", "suppress_tokens [7]"),
    ),
    ({"min_length": 9, "min_new_tokens": 4, "forced_eos_token_id": 0}, ("min_length 9", "min_new_tokens 4", "forced_eos_token_id 0")),
    ({"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 1.0}, ("do_sample true", "temperature 0.6", "top_k 20")),
]


@pytest.mark.parametrize(("given", "wanted"), GREEDY)
def test_what_greedy_generate_would_do_otherwise_is_named(given: dict[str, Any], wanted: tuple[str, ...]) -> None:
    assert sorted(not_applied(given, sampled=False)) == sorted(wanted)


def test_what_the_caller_chose_itself_is_not_named() -> None:
    given = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.05, "repetition_penalty": 1.1}
    assert not_applied(given, sampled=True) == ("repetition_penalty 1.1", "top_k 20", "min_p 0.05")


def test_processors_that_are_applied_are_not_named() -> None:
    given = {
        "repetition_penalty": 1.1,
        "min_length": 4,
        "forced_eos_token_id": 3,
        "remove_invalid_values": True,
        "num_beams": 2,
        "min_p": 0.1,
    }
    assert not_applied(given, sampled=True, processed=True) == ("num_beams 2", "min_p 0.1")
    assert len(not_applied(given, sampled=True)) == len(given)
