"""Prompts of any length, and conversations with arguments, from the command line to the records."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

Pair = tuple[Path, Path]
TEMPLATE = (
    "{% for m in messages %}{{ {'user': 'w1', 'system': 'w2'}[m.role] }} {{ m.content }} {% endfor %}{% if thinking %}w3 {% endif %}w4"
)


def models(pair: Pair) -> list[object]:
    return ["--target", pair[0], "--draft", pair[1], "--device", "cpu"]


def baseline(pair: Pair, dataset: Path) -> list[object]:
    return ["evaluate", "--target", pair[0], "--device", "cpu", "--mode", "baseline", "--dataset", dataset, "--gen-len", 2]


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty questions of 20 to 115 tokens, no two of them equally long."""
    path = tmp_path_factory.mktemp("data") / "questions.jsonl"
    texts = [" ".join(f"w{(row + i * i) % 60}" for i in range(20 + 5 * row)) for row in range(20)]
    path.write_text("".join(json.dumps({"question": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def chatty(pair: Pair, tmp_path: Path) -> Pair:
    folders = tmp_path / "target", tmp_path / "draft"
    for folder, source in zip(folders, pair, strict=True):
        shutil.copytree(source, folder)
        (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folders


def test_short_rows_are_taken_whole_by_every_command(run: Any, pair: Pair, questions: Path) -> None:
    where = [*models(pair), "--dataset", questions, "--gen-len", 4, "--format", "json"]
    whole = "rows are taken whole; --prompt-len cuts them\n"
    outcome = run("evaluate", *where, "--dynamic", "--size", 3, "--depth", 2)
    assert (outcome.code, outcome.json["prompts"], outcome.json["lossless"]) == (0, 16, "match"), outcome.err
    assert f"fewer than 16 rows have 128 tokens, so {whole}" in outcome.err
    used = outcome.json["prompt_set"]
    assert {key: used[key] for key in ("whole", "cut", "skipped", "prompt_len", "end")} == {
        "whole": True,
        "cut": 0,
        "skipped": 0,
        "prompt_len": 95,
        "end": 16,
    }
    outcome = run("profile", "acceptance", *where, "--max-branch", 2)
    assert (outcome.code, outcome.json["prompts"], outcome.json["positions"]) == (0, 20, 60), outcome.err
    assert whole in outcome.err
    assert "20 prompts of the 64 asked for: none left out of 20 rows" in outcome.err
    for method in ("teacher-forced", "on-policy"):
        outcome = run("potential", *where, "--method", method)
        assert (outcome.code, outcome.json["prompts"], outcome.json["positions"]) == (0, 20, 60), outcome.err
        assert ("the second half is the text that is measured" in outcome.err) == (method == "teacher-forced")


def test_cut_and_skipped_rows_are_counted(run: Any, pair: Pair, questions: Path) -> None:
    where = [*baseline(pair, questions), "--format", "json"]
    outcome = run(*where, "--prompt-len", 95)
    assert outcome.json["prompt_set"]["cut"] == 4
    assert "cut to 95 tokens: 4 of 5 prompts; --whole-prompts keeps rows whole\n" in outcome.err
    assert "5 prompts of the 16 asked for: 15 too short of 20 rows" in outcome.err
    outcome = run(*where, "--prompt-len", 30, "--whole-prompts", "--num-prompts", 3)
    assert "cut" not in outcome.err
    assert "3 prompts of" not in outcome.err
    outcome = run(*where, "--whole-prompts", "--prompt-len", 29)
    assert "2 prompts of the 16 asked for: 18 longer than 29 tokens of 20 rows" in outcome.err
    outcome = run(*where, "--whole-prompts", "--prompt-len", 19)
    assert outcome.err == (
        "error: no whole prompt of questions.jsonl is short enough: --prompt-len is 19, but the shortest of 20 has 20 tokens; "
        "pass --prompt-len 20 or more, or shorter ones\n"
    )
    outcome = run(*where[:-4], "--gen-len", 240, "--format", "json")
    assert "no whole prompt of questions.jsonl is short enough: there is room for 17 tokens of a prompt" in outcome.err
    outcome = run(*where, "--max-length", 30, "--gen-len", 3)
    assert "there is room for 26 tokens of a prompt" not in outcome.err
    assert "left out: " in outcome.err or "of the 16 asked for" in outcome.err
    outcome = run(*where, "--max-length", 20, "--gen-len", 3)
    assert "there is room for 16 tokens of a prompt (a smaller --gen-len leaves more)" in outcome.err
    assert outcome.err.endswith("pass shorter ones, or a larger --max-length\n")


def test_two_bos_tokens_are_counted(run: Any, pair: Pair, tmp_path: Path) -> None:
    folder = shutil.copytree(pair[0], tmp_path / "target")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.bos_token = "w0"
    tokenizer.save_pretrained(folder)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("w0 w0 w3", "w0 w3", "w3 w0 w0")))
    outcome = run(*baseline((folder, folder), path))
    assert "of 3 prompts, 1 begins with two BOS tokens: the text has one of its own\n" in outcome.err


def test_rows_that_are_long_are_cut_as_before(run: Any, pair: Pair, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lengths = [10, 150, 140, 10, 130]
    path.write_text("".join(json.dumps({"text": " ".join(["w1"] * length)}) + "\n" for length in lengths))
    where = [*baseline(pair, path), "--format", "json"]
    outcome = run(*where, "--num-prompts", 2)
    used = outcome.json["prompt_set"]
    assert (used["whole"], used["prompt_len"], used["cut"], used["skipped"], used["end"]) == (False, 128, 2, 1, 3)
    assert "cut to 128 tokens: 2 of 2 prompts" in outcome.err
    outcome = run(*where, "--num-prompts", 4)
    used = outcome.json["prompt_set"]
    assert (used["whole"], used["prompt_len"], used["prompts"], used["end"]) == (True, 150, 4, 4)


def test_a_system_prompt_and_arguments_reach_template_and_records(run: Any, chatty: Pair, questions: Path, tmp_path: Path) -> None:
    where = [*models(chatty), "--dataset", questions, "--chat", "--gen-len", 3, "--num-prompts", 2, "--format", "json"]
    given = ["--system", "w9", "--chat-arg", "thinking=true", "--chat-arg", "other=[1]"]
    outcome = run("profile", "acceptance", *where, *given, "--max-branch", 2)
    assert outcome.code == 0, outcome.err
    assert "the chat template does not read other: --chat-arg other changes nothing" in outcome.err
    used = outcome.json["prompt_set"]
    assert (used["system"], used["chat_args"], used["prompt_len"]) == ("w9", {"thinking": True, "other": [1]}, 25 + 5)
    assert run("grow", "--acceptance", "acceptance.json", "--size", 3, "--depth", 2).code == 0
    outcome = run("evaluate", *where, *given, "--growmap", "tree.pt", "--start", 5)
    assert "profiled with" not in outcome.err, outcome.err
    outcome = run("evaluate", *where, "--growmap", "tree.pt", "--start", 5, "--chat-arg", "thinking=False")
    assert (
        'the growmap was profiled with --system "w9" (this run has none) and with --chat-arg {"thinking": true, "other": [1]} '
        '(this run has {"thinking": false}): other prompts'
    ) in outcome.err
    plain = [option for option in where if option != "--chat"]
    assert "the growmap was profiled with --chat: other prompts" in run("evaluate", *plain, "--growmap", "tree.pt", "--start", 5).err


def test_arguments_that_make_no_sense_are_wrong_usage_and_those_without_chat_are_told(run: Any, pair: Pair, questions: Path) -> None:
    where = baseline(pair, questions)
    for value, reason in (
        ("thinking", "'thinking' is not NAME=VALUE, such as enable_thinking=false"),
        ("tokenize=1", "--chat-arg has 'tokenize', which cannot be an argument of a chat template"),
    ):
        outcome = run(*where, "--chat", "--chat-arg", value)
        assert (outcome.code, outcome.out) == (2, "")
        assert reason in outcome.err
    outcome = run(*where, "--chat", "--chat-arg", "a=1", "--chat-arg", "a=2")
    assert (outcome.code, "--chat-arg a is given twice" in outcome.err) == (2, True)
    outcome = run(*where, "--num-prompts", 1, "--system", "x", "--chat-arg", "a=1")
    assert "without --chat there is no chat template, so --system changes nothing" in outcome.err
    assert "so --chat-arg changes nothing" in outcome.err


def test_a_template_without_end_and_a_tokenizer_that_fails_are_one_line(run: Any, chatty: Pair, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "w5"}\n')
    where = baseline(chatty, rows)
    (chatty[0] / "chat_template.jinja").write_text("{{ 'x' * 10**10 }}")
    outcome = run(*where, "--chat")
    assert outcome.err.startswith("error: the tokenizer's chat template takes more than 512 MB of memory for one conversation; correct it")
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    settings = json.loads((chatty[0] / "tokenizer.json").read_text())
    settings["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": "(w+)+$"}, "behavior": "Isolated", "invert": False}
    (chatty[0] / "tokenizer.json").write_text(json.dumps(settings))
    rows.write_text(json.dumps({"text": "w" * 60 + "b"}) + "\n")
    outcome = run(*where)
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert "rows.jsonl, line 1: the tokenizer fails on this text (PanicException: Onig" in outcome.err


@pytest.mark.parametrize("change", [{"return_dict": False}, {"use_cache": False}, {"output_attentions": True}, {"torchscript": True}])
def test_a_configuration_may_ask_for_results_in_another_form(run: Any, pair: Pair, tmp_path: Path, change: dict[str, bool]) -> None:
    target = shutil.copytree(pair[0], tmp_path / "target")
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **change}))
    (tmp_path / "rows.jsonl").write_text('{"text": "w5 w6"}\n')
    where = ["--dataset", "rows.jsonl", "--gen-len", 4, "--format", "json", "--save-tokens"]
    outputs = [
        run("evaluate", "--target", folder, "--draft", pair[1], "--device", "cpu", "--dynamic", "--size", 3, "--depth", 2, *where).json[
            "outputs"
        ]
        for folder in (target, pair[0])
    ]
    assert outputs[0] == outputs[1]
