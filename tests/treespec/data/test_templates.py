"""Chat templates are programs from outside: whatever they do ends within limits, and says why."""

import json
import signal
import time
from pathlib import Path

import pytest

from tests.treespec.data.test_chat import chat_tokenizer, load, words, write
from treespec.data.chat import unread_arguments
from treespec.data.rendering import TemplateError, rendered
from treespec.data.slices import ChatOptions
from treespec.errors import DatasetError

USER = [{"role": "user", "content": "a"}]
PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "takes more than 1 s of processor time"),
        ("{{ 5|round(-1000000000) }}", "takes more than 1 s of processor time"),
        ("{{ 'x' * 10**10 }}", "takes more than 512 MB of memory"),
        ("{{ 'x'.ljust(10**9) }}", "takes more than 512 MB of memory"),
        ("{{ '%999999999d' % 1 }}", "takes more than 512 MB of memory"),
        ("{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}", "takes more than 512 MB of memory"),
        ("{{ 'x' * 5000000 }}", "writes 5,000,000 characters for one conversation, above the limit of 4,000,000"),
    ],
)
def test_a_template_without_end_is_ended(template: str, reason: str) -> None:
    rendered(PLAIN, USER, {})  # the process is there
    started = time.process_time()
    with pytest.raises(TemplateError, match=reason) as caught:
        rendered(template, USER, {})
    assert caught.value.broken
    assert time.process_time() - started < 1, "it runs in another process"
    assert rendered(PLAIN, USER, {}) == "a"


def test_an_interruption_leaves_no_answer_to_the_next_conversation() -> None:
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    rendered(PLAIN, USER, {})
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            rendered("{% for i in range(500) %}{% for j in range(5000) %}{% endfor %}{% endfor %}first", USER, {})
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert rendered("second", USER, {}) == "second"


def test_a_template_that_calls_itself_refuses() -> None:
    with pytest.raises(TemplateError, match="refuses the conversation: maximum recursion depth"):
        rendered("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", USER, {})


def test_a_template_without_end_is_told_at_once_and_no_row_is_blamed(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="^the tokenizer's chat template takes more than 512 MB .*; correct it .* drop `chat`"):
        load(write(tmp_path, {"text": "a"}), chat_tokenizer("{{ 'x' * 10**10 }}"), skip_bad_rows=True)


def test_a_conversation_on_which_a_template_does_not_end_is_a_bad_row(tmp_path: Path) -> None:
    template = "{% if messages[0].content == 'b' %}{{ 'x' * 10**10 }}{% endif %}a"
    path = write(tmp_path, {"text": "a"}, {"text": "b"})
    with pytest.raises(DatasetError, match="^chats.jsonl, line 2: the tokenizer's chat template takes more than 512 MB"):
        load(path, chat_tokenizer(template))
    assert len(load(path, chat_tokenizer(template), skip_bad_rows=True)) == 1


def test_the_template_is_transformers_own(tmp_path: Path) -> None:
    """Whatever it may use: tools, arguments, the tokenizer's special tokens, its loop controls and filters."""
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m|tojson }}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}{{ tools|tojson(indent=2) }}{{ thinking }}{{ strftime_now('%%') }}"
    )
    tokenizer, tools = chat_tokenizer(template), [{"name": "f"}]
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "a <b> ü"}]
    known = {"tokenize": False, "add_generation_prompt": True, "tools": tools, "thinking": False}
    arguments = {**tokenizer.special_tokens_map, "tools": tools, "thinking": False}
    assert rendered(template, messages, arguments) == tokenizer.apply_chat_template(messages, **known)


SETTABLE = (
    "{{ bos_token }}{% for m in messages %}{{ {'user': '<u>', 'system': '<sys>'}[m.role] }} {{ m.content }} {% endfor %}"
    "{% if tools %}{{ tools[0].name }} {% endif %}{% if thinking is defined and not thinking %}h{% else %}g{% endif %}"
)


@pytest.mark.parametrize(
    ("row", "options", "expected"),
    [
        ({"text": "a"}, ChatOptions(), "<s> <u> a g"),
        ({"text": "a"}, ChatOptions("b", {"thinking": False}), "<s> <sys> b <u> a h"),
        ({"text": "a", "chat_template_kwargs": {"thinking": True}}, ChatOptions(None, {"thinking": False}), "<s> <u> a g"),
        ({"text": "a", "tools": [{"name": "c"}]}, ChatOptions(), "<s> <u> a c g"),
        ({"text": "a", "system": "d"}, ChatOptions("b"), "<s> <sys> d <u> a g"),
        ({"text": "a"}, ChatOptions(None, {"tools": [{"name": "e"}]}), "<s> <u> a e g"),
    ],
)
def test_templates_get_what_they_are_given(tmp_path: Path, row: object, options: ChatOptions, expected: str) -> None:
    found = load(write(tmp_path, row), chat_tokenizer(SETTABLE), chat_options=options)
    assert words(found.prompts[0].ids) == expected
    assert {key: found.describe()[key] for key in ("system", "chat_args")} == {"system": options.system, "chat_args": options.arguments}
    assert unread_arguments(chat_tokenizer(SETTABLE), ChatOptions(None, {"thinking": 1, "enable": 1})) == ["enable"]


def test_what_is_left_out_of_conversations_is_counted(tmp_path: Path) -> None:
    opening = [{"role": "assistant", "content": "h"}, {"role": "user", "content": ["a", {"type": "image"}]}]
    path = write(tmp_path, {"messages": opening}, {"text": "b"})
    found = load(path)
    assert [words(prompt.ids) for prompt in found] == ["<s> <u> a <a>", "<s> <u> b <a>"]
    counted = {"message of the assistant before the first of a user": 1, "part of the type image": 1}
    assert json.loads(json.dumps(found.describe()["left_out"])) == counted
    assert load(path, chat=False, prompt_len=1).left_out == {"part of the type image": 1}, "as text, the opening is there"
