"""Conversations in the spellings that data sets have: all become the same messages, and what is left out is counted."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.reference.rows import write_records
from treespec.data.chat import talk_of
from treespec.data.messages import BEFORE
from treespec.data.rows import Row, row_of
from treespec.data.slices import ChatOptions
from treespec.data.sources import open_rows
from treespec.errors import DatasetError, SettingsError


def said(*pairs: tuple[str, str]) -> tuple[dict[str, str], ...]:
    return tuple({"role": role, "content": content} for role, content in pairs)


def user(content: object) -> dict[str, object]:
    return {"role": "user", "content": content}


TWO = said(("user", "a"), ("assistant", "b"), ("user", "c"))
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [*TWO]},
        {"messages": json.dumps(TWO)},
        {"prompt": [*TWO]},
        {"conversation": [*TWO]},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"}]},
        {"conversations": [{"from": "user", "value": "a"}, {"from": "chatgpt", "value": "b"}, {"from": "Human", "value": "c"}]},
        {"conversations": [{"from": "user", "value": "a"}, {"from": "bing", "value": "b"}, {"role": "user", "text": "c"}]},
        {"messages": [{"role": "prompter", "content": "a"}, {"role": "ai", "content": "b"}, user("c")]},
        {"messages": [user([{"type": "text", "text": "a"}]), {"role": "assistant", "content": ["b"]}, user({"type": "text", "text": "c"})]},
        {"messages": [{"role": "user", "content": "a", "name": None}, *TWO[1:]]},
    ],
)
def test_every_spelling_of_a_conversation_is_the_same(record: dict[str, object]) -> None:
    row = row_of(record, name="row")
    assert (row.messages, row.text, dict(row.left_out)) == (TWO, "a\nb\nc", {})


@pytest.mark.parametrize(
    ("record", "messages", "reply"),
    [
        ({"instruction": "a", "input": "", "output": "b"}, said(("user", "a")), "b"),
        ({"instruction": "a", "input": "c", "output": "b"}, said(("user", "a\nc")), "b"),
        ({"instruction": "a", "context": "c", "response": "b"}, said(("user", "a\nc")), "b"),
        ({"question": "a", "answer": "b"}, said(("user", "a")), "b"),
        ({"question": "a", "answer": ["b"]}, said(("user", "a")), None),
    ],
)
def test_instructions_and_questions_have_their_replies_beside_them(record: Any, messages: Any, reply: str | None) -> None:
    row = row_of(record, name="row")
    assert (row.messages, row.reply) == (messages, reply)


def test_a_key_that_is_named_is_the_only_text() -> None:
    row = row_of({"instruction": "a", "input": "c", "output": "b"}, name="row", keys=("instruction",))
    assert (row.text, row.reply) == ("a", None)


def test_tools_are_called_and_answer() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    messages = [
        user("a"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "7"},
    ]
    row = row_of({"messages": [*messages, {"role": "assistant", "content": "b"}], "tools": ['{"name": "f"}']}, name="row")
    assert row.messages[1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert row.messages[2] == {"role": "tool", "content": "2", "tool_call_id": "7"}
    assert (len(row.messages), row.reply) == (3, "b")
    assert talk_of(row, ChatOptions()).arguments == {"tools": [{"name": "f"}]}


@pytest.mark.parametrize(
    "message",
    [
        {"tool_calls": [CALL]},
        {"content": [], "tool_calls": [CALL]},
        {"content": None, "tool_calls": json.dumps([CALL])},
        {"content": [{"type": "thinking", "thinking": "b"}], "tool_calls": [CALL]},
    ],
)
def test_who_calls_a_tool_need_not_say_anything(message: dict[str, object]) -> None:
    row = row_of({"messages": [user("a"), {"role": "assistant", **message}, {"role": "tool", "content": {"x": 1}}]}, name="row")
    assert row.messages[1:] == ({"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": '{"x": 1}'})


def test_calls_and_answers_have_roles_of_their_own_in_some_data_sets() -> None:
    turns = [("human", "a"), ("tool_call", "f"), ("tool_response", "2"), ("gpt", "b")]
    row = row_of({"conversations": [{"from": role, "value": text} for role, text in turns]}, name="row")
    assert (row.messages, row.reply) == (said(("user", "a"), ("assistant", "f"), ("tool", "2")), "b")


def test_what_is_left_out_is_counted() -> None:
    picture = {"type": "image_url", "image_url": {"url": "x"}}
    row = row_of(
        {"messages": [*said(("system", "s"), ("assistant", "hi")), user([picture, {"type": "text", "text": "a"}, picture])]}, name="row"
    )
    assert row.messages == said(("system", "s"), ("user", "a"))
    assert row.left_out == {"part of the type image_url": 2, BEFORE: 1}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"messages": [user(None)]}, '"content" of message 0 in "messages" is null'),
        ({"messages": [user([])]}, '"content" of message 0 in "messages" is an empty list'),
        ({"messages": [user([{"type": "image"}])]}, 'the "content" of message 0 in "messages" has no part of text'),
        (
            {"messages": [user("a"), {"role": "assistant", "content": None, "tool_calls": []}]},
            '"content" of message 1 in "messages" is null',
        ),
        ({"messages": [{"content": "a"}]}, 'message 0 in "messages" has no "role" and no "from" (its keys: \'content\')'),
        ({"messages": [{"role": None, "content": "a"}]}, 'the "role" of message 0 in "messages" is null'),
        ({"conversations": [{"from": 5, "value": "a"}]}, 'the "role" of message 0 in "conversations" is a number'),
        ({"conversations": []}, '"conversations" is an empty list'),
        ({"text": "x" * 4_000_001}, 'row: "text" has 4,000,001 characters, above the limit of 4,000,000; cut it into rows'),
    ],
)
def test_what_is_no_conversation_is_named(record: object, reason: str) -> None:
    with pytest.raises(DatasetError) as caught:
        row_of(record, name="row")
    assert str(caught.value).startswith("row: ")
    assert reason in str(caught.value)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "folder"])
def test_what_belongs_to_a_conversation_is_read_from_every_kind_of_file(tmp_path: Path, suffix: str) -> None:
    record = {"conversations": [{"from": "human", "value": "a"}], "system": "s", "tools": '[{"name": "f"}]', "id": 5}
    (row,) = open_rows(str(write_records(tmp_path / f"rows.{suffix}", [record])))[1]
    assert isinstance(row, Row)
    talk = talk_of(row, ChatOptions("other", {"thinking": False}))
    assert talk.messages == said(("system", "s"), ("user", "a"))
    assert talk.arguments == {"tools": [{"name": "f"}], "thinking": False}


def test_a_rows_own_arguments_go_before_those_of_all_rows() -> None:
    row = row_of({"text": "a", "chat_template_kwargs": {"thinking": True, "unset": None}}, name="row")
    talk = talk_of(row, ChatOptions("s", {"thinking": False, "date": "today"}))
    assert talk.arguments == {"thinking": True, "date": "today"}
    assert talk.messages == said(("system", "s"), ("user", "a"))
    own = row_of({"messages": [*said(("system", "mine"), ("user", "a"))]}, name="row")
    assert talk_of(own, ChatOptions("s")).messages == own.messages


@pytest.mark.parametrize(
    ("beside", "reason"),
    [
        ({"tools": "hammer"}, 'row: "tools" is a string, but it must be a list of objects'),
        ({"chat_template_kwargs": [1]}, 'row: "chat_template_kwargs" is a list'),
        (
            {"chat_template_kwargs": {"chat_template": "{{ 1 }}"}},
            "row: chat_template_kwargs has 'chat_template', which cannot be an argument",
        ),
    ],
)
def test_arguments_that_are_none_make_a_bad_row_of_a_conversation_only(beside: dict[str, object], reason: str) -> None:
    row = row_of({"text": "a", **beside}, name="row")
    with pytest.raises(DatasetError) as caught:
        talk_of(row, ChatOptions())
    assert reason in str(caught.value)


@pytest.mark.parametrize("name", ["tokenize", "messages", "add_generation_prompt", "a-b", ""])
def test_names_that_are_no_arguments_of_templates_are_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="cannot be an argument of a chat template"):
        ChatOptions(None, {name: 1})
