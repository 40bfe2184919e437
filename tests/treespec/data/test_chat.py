"""Conversations as prompts: every kind of row, against tokens written out by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from treespec.data.prompts import load_prompts
from treespec.data.slices import ChatOptions
from treespec.errors import DatasetError, NoPromptError

WORDS = ["<unk>", "<s>", "<u>", "<a>", "<sys>", "</s>", *"abcdefgh"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'tool' %}{{ raise_exception('only user, assistant and system roles') }}{% endif %}"
    "{{ {'user': '<u>', 'assistant': '<a>', 'system': '<sys>'}[m.role].strip() }} {{ m.content.strip() }} "
    "{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


def chat_tokenizer(template: Any = TEMPLATE) -> PreTrainedTokenizerFast:
    """Words of one letter; like Llama's, it puts <s> in front of everything that it encodes."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "additional_special_tokens": ["<u>", "<a>", "<sys>"]}
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", chat_template=template, **special)


def write(folder: Path, *rows: object) -> Path:
    path = folder / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load(path: Path, tokenizer: Any = None, **options: Any) -> Any:
    return load_prompts(str(path), tokenizer or chat_tokenizer(), **{"num_prompts": 9, "prompt_len": 20, "chat": True, **options})


def words(ids: tuple[int, ...]) -> str:
    return " ".join(WORDS[i] for i in ids)


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


MULTI = [message("system", "h"), message("user", "a b"), message("assistant", "c"), message("user", "d"), message("assistant", "e f")]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "a b"}, "<s> <u> a b <a>"),
        ({"prompt": "a b"}, "<s> <u> a b <a>"),
        ({"turns": ["a b", "c"]}, "<s> <u> a b <a>"),
        ({"prompt": ["a b", "c"]}, "<s> <u> a b <a>"),
        ({"messages": MULTI[:2]}, "<s> <sys> h <u> a b <a>"),
        ({"messages": MULTI[:3]}, "<s> <sys> h <u> a b <a>"),
        ({"messages": MULTI}, "<s> <sys> h <u> a b <a> c </s> <u> d <a>"),
        ({"prompt": MULTI}, "<s> <sys> h <u> a b <a> c </s> <u> d <a>"),
        ({"input_ids": [1, 2, 6, 3]}, "<s> <u> a <a>"),
    ],
)
def test_a_row_is_a_conversation_up_to_the_models_turn(tmp_path: Path, row: object, expected: str) -> None:
    [prompt] = load(write(tmp_path, row))
    assert words(prompt.ids) == expected


def test_there_is_one_bos_where_plain_encoding_would_make_two(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer()
    doubled = tokenizer.encode(tokenizer.apply_chat_template([message("user", "a")], tokenize=False, add_generation_prompt=True))
    assert doubled.count(1) == 2
    [prompt] = load(write(tmp_path, {"text": "a"}), tokenizer)
    assert list(prompt.ids) == doubled[1:]


def test_the_continuation_is_the_reply_to_the_last_message_of_the_user(tmp_path: Path) -> None:
    path = write(tmp_path, {"messages": MULTI}, {"messages": MULTI[:4]}, {"turns": ["a", "b"]})
    assert [words(p.continuation) for p in load(path, continuation_len=5)] == ["e f", "", ""]
    assert [words(p.continuation) for p in load(path, continuation_len=1)] == ["e", "", ""]
    assert [words(p.continuation) for p in load(path)] == ["", "", ""]


def test_conversations_are_kept_whole_and_those_that_are_too_long_counted(tmp_path: Path) -> None:
    path = write(tmp_path, {"text": "a"}, {"text": "a b c d"}, {"text": "a b"})
    found = load(path, prompt_len=5)
    assert [words(p.ids) for p in found] == ["<s> <u> a <a>", "<s> <u> a b <a>"]
    assert [p.row for p in found] == [0, 2]
    described = found.describe()
    assert {key: described[key] for key in ("too_long", "skipped", "prompt_len", "chat")} == {
        "too_long": 1,
        "skipped": 0,
        "prompt_len": 5,
        "chat": True,
    }
    with pytest.raises(NoPromptError, match="`prompt_len` is 3, but the shortest of 3 has 4 tokens; pass `prompt_len` 4 or more"):
        load(path, prompt_len=3)


def test_a_conversation_that_the_template_refuses_is_a_bad_row(tmp_path: Path) -> None:
    tool = {"messages": [message("tool", "a"), message("user", "b")]}
    unknown = {"messages": [message("critic", "a"), message("user", "b")]}
    silent = {"messages": [message("system", "a")]}
    path = write(tmp_path, tool, unknown, silent, {"text": "a"})
    with pytest.raises(
        DatasetError, match=r"^chats\.jsonl, line 1: the tokenizer's chat template refuses .*: only user, assistant and system"
    ):
        load(path)
    with pytest.raises(DatasetError, match=r"^chats\.jsonl, line 2: the tokenizer's chat template refuses"):
        load(path, start=1)
    with pytest.raises(DatasetError, match=r'^chats\.jsonl, line 3: the conversation has no message of role "user"'):
        load(path, start=2)
    found = load(path, skip_bad_rows=True)
    assert [p.row for p in found] == [3]
    assert len(found.bad) == 3


@pytest.mark.parametrize("template", [None, {"tool_use": TEMPLATE}])
def test_a_tokenizer_without_a_template_is_told_at_once(tmp_path: Path, template: Any) -> None:
    for skip in (False, True):
        with pytest.raises(DatasetError, match=r"`chat` needs a chat template, .*drop `chat`"):
            load(write(tmp_path, {"text": "a"}), chat_tokenizer(template), skip_bad_rows=skip)
    assert load(write(tmp_path, {"text": "a"}), chat_tokenizer(template), chat=False, prompt_len=2).prompts[0].ids == (1, 6)


@pytest.mark.parametrize("template", ["{{ messages[0]['content' }}", "{{ messages|nothing }}", "a\n{% endfor %}"])
def test_a_broken_template_is_told_at_once_and_no_rows_are_blamed(tmp_path: Path, template: str) -> None:
    line = 2 if "\n" in template else 1
    with pytest.raises(DatasetError, match=f"^the tokenizer's chat template is broken at its line {line}: .*; correct it .* drop `chat`"):
        load(write(tmp_path, {"text": "a"}), chat_tokenizer(template), skip_bad_rows=True)


@pytest.mark.parametrize("template", [5, ""])
def test_a_template_that_is_no_text_is_told_at_once(tmp_path: Path, template: Any) -> None:
    with pytest.raises(DatasetError, match=r"^the tokenizer's chat template is a.*, but it must be a text; correct it"):
        load(write(tmp_path, {"text": "a"}), chat_tokenizer(template))


def test_options_that_the_template_refuses_are_told_at_once(tmp_path: Path) -> None:
    strict = chat_tokenizer("{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ messages[0].content }}")
    path = write(tmp_path, {"text": "a"})
    assert load(path, strict).prompts
    with pytest.raises(
        DatasetError, match=r"^with `system`, the tokenizer's chat template refuses the conversation: no system; correct or drop"
    ):
        load(path, strict, chat_options=ChatOptions("b"))


def test_ids_need_no_tokenizer_and_are_never_empty(tmp_path: Path) -> None:
    path = write(tmp_path, {"input_ids": [1, 2]}, {"input_ids": []})
    [prompt] = load_prompts(str(path), None, num_prompts=1, prompt_len=9, vocabulary_size=3, chat=True)
    assert prompt.ids == (1, 2)
    with pytest.raises(DatasetError, match="line 2: the row has no tokens, but a prompt has at least one"):
        load(path)


def test_a_conversation_of_no_tokens_is_a_bad_row(tmp_path: Path) -> None:
    """Which a template makes that writes neither a BOS nor who speaks."""
    bare = chat_tokenizer("{% for m in messages %}{{ m.content }}{% endfor %}")
    path = write(tmp_path, {"text": "a b"}, {"text": ""}, {"text": "c"})
    with pytest.raises(DatasetError, match=r"^chats\.jsonl, line 2: the row has no tokens, but a prompt has at least one"):
        load(path, bare)
    found = load(path, bare, skip_bad_rows=True)
    assert ([words(p.ids) for p in found], [row.name for row in found.bad]) == (["a b", "c"], ["chats.jsonl, line 2"])


def test_conversations_in_parquet_files_and_saved_folders_are_the_same(tmp_path: Path) -> None:
    datasets, pyarrow = pytest.importorskip("datasets"), pytest.importorskip("pyarrow")
    records = [{"id": i, "messages": MULTI[: 2 + i]} for i in range(4)]
    lines = load(write(tmp_path, *records), continuation_len=2)
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(records), tmp_path / "chats.parquet")
    datasets.Dataset.from_list(records).save_to_disk(tmp_path / "saved")
    assert len(lines) == 4
    for path in (tmp_path / "chats.parquet", tmp_path / "saved"):
        assert load(path, continuation_len=2).fingerprint == lines.fingerprint
