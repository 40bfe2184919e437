"""The loop on a tiny pair from disk: profile, generate, evaluate, inspect."""

import json
import math
import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from treespec.files import load
from treespec.trees.growmap import GrowMap
from treespec.trees.tree import SpeculationTree

Pair = tuple[Path, Path]


def models(pair: Pair) -> list[object]:
    return ["--target", pair[0], "--draft", pair[1], "--device", "cpu"]


def texts(rows: Path) -> list[object]:
    return ["--dataset", rows, "--num-prompts", 4, "--prompt-len", 8]


def test_the_whole_loop(run: Any, pair: Pair, rows: Path, tmp_path: Path) -> None:
    acceptance = run("profile", "acceptance", *models(pair), *texts(rows), "--gen-len", 12, "--max-branch", 4, "--format", "json")
    assert acceptance.code == 0, acceptance.err
    data = acceptance.json
    assert {"rank_probability", "none_accepted", "standard_error", "positions", "prompts"} <= set(data)
    assert len(data["rank_probability"]) == len(data["standard_error"]) == 4
    assert sum(data["rank_probability"]) + data["none_accepted"] == pytest.approx(1)
    assert (data["prompts"], data["positions"]) == (4, 4 * 11)

    latency = run(
        "profile",
        "latency",
        *models(pair),
        "--sizes",
        "1,2,4",
        "--widths",
        "1,2",
        "--context",
        "16",
        "--repetitions",
        3,
        "--format",
        "json",
    )
    assert latency.code == 0, latency.err
    data = latency.json
    assert [(p["size"], p["context"]) for p in data["target"]] == [(1, 16), (2, 16), (4, 16)]
    assert [(p["width"], p["context"]) for p in data["draft"]] == [(1, 16), (2, 16)]
    assert all(p["median_seconds"] > 0 for p in data["target"] + data["draft"])
    assert data["overhead_seconds"] >= 0

    made = run("generate", "--acceptance", "acceptance.json", "--latency", "latency.json", "--size", 4, "--depth", 2, "--format", "json")
    assert made.code == 0, made.err
    assert made.json["predicted_seconds_per_step"] > 0

    evaluated = run(
        *[
            "evaluate",
            *models(pair),
            *texts(rows),
            "--growmap",
            "tree.pt",
            "--gen-len",
            12,
            "--save-tokens",
            "--breakdown",
            "--format",
            "json",
        ]
    )
    assert evaluated.code == 0, evaluated.err
    data = evaluated.json
    assert {
        "tokens",
        "steps",
        "tokens_per_step",
        "tokens_per_second",
        "seconds_per_token",
        "baseline",
        "speedup",
        "lossless",
        "prompts",
    } <= set(data)
    assert data["lossless"] == "match"
    assert (data["prompt_set"]["start"], data["prompt_set"]["end"]) == (5, 8), "rows behind the profiled ones"
    assert "the growmap was profiled on rows 0 to 4 of rows.jsonl: rows from 5 on are used" in evaluated.err
    assert data["tokens"] == 3 * 12
    assert data["tokens_per_step"] == pytest.approx((data["tokens"] - data["prompts"]) / data["steps"])
    assert [len(ids) for ids in data["outputs"]] == [12] * 3
    assert data["predicted"]["tokens_per_step"] == pytest.approx(made.json["expected_tokens_per_step"])
    assert data["predicted"]["seconds_per_step"] == pytest.approx(made.json["predicted_seconds_per_step"])
    assert data["speedup"] == pytest.approx(data["baseline"]["seconds_per_token"] / data["seconds_per_token"])

    report = run("inspect", "report.json", "--format", "json").json
    assert report["tokens"] == data["tokens"]
    assert "lossless: all 3 outputs" in run("inspect", "report.json").out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["acceptance.json", "latency.json", "report.json", "tree.json", "tree.pt"]
    assert not any(math.isnan(x) for x in json.loads((tmp_path / "acceptance.json").read_text())["rank_probability"])


def test_tables_for_people(run: Any, pair: Pair, rows: Path) -> None:
    outcome = run("profile", "acceptance", *models(pair), *texts(rows), "--gen-len", 4, "--method", "teacher-forced", "--max-branch", 3)
    assert outcome.code == 0, outcome.err
    assert "acceptance by rank" in outcome.out
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in outcome.out.splitlines() if line.startswith("│")]
    profiled = json.loads(Path("acceptance.json").read_text())["rank_probability"]
    assert [row[3] for row in cells] == [f"{sum(profiled[: int(row[0]) + 1]):.4f}" for row in cells]
    assert "cumulative: the chance that the drafted token of this rank, or one of an earlier rank, is accepted" in outcome.out
    assert "wrote acceptance.json" in outcome.err
    outcome = run("profile", "latency", *models(pair), "--sizes", "1,2", "--widths", "1", "--context", "8", "--repetitions", 2)
    assert outcome.code == 0, outcome.err
    assert "overhead per step" in outcome.out


def test_the_baseline_needs_no_draft(run: Any, pair: Pair, rows: Path) -> None:
    outcome = run(
        "evaluate", "--target", pair[0], "--device", "cpu", "--mode", "baseline", *texts(rows), "--gen-len", 6, "--format", "json"
    )
    assert outcome.code == 0, outcome.err
    assert outcome.json["lossless"] == "not-applicable"
    assert outcome.json["baseline"]["seconds_per_token"] > 0
    assert "autoregressive" in run("inspect", "report.json").out


def test_one_of_a_kind_stands_in_the_singular(run: Any, pair: Pair, rows: Path, tmp_path: Path) -> None:
    GrowMap(SpeculationTree.chain(1)).write(tmp_path / "tree.pt")
    one = ["--dataset", rows, "--num-prompts", 1, "--prompt-len", 8, "--gen-len", 2, "--breakdown"]
    outcome = run("evaluate", *models(pair), *one, "--growmap", "tree.pt")
    assert outcome.code == 0, outcome.err
    assert "decoding 1 prompt, " in outcome.out
    assert "breakdown of 1 step\n" in outcome.out
    assert "lossless: the only output equals that of autoregressive decoding, token for token" in outcome.out
    outcome = run("evaluate", *models(pair), "--dataset", rows, "--prompt-len", 8, "--gen-len", 1, "--end", 1, "--mode", "baseline")
    assert "1 prompt of the 16 asked for: none left out of 1 row\n" in outcome.err
    outcome = run("inspect", "tree.pt", "--max-nodes", 1)
    assert "1 more node is not drawn" in outcome.out


def test_a_promise_for_other_sampling_is_pointed_out(run: Any, pair: Pair, rows: Path, profiles: tuple[Path, Path]) -> None:
    run("generate", "--acceptance", profiles[0], "--size", 3, "--depth", 2)
    outcome = run("evaluate", *models(pair), *texts(rows), "--growmap", "tree.pt", "--gen-len", 4, "--temperature", 0.7, "--format", "json")
    assert outcome.code == 0, outcome.err
    assert "made for --temperature 0 (this run has 0.7): its prediction does not hold here and is not shown" in outcome.err
    assert outcome.json["lossless"] == "not-applicable"


def test_token_ids_need_no_tokenizer(run: Any, pair: Pair, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((pair[0] / name).read_bytes())
    ids = tmp_path / "ids.jsonl"
    ids.write_text("".join(json.dumps({"input_ids": list(range(i, i + 9))}) + "\n" for i in range(2)))
    arguments = [
        "evaluate",
        "--target",
        bare,
        "--device",
        "cpu",
        "--mode",
        "baseline",
        "--prompt-len",
        8,
        "--gen-len",
        3,
        "--format",
        "json",
    ]
    outcome = run(*arguments, "--dataset", ids)
    assert outcome.code == 0, outcome.err
    assert outcome.json["prompts"] == 2
    assert "2 prompts of the 16 asked for" in outcome.err
    ids.write_text(json.dumps({"input_ids": [1, 2, 99, 4, 5, 6, 7, 8]}) + "\n")
    outcome = run(*arguments, "--dataset", ids)
    assert outcome.code == 1
    assert "the row has token 99, but the model has 61 embedding rows" in outcome.err


def one_line(outcome: Any, words: str) -> None:
    assert outcome.code == 1, outcome
    assert outcome.out == ""
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert words in outcome.err


def test_bad_input_is_one_line_and_nothing_written(run: Any, pair: Pair, rows: Path, profiles: tuple[Path, Path], tmp_path: Path) -> None:
    run("generate", "--acceptance", profiles[0], "--size", 8, "--depth", 4)
    before = sorted(p.name for p in tmp_path.iterdir())
    profile = ["profile", "acceptance", *models(pair)]
    one_line(run(*profile, "--dataset", "imagenet"), "unknown data set 'imagenet'")
    one_line(run(*profile, "--dataset", rows, "--prompt-len", 41), "the longest row of 8 has 40 tokens")
    one_line(run(*profile, *texts(rows), "-o", "missing/acceptance.json"), "missing/acceptance.json")
    one_line(run(*profile, *texts(rows), "--max-branch", 1000), "--max-branch 61")
    one_line(run("profile", "acceptance", "--target", "./nowhere", "--draft", pair[1], *texts(rows)), "nowhere")
    evaluate = ["evaluate", *models(pair), *texts(rows), "--gen-len", 16]
    one_line(run(*evaluate, "--growmap", "tree.pt", "--max-length", 30), "pass --max-length 32 or more")
    one_line(run(*evaluate, "--growmap", profiles[0]), "is an acceptance profile, but a growmap is needed")
    hub = "name a local .jsonl, .parquet or .txt file instead, or stdlib" if find_spec("datasets") else "needs the library datasets"
    one_line(run(*evaluate, "--growmap", "tree.pt", "--dataset", "cnn"), hub)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def _edited(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    ("part", "edit", "message"),
    [
        ("draft", lambda f: (f / "model.safetensors").unlink(), "holds no model.safetensors"),
        ("draft", lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "pytorch_model.bin is no file of torch.save"),
        ("draft", lambda f: (f / "config.json").write_text("{"), "draft cannot be loaded: config.json is no JSON object"),
        ("draft", lambda f: _edited(f, vocab_size=0), "draft: vocab_size is 0, but it must be a whole number, 1 or more"),
        ("draft", lambda f: _edited(f, model_type="mamba"), "running state"),
        ("target", lambda f: (f / "model.safetensors").unlink(), "holds no model.safetensors"),
        ("target", lambda f: _edited(f, vocab_size=0), "target: vocab_size is 0, but it must be a whole number, 1 or more"),
        ("target", lambda f: _edited(f, max_position_embeddings=20), "but the target"),
    ],
)
def test_what_files_rule_out_is_told_before_a_weight_is_read(
    run: Any, pair: Pair, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, edit: Any, message: str
) -> None:
    from treespec.models import loading

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", lambda *names, **options: pytest.fail("weights were read"))
    used = tmp_path / "target", tmp_path / "draft"
    for source, folder in zip(pair, used, strict=True):
        shutil.copytree(source, folder)
    edit(tmp_path / part)
    for command in (
        ["evaluate", *texts(rows), "--dynamic", "--size", 3, "--depth", 2],
        ["profile", "acceptance", *texts(rows)],
        ["profile", "latency", "--context", 64],
        ["potential", *texts(rows), "--gen-len", 32],
    ):
        one_line(run(*command, *models(used)), message)


def test_what_the_vocabulary_rules_out_is_told_before_a_weight_is_read(
    run: Any, pair: Pair, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from treespec.models import loading

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", lambda *names, **options: pytest.fail("weights were read"))
    one_line(run("profile", "acceptance", *models(pair), *texts(rows), "--max-branch", 62), "--max-branch 61")
    wide = ["--dynamic", "--size", 70, "--depth", 2, "--width", 62]
    one_line(run("evaluate", *models(pair), *texts(rows), *wide), "pass --width 61 or less")


def test_interrupted_work_goes_on_where_it_stopped(
    run: Any, pair: Pair, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import treeopt.profiling.acceptance as module

    measure, calls = module._measure, []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(*arguments, **options)

    monkeypatch.setattr(module, "_measure", interrupted)
    command = [
        "profile",
        "acceptance",
        *models(pair),
        *texts(rows),
        "--gen-len",
        6,
        "--max-branch",
        3,
        "--batch-size",
        1,
        "--format",
        "json",
    ]
    stopped = run(*command)
    assert (stopped.code, stopped.out) == (130, "")
    assert "interrupted; run the same command again to go on" in stopped.err
    assert [p.name for p in tmp_path.iterdir()] == ["acceptance.json.journal"]
    resumed = run(*command)
    assert resumed.code == 0, resumed.err
    assert len(calls) == 3 + 2  # two of the four batches were already done
    monkeypatch.setattr(module, "_measure", measure)
    whole = run(*command, "-o", "again.json")
    assert whole.json == resumed.json
    assert sorted(p.name for p in tmp_path.iterdir()) == ["acceptance.json", "again.json"]


def test_threads_are_those_that_are_asked_for_and_stand_in_the_record(run: Any, pair: Pair, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        few = ["--sizes", "1,2", "--widths", "1", "--context", "16", "--repetitions", 4]
        outcome = run("profile", "latency", *models(pair), *few, "--threads", 3, "-o", "l.json")
        assert outcome.code == 0, outcome.err
        assert torch.get_num_threads() == 3
        assert (os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]) == ("3", "3")
    finally:
        torch.set_num_threads(before)
    record = json.loads((tmp_path / "l.json").read_text())["provenance"]
    assert record["threads"] == 3
    assert record["load_average"] is None or record["load_average"] >= 0


def test_a_busy_machine_is_said_by_whatever_measures(run: Any, pair: Pair, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "others_running", lambda: 1000.0)
    said = "other programs keep all "
    profiled = run("profile", "acceptance", *models(pair), *texts(rows), "--gen-len", 4, "--max-branch", 2, "-o", "a.json")
    timed = run(
        "profile", "latency", *models(pair), "--sizes", "1,2", "--widths", "1", "--context", "16", "--repetitions", 4, "-o", "l.json"
    )
    GrowMap(SpeculationTree.chain(1)).write("t.pt")
    evaluated = run("evaluate", *models(pair), *texts(rows), "--growmap", "t.pt", "--gen-len", 4)
    for outcome in (profiled, timed, evaluated):
        assert outcome.code == 0, outcome.err
        assert outcome.err.count(said) == 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(load, "others_running", lambda: 1.3)
    outcome = run("evaluate", *models(pair), *texts(rows), "--growmap", "t.pt", "--gen-len", 4)
    assert "other programs keep 1.3 of 4 cores busy, and torch has 4 threads" in outcome.err
    assert "give torch fewer (--threads 2)" in outcome.err
