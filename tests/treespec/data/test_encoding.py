"""Text becomes tokens with one BOS and without an EOS, as the tokenizer has it; its failures are a line each."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from treespec.data.encoding import encoded
from treespec.data.prompts import load_prompts
from treespec.errors import DatasetError, ModelError
from treespec.files.kinds import LFS_POINTER
from treespec.models.loading import load_tokenizer

WORDS = ["<unk>", "<s>", "</s>", "[gMASK]", "<sop>", *"abcdefgh"]


def tokenizer(template: str = "<s> $A", unknown: str | None = "<unk>", split: Any = None) -> PreTrainedTokenizerFast:
    ids = {word: i for i, word in enumerate(WORDS) if word != "<unk>" or unknown}
    words = Tokenizer(models.WordLevel(ids, unk_token="<unk>") if unknown else models.WordLevel(ids))
    words.pre_tokenizer = split or pre_tokenizers.WhitespaceSplit()
    special = ["<s>", "</s>", "[gMASK]", "<sop>"]
    words.post_processor = processors.TemplateProcessing(single=template, special_tokens=[(word, ids[word]) for word in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token=unknown, additional_special_tokens=special[2:]
    )


@pytest.mark.parametrize(
    ("template", "text", "expected"),
    [
        ("<s> $A", "a b", "<s> a b"),
        ("<s> $A", "<s> a b", "<s> a b"),
        ("<s> $A", "<s><s> a <s> b", "<s> a <s> b"),
        ("$A", "<s> <s> a", "<s> <s> a"),
        ("$A", "a b", "a b"),
        ("<s> $A </s>", "a b", "<s> a b"),
        ("$A </s>", "a b", "a b"),
        ("$A </s>", "a </s>", "a </s>"),
        ("[gMASK] <sop> $A", "[gMASK]<sop> a", "[gMASK] <sop> a"),
        ("<s> $A </s>", "", "<s>"),
        ("<s> $A", "", "<s>"),
    ],
)
def test_a_prompt_begins_once_and_does_not_end(template: str, text: str, expected: str) -> None:
    assert " ".join(WORDS[i] for i in encoded(tokenizer(template), text, "row")) == expected


def test_rows_of_exactly_the_length_keep_their_last_word(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "a b c"}) + "\n" + json.dumps({"text": "a b"}) + "\n")
    found = load_prompts(str(path), tokenizer("<s> $A </s>"), num_prompts=2, prompt_len=4)
    assert ([prompt.ids for prompt in found], found.skipped) == ([(1, 5, 6, 7)], 1)


def test_a_tokenizer_that_panics_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    slow = tokenizer(split=pre_tokenizers.Split(Regex(r"(a+)+$"), "isolated"))
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "a" * 60 + "b"}) + "\n" + json.dumps({"text": "b"}) + "\n")
    with pytest.raises(
        DatasetError, match=r"^rows.jsonl, line 1: the tokenizer fails on this text \(PanicException: Onig: .*; correct its"
    ):
        load_prompts(str(path), slow, num_prompts=2, prompt_len=1)
    assert len(load_prompts(str(path), slow, num_prompts=2, prompt_len=1, skip_bad_rows=True)) == 1
    assert capfd.readouterr().err == ""


def test_a_tokenizer_that_panics_when_it_is_loaded_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}}))
    with pytest.raises(ModelError, match=r"cannot be loaded: its tokenizer: PanicException: Precompiled"):
        load_tokenizer(str(tmp_path))
    path.write_bytes(LFS_POINTER)
    with pytest.raises(ModelError, match=r"tokenizer.json of .* is a pointer of git-lfs and not the file itself"):
        load_tokenizer(str(tmp_path))
    assert capfd.readouterr().err == ""


def test_a_tokenizer_without_its_unknown_token_is_one_line() -> None:
    known = tokenizer(unknown=None)
    assert encoded(known, "a", "row") == (1, 5)
    with pytest.raises(DatasetError, match=r"^row: the tokenizer fails on this text \(Exception: WordLevel error: Missing \[UNK\]"):
        encoded(known, "z", "row")


def test_an_interruption_is_no_failure_of_the_tokenizer() -> None:
    class Interrupted:
        def encode(self, text: str) -> list[int]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encoded(Interrupted(), "a", "row")


def test_bytes_that_are_no_utf8_are_no_text() -> None:
    with pytest.raises(
        DatasetError, match=r"^row holds half a surrogate pair \(\\udcff at character 2\), which is no text; pass text in UTF-8"
    ):
        encoded(tokenizer(), "ab\udcff", "row")
