"""`treeopt run`: one text or a conversation, from prompt to figures."""

import json
import math
import os
import re
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from tests.cli.conftest import Outcome
from treeopt.cli import signals
from treeopt.cli.output import Door, Telling, ask
from treeopt.cli.signals import Interrupting
from treespec.models.pairs import load_pair
from treespec.text.generation import generate
from treespec.trees.growmap import GrowMap
from treespec.trees.tree import SpeculationTree

Pair = tuple[Path, Path]
Talk = Callable[..., Outcome]

TEMPLATE = "{% for m in messages %}{{ {'user': 'w1', 'assistant': 'w2', 'system': 'w3'}[m.role] }} {{ m.content }} {% endfor %}{{ closing or 'w4' }}"
FIGURES = re.compile(r"(\d+) tokens? in (\d+) steps?(, (\d+\.\d\d) tokens per step, \d+\.\d tokens per second)?; ended by (\w+)\n")


@pytest.fixture
def talk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Talk:
    """Run `treeopt run ARGS` with words on stdin."""
    from treeopt.cli.main import main

    monkeypatch.chdir(tmp_path)

    def command(*arguments: object, stdin: str | bytes = "") -> Outcome:
        words = ["run", "--device", "cpu", *map(str, arguments)]
        result = CliRunner().invoke(main, words, input=stdin, prog_name="treeopt")
        assert "Traceback" not in result.output
        return Outcome(result.exit_code, result.stdout, result.stderr)

    return command


@pytest.fixture(scope="module")
def chatting(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The tiny pair with a chat template."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("chatting") / "target"
    shutil.copytree(pair[0], folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder, pair[1]


def models(pair: Pair) -> list[object]:
    return ["--target", pair[0], "--draft", pair[1]]


def grown(path: Path) -> Path:
    GrowMap(SpeculationTree.from_paths([(0, 0), (1,), (2,)])).write(path)
    return path


@pytest.mark.parametrize(
    "options", [[], ["--growmap", "t.pt"], ["--dynamic", "--size", 8, "--depth", 3], ["--growmap", "t.pt", "--dynamic"]]
)
def test_the_text_and_its_figures_are_those_of_generate(talk: Talk, pair: Pair, tmp_path: Path, options: list[object]) -> None:
    grown(tmp_path / "t.pt")
    found = talk(*models(pair), "--prompt", "w1 w2 w3", "--max-new-tokens", 24, "--format", "json", *options)
    assert found.code == 0, found.err
    expected = generate(load_pair(*map(str, pair)).alone(), "w1 w2 w3", max_new_tokens=24)
    data = found.json
    assert (data["text"], data["tokens"], data["ended"]) == (expected.text, 24, "length")
    assert data["tokens_per_step"] == pytest.approx(23 / data["steps"])
    assert data["tokens_per_second"] == pytest.approx(23 / data["seconds"])
    assert {"text", "tokens", "steps", "tokens_per_step", "tokens_per_second", "ended"} <= set(data)
    assert ("a chain of 4 tokens is drafted" in found.err) == (options == [])
    shown = talk(*models(pair), "--prompt", "w1 w2 w3", "--max-new-tokens", 24, *options)
    assert (shown.code, shown.out) == (0, f"{expected.text}\n")
    figures = FIGURES.search(shown.err)
    assert figures is not None
    assert (figures[1], figures[2], figures[4], figures[5]) == ("24", str(data["steps"]), f"{data['tokens_per_step']:.2f}", "length")


def test_a_target_alone_decodes_alone(talk: Talk, pair: Pair) -> None:
    found = talk("--target", pair[0], "--prompt", "w1", "--max-new-tokens", 5, "--format", "json")
    assert (found.json["steps"], found.json["tokens_per_step"], found.err) == (4, 1.0, "")
    one = talk("--target", pair[0], "--prompt", "w1", "--max-new-tokens", 1, "--format", "json").json
    assert (one["tokens"], one["steps"], one["tokens_per_step"], one["tokens_per_second"]) == (1, 0, None, None)
    noted = talk("--target", pair[0], "--prompt", "w1", "--drafting", "swor", "--max-new-tokens", 1)
    assert "without --draft nothing is drafted, so --drafting swor changes nothing" in noted.err


def test_the_prompt_is_standard_input_without_its_line_end(talk: Talk, pair: Pair) -> None:
    said = [
        talk("--target", pair[0], "--max-new-tokens", 5, *given, stdin=stdin).out
        for given, stdin in ((["--prompt", "w7 w8"], "w1"), ([], "w7 w8\n"))
    ]
    assert said[0] == said[1] != ""


def test_texts_end_at_stop_strings(talk: Talk, pair: Pair) -> None:
    words = talk(*models(pair), "--prompt", "w1", "--max-new-tokens", 12).out.split()
    found = talk(
        *models(pair), "--prompt", "w1", "--max-new-tokens", 12, "--stop", "none", "--stop", f"{words[4]} {words[5]}", "--format", "json"
    )
    assert (found.json["ended"], found.json["stop"]) == ("stop", f"{words[4]} {words[5]}")
    assert found.json["text"].split() == words[:4]


def test_sampled_texts_depend_on_the_seed(talk: Talk, pair: Pair) -> None:
    texts = [
        talk(*models(pair), "--prompt", "w1", "--max-new-tokens", 12, "--temperature", 1, "--drafting", "swor", "--seed", seed).out
        for seed in (0, 0, 1)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_a_conversation_is_held_over_the_lines_of_standard_input(talk: Talk, chatting: Pair) -> None:
    found = talk(*models(chatting), "--chat", "--max-new-tokens", 6, stdin="w5 w6\n\n  w7\n")
    assert found.code == 0, found.err
    first, second = found.out.splitlines()
    pair = load_pair(*map(str, chatting))
    messages = [{"role": "user", "content": "w5 w6"}]
    expected = generate(pair, messages, max_new_tokens=6)
    assert first == expected.text
    messages += [{"role": "assistant", "content": str(expected.text).strip()}, {"role": "user", "content": "w7"}]
    assert second == generate(pair, messages, max_new_tokens=6).text
    assert len(FIGURES.findall(found.err)) == 2
    data = talk(*models(chatting), "--chat", "--max-new-tokens", 6, "--format", "json", stdin="w5 w6\nw7\n").json
    assert [answer["text"] for answer in data["answers"]] == [first, second]
    assert (data["text"], data["tokens"], data["ended"]) == (second, 12, "length")
    assert data["tokens_per_step"] == pytest.approx(10 / data["steps"])
    nothing = talk(*models(chatting), "--chat", "--format", "json")
    assert (nothing.code, nothing.json["answers"], nothing.json["tokens"], nothing.json["text"]) == (0, [], 0, None)


def test_one_message_is_answered_through_the_template(talk: Talk, chatting: Pair) -> None:
    given = ["--chat", "--prompt", "w5", "--max-new-tokens", 4, "--format", "json"]
    plain = talk(*models(chatting), *given)
    assert plain.json["text"] == talk(*models(chatting), "--prompt", "w1 w5 w4", *given[3:]).json["text"]
    added = talk(*models(chatting), *given, "--system", "w9", "--chat-arg", "closing=w8", "--chat-arg", "other=1")
    assert added.json["text"] == talk(*models(chatting), "--prompt", "w3 w9 w1 w5 w8", *given[3:]).json["text"]
    assert "the chat template does not read other: --chat-arg other changes nothing" in added.err
    noted = talk(*models(chatting), "--prompt", "w5", "--system", "w9", "--max-new-tokens", 1)
    assert "without --chat there is no chat template, so --system changes nothing" in noted.err


def refused(found: Outcome, code: int, words: str) -> None:
    assert (found.code, found.out) == (code, ""), found
    last = found.err.splitlines()[-1]
    assert last.startswith("error: ")
    assert words in last


def test_what_cannot_be_is_said_in_one_line(talk: Talk, pair: Pair, chatting: Pair, tmp_path: Path) -> None:
    tree = grown(tmp_path / "t.pt")
    alone = ["--target", pair[0]]
    refused(talk(*alone, "--growmap", tree, "--prompt", "w1"), 2, "a tree needs a draft model; pass --draft")
    refused(talk(*alone, "--dynamic", "--prompt", "w1"), 2, "--dynamic needs a budget")
    refused(talk(*models(pair), "--size", 4, "--prompt", "w1"), 2, "--size bounds dynamic trees only")
    refused(talk(*models(pair), "--dynamic", "--size", 4, "--depth", 2, "--drafting", "swor", "--prompt", "w1"), 2, "not sampled")
    refused(talk(*alone, "--prompt", ""), 2, "--prompt is empty")
    refused(talk(*alone, "--stop", "", "--prompt", "w1"), 2, "--stop is empty")
    refused(talk(*alone, "--chat-arg", "a=1", "--chat-arg", "a=2", "--chat"), 2, "--chat-arg a is given twice")
    refused(talk(*alone), 1, "standard input is empty, and there is no --prompt")
    refused(talk(*alone, stdin=b"w1 \xff\xfe"), 1, "standard input is no text")
    refused(talk(*alone, stdin="w1 " * 2_000_000), 1, "standard input has more than 4,000,000 characters")
    refused(talk(*alone, stdin="w1 " * 300), 1, "the prompt has 300 tokens, but the target model reads 256")
    refused(talk(*alone, "--chat"), 1, "--chat needs a chat template")
    refused(
        talk("--target", chatting[0], "--chat", stdin="w1 " * 300), 1, "the conversation has 302 tokens, but the target model reads 256"
    )
    bare = tmp_path / "bare"
    shutil.copytree(pair[0], bare, ignore=shutil.ignore_patterns("tokenizer*"))
    refused(talk("--target", bare, "--prompt", "w1"), 1, "comes without a tokenizer")


def test_what_a_model_writes_never_commands_the_terminal(talk: Talk, pair: Pair, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"\x1b[2J\x9b{i}\u202e\r": i for i in range(61)}, unk_token="\x1b[2J\x9b0\u202e\r"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.decoder = decoders.Fuse()
    folder = tmp_path / "bad"
    shutil.copytree(pair[0], folder)
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    shown = talk("--target", folder, "--prompt", "x", "--max-new-tokens", 5)
    assert shown.code == 0, shown.err
    assert re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", shown.out) == []
    assert shown.out.count(r"\x1b[2J\x9b") == 5
    data = talk("--target", folder, "--prompt", "x", "--max-new-tokens", 5, "--format", "json")
    assert "\x1b" not in data.out
    assert data.json["text"].count("\x1b[2J\x9b") == 5


def test_an_error_within_a_text_has_a_line_of_its_own(talk: Talk, pair: Pair, tmp_path: Path) -> None:
    damaged = shutil.copytree(pair[1], tmp_path / "damaged")
    weights = load_file(damaged / "model.safetensors")
    weights["model.norm.weight"].fill_(math.nan)
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    outcome = talk("--target", pair[0], "--draft", damaged, "--prompt", "w3 w4")
    assert outcome.code == 1
    assert "logits are not finite" in outcome.err
    assert outcome.out.strip()
    assert outcome.out.endswith("\n")


def test_pieces_have_another_style_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    for terminal, expected in ((True, "a\tb \x1b[32mc\n\\x1b[31md\x1b[0me\n"), (False, "a\tb c\n\\x1b[31mde\n")):
        stream = io.StringIO()
        stream.isatty = lambda terminal=terminal: terminal  # type: ignore[method-assign, misc]
        monkeypatch.setattr(sys, "stdout", Door(stream, drops=False))
        monkeypatch.setenv("TERM", "xterm")
        for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
            monkeypatch.delenv(name, raising=False)
        telling = Telling()
        for text, styled in (("a\tb ", False), ("c\n\x1b[31md", True), ("e", False)):
            telling.piece(text, styled=styled)
        telling.end_line()
        telling.end_line()
        assert stream.getvalue() == expected


def test_lines_are_asked_for_until_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("a\n\nb"))
    assert [ask("> ") for _ in range(4)] == ["a", "", "b", None]


def test_the_first_interruption_is_for_the_block_and_a_later_one_is_as_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    said, clock = [], [10.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: clock[0])
    before = signal.getsignal(signal.SIGINT)
    with Interrupting(lambda: said.append(1)):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        clock[0] += 2
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert said == [1]
    assert signal.getsignal(signal.SIGINT) is before
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupting(lambda: said.append(2)):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert said == [1]


def on_a_terminal(words: list[str], act: Callable[[int, bytes], None]) -> tuple[str, int]:
    """What a command shows on a terminal, and how it ends; `act` is told of what is shown so far."""
    import pty

    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(TERM="xterm", COLUMNS="100")
        os.environ.pop("NO_COLOR", None)
        os.execv(sys.executable, [sys.executable, "-m", "treeopt", *words])
    shown, started = b"", time.monotonic()
    try:
        while time.monotonic() - started < 60:
            if not select.select([terminal], [], [], 0.1)[0]:
                continue
            try:
                read = os.read(terminal, 1 << 16)
            except OSError:  # the command has ended
                break
            shown += read
            act(terminal, shown)
    finally:
        os.close(terminal)
        status = os.waitpid(child, 0)[1]
    return shown.decode(), os.waitstatus_to_exitcode(status)


@pytest.mark.skipif(os.name == "nt", reason="terminals of Unix")
def test_an_answer_ends_at_ctrl_c_and_the_conversation_goes_on(chatting: Pair) -> None:
    """The target is its own draft, so that much is accepted. Ctrl-C comes with the first words, and the answer may have ended by then."""
    steps = {"asked": False, "ended": False, "again": False, "left": False}

    def act(terminal: int, shown: bytes) -> None:
        if not steps["asked"] and shown.endswith(b"> "):
            steps["asked"] = True
            os.write(terminal, b"w5 w6\n")
        elif not steps["ended"] and b"\x1b[32m" in shown:
            steps["ended"] = True
            os.write(terminal, b"\x03")
        elif steps["ended"] and not steps["again"] and b"ended by" in shown and shown.endswith(b"> "):
            steps["again"] = True
            os.write(terminal, b"w7\n")
        elif steps["again"] and not steps["left"] and shown.count(b"ended by") == 2 and shown.endswith(b"> "):
            steps["left"] = True
            os.write(terminal, b"\x04")

    words = ["run", "--target", str(chatting[0]), "--draft", str(chatting[0]), "--device", "cpu", "--chat", "--max-new-tokens", "200"]
    shown, code = on_a_terminal(words, act)
    assert code == 0, shown
    assert steps == dict.fromkeys(steps, True)
    ends = re.findall(r"ended by (\w+)", shown)
    assert ends[0] in ("interrupted", "length")
    assert len(ends) == 2
    assert "; green: accepted from the draft" in shown


@pytest.mark.skipif(os.name == "nt", reason="terminals of Unix")
def test_a_text_ends_at_ctrl_c_with_its_figures_and_by_the_signal() -> None:
    sent = []

    def act(terminal: int, shown: bytes) -> None:
        if not sent and b"\x1b[32m" in shown:
            sent.append(os.write(terminal, b"\x03"))

    words = [
        "run",
        "--target",
        "embedded-target",
        "--draft",
        "embedded-draft",
        "--device",
        "cpu",
        "--prompt",
        "def main(",
        "--max-new-tokens",
        "1900",
    ]
    shown, code = on_a_terminal(words, act)
    assert code == -signal.SIGINT, shown
    assert re.search(r"tokens in \d+ steps?, .*; ended by interrupted; green: accepted from the draft\r\n$", shown)
    assert "Traceback" not in shown


def test_json_stays_one_object(talk: Talk, pair: Pair) -> None:
    found = talk(*models(pair), "--prompt", "w1", "--max-new-tokens", 3, "--format", "json")
    assert found.out.count("\n") == 1
    assert json.loads(found.out)["tokens"] == 3
