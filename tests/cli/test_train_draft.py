"""`treeopt train-draft`: what it prints and leaves, how it is resumed, wrong usage."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

Pair = tuple[Path, Path]

SIZES = ["--seq-len", 16, "--batch-size", 2, "--prompt-len", 6, "--gen-len", 8, "--eval-prompts", 2, "--steps", 4, "--eval-steps", 2]


def start(pair: Pair, rows: Path) -> list[object]:
    return ["train-draft", "--target", pair[0], "--dataset", rows, "--device", "cpu", *SIZES]


def test_a_distilled_draft_is_one_that_evaluate_takes(run: Any, pair: Pair, rows: Path) -> None:
    outcome = run(*start(pair, rows), "--draft", pair[1], "-o", "out", "--format", "json")
    assert outcome.code == 0, outcome.err
    data = outcome.json
    assert set(data) >= {"steps", "loss", "rank1_acceptance", "seconds", "folder"}
    assert (data["steps"], data["folder"]) == (4, "out")
    assert data["loss"]["first"] > 0
    record = json.loads(Path("out/training.json").read_text())
    for when, place in (("before", 0), ("after", -1)):
        logged = [entry for entry in record["history"] if "rank1_acceptance" in entry][place]
        assert data["rank1_acceptance"][when] == {
            "probability": logged["rank1_acceptance"],
            "standard_error": logged["rank1_standard_error"],
        }
    for words in ("step 0: rank-1 acceptance", "step 4: loss", "training: 4/4", "wrote out"):
        assert words in outcome.err
    chosen = ["--draft", "out", "--dataset", rows, "--prompt-len", 6, "--gen-len", 8, "--num-prompts", 2]
    evaluated = run("evaluate", "--target", pair[0], *chosen, "--dynamic", "--size", 4, "--depth", 2, "--device", "cpu", "--format", "json")
    assert evaluated.code == 0, evaluated.err
    assert evaluated.json["lossless"] == "match"


def test_tables_show_both_acceptances_and_resume_goes_on(run: Any, pair: Pair, rows: Path) -> None:
    arguments = [*start(pair, rows), "--draft", pair[1], "-o", "out", "--text", "target"]
    first = run(*arguments)
    assert first.code == 0, first.err
    assert "rank-1 acceptance, held-out texts" in first.out
    assert "--draft out" in first.out
    refused = run(*arguments)
    assert (refused.code, refused.out) == (1, "")
    assert refused.err == "error: out holds a training run already; pass --resume to go on with it, or another folder\n"
    resumed = run(*arguments, "--resume")
    assert resumed.code == 0, resumed.err
    assert resumed.out == first.out
    assert "out is finished; nothing is left to train" in resumed.err
    other = run(*arguments, "--resume", "--temperature", 2)
    assert other.code == 1
    assert other.err.startswith("error: out was trained with temperature 1.0, and now it is 2.0; ")


def test_cross_entropy_on_own_text_needs_the_targets_tokenizer_only(run: Any, pair: Pair, rows: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(pair[0], bare, ignore=shutil.ignore_patterns("*.safetensors"))
    shape = tmp_path / "shape.json"
    shape.write_text(json.dumps({"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}))
    arguments = [*start((bare, bare), rows), "--config", shape, "--objective", "ce", "-o", "out", "--format", "json"]
    refused = run(*arguments)
    assert refused.code == 1
    assert "holds no .safetensors weights; pass --eval-prompts 0 to train without measuring acceptance" in refused.err
    outcome = run(*arguments, "--eval-prompts", 0)
    assert outcome.code == 0, outcome.err
    assert outcome.json["rank1_acceptance"] == {"before": None, "after": None}
    assert (Path("out") / "tokenizer.json").is_file()


def test_control_c_says_how_to_go_on(run: Any, pair: Pair, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from treeopt import drafting_models

    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(drafting_models, "target_texts", stop)
        outcome = run(*start(pair, rows), "--draft", pair[1])
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == "error: interrupted; run the same with --resume to go on with what is finished\n"
    assert run(*start(pair, rows), "--draft", pair[1], "--resume").code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "pass exactly one of --draft"),
        (["--draft", "d", "--config", "llama-68m"], "pass exactly one of --draft"),
        (["--draft", "d", "--steps", "3", "--epochs", "1"], "pass one of --steps and --epochs"),
        (["--draft", "d", "--objective", "ce", "--divergence", "forward-kl"], "--divergence is for --objective distill"),
        (["--draft", "d", "--objective", "ce", "--text", "target"], "--text is for --objective distill"),
        (["--draft", "d", "--objective", "ce", "--temperature", "2"], "--temperature is for --objective distill"),
        (["--draft", "d", "--divergence", "sampled-ce", "--text", "own"], "learns the target's own samples"),
        (["--draft", "d", "--divergence", "sampled-ce", "--temperature", "2"], "compares no distributions"),
        (["--draft", "d", "--text-temperature", "1"], "pass --text target as well"),
        (["--draft", "d", "--temperature", "0"], "--temperature"),
        (["--draft", "d", "--learning-rate", "nan"], "--learning-rate"),
        (["--draft", "d", "--dtype", "fp16"], "overflows without loss scaling"),
        (["--draft", "d", "--seq-len", "1"], "--seq-len"),
        (["--draft", "d", "--start", "5", "--end", "5"], "leaves no rows"),
        (["--draft", "d", "--dataset", "x", "--eval-dataset", "x"], "is trained on"),
        (["--draft", "d", "--objective", "rl"], "--objective"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(run: Any, arguments: list[str], words: str, tmp_path: Path) -> None:
    outcome = run("train-draft", "--target", "t", *arguments)
    assert (outcome.code, outcome.out) == (2, ""), outcome
    assert words in outcome.err
    assert outcome.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seq-len", "300"], "--seq-len ask for 300 tokens, but the draft has 256 positions"),
        (["--batch-size", "50"], "but a batch needs 50"),
        (["--prompt-len", "16", "--divergence", "sampled-ce"], "--seq-len 16 leaves nothing to write after --prompt-len 16"),
        (["--dataset", "no-such.jsonl"], "no-such.jsonl"),
        (["--device", "cuda:7"], "for cuda:7 set CUDA_VISIBLE_DEVICES=7"),
    ],
)
def test_a_failure_is_one_line_and_exit_1(run: Any, pair: Pair, rows: Path, arguments: list[str], words: str) -> None:
    outcome = run(*start(pair, rows), "--draft", pair[1], *arguments)
    assert (outcome.code, outcome.out) == (1, ""), outcome
    assert words in outcome.err
    assert outcome.err.count("\n") == 1
