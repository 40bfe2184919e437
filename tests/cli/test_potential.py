"""`treeopt potential` on a tiny pair from disk."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

Pair = tuple[Path, Path]


@pytest.fixture
def command(pair: Pair, rows: Path) -> list[object]:
    where = ["--dataset", rows, "--num-prompts", 4, "--prompt-len", 8, "--gen-len", 12, "--device", "cpu"]
    return ["potential", "--target", pair[0], *where]


def one_line(outcome: Any, words: str) -> None:
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert words in outcome.err


def test_drafts_are_ranked_in_one_call(run: Any, command: list[object], pair: Pair, tmp_path: Path) -> None:
    outcome = run(*command, "--draft", pair[1], "--draft", pair[0], "--format", "json")
    assert outcome.code == 0, outcome.err
    data = outcome.json
    assert [draft["draft"] for draft in data["drafts"]] == ["target", "draft"]
    assert [draft["kl"]["mean"] > 0 for draft in data["drafts"]] == [False, True]
    assert (data["method"], data["temperature"], data["distribution_temperature"]) == ("teacher-forced", 0, 1)
    assert (data["prompts"], data["positions"]) == (4, 4 * 11)
    assert data["prompt_set"]["dataset"] == "rows.jsonl"
    low, high = data["drafts"][1]["kl"]["interval_95"]
    assert low < data["drafts"][1]["kl"]["mean"] < high
    assert list(tmp_path.iterdir()) == [], "nothing is written unless -o is given"


def test_inspect_shows_what_was_written(run: Any, command: list[object], pair: Pair, tmp_path: Path) -> None:
    outcome = run(*command, "--draft", pair[1], "--temperature", 0.7, "--top-p", 0.9, "--method", "on-policy", "-o", "p.json")
    assert outcome.code == 0, outcome.err
    assert "wrote p.json" in outcome.err
    assert "KL(target || draft), nats per token" in outcome.out
    assert run("inspect", "p.json").out == outcome.out
    shown = run("inspect", "p.json", "--format", "json").json
    assert shown["drafts"][0]["reverse_kl"] is None
    assert "sums" not in shown["drafts"][0]
    assert len(json.loads((tmp_path / "p.json").read_text())["drafts"][0]["sums"]["kl"]) == 4
    assert [p.name for p in tmp_path.iterdir()] == ["p.json"]


def test_an_interrupted_run_goes_on_where_it_stopped(
    run: Any, command: list[object], pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import treeopt.profiling.potential as module

    measure, calls = module._measure, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(module, "_measure", interrupted)
    again = [*command, "--draft", pair[1], "--batch-size", 1, "--format", "json", "-o", "p.json"]
    stopped = run(*again)
    assert (stopped.code, stopped.out) == (1, "")
    assert [p.name for p in tmp_path.iterdir()] == ["p.json.journal"]
    resumed = run(*again)
    assert resumed.code == 0, resumed.err
    assert len(calls) == 3 + 2
    assert [p.name for p in tmp_path.iterdir()] == ["p.json"]
    whole = run(*command, "--draft", pair[1], "--batch-size", 1, "--format", "json").json
    assert {key: whole[key] for key in ("drafts", "positions")} == {key: resumed.json[key] for key in ("drafts", "positions")}


def test_what_is_wrong_with_a_draft_is_told_in_one_line(run: Any, command: list[object], pair: Pair, tmp_path: Path) -> None:
    one_line(run(*command, "--draft", "./nowhere"), "nowhere")
    one_line(run(*command, "--draft", pair[1], "--prompt-len", 40), "no row of rows.jsonl holds two tokens of text after its prompt")
    other = tmp_path / "other"
    shutil.copytree(pair[1], other)
    tokenizer = other / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"w5"', '"word5"'))
    one_line(run(*command, "--draft", other), "have different vocabularies, first at id 6")
    twice = run(*command, "--draft", pair[1], "--draft", pair[1])
    assert twice.code == 2
    assert "is given twice; drop one" in twice.err


def test_drafts_with_padded_logits_are_compared_on_the_tokens_that_all_have(
    run: Any, command: list[object], pair: Pair, tmp_path: Path
) -> None:
    import torch
    from transformers import LlamaForCausalLM

    padded = tmp_path / "padded"
    shutil.copytree(pair[1], padded)
    model = LlamaForCausalLM.from_pretrained(pair[1])
    with torch.no_grad():
        model.resize_token_embeddings(64, mean_resizing=False)
        model.lm_head.weight[61:] = 0.0
    model.save_pretrained(padded)
    outcome = run(*command, "--draft", pair[1], "--draft", padded, "--format", "json")
    assert outcome.code == 0, outcome.err
    first, second = outcome.json["drafts"]
    for name in ("kl", "reverse_kl", "total_variation", "greedy_child"):
        assert first[name]["mean"] == pytest.approx(second[name]["mean"], rel=1e-5)
    assert {first["draft"], second["draft"]} == {"draft", "padded"}
