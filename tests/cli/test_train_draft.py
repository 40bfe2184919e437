"""`treeopt train-draft`: what it prints and leaves, how it is resumed, wrong usage."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.reference.vision import write_scenes

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
    for words in ("step 0: first-choice acceptance", "step 4: loss", "training: 4/4", "wrote out"):
        assert words in outcome.err
    chosen = ["--draft", "out", "--dataset", rows, "--prompt-len", 6, "--gen-len", 8, "--num-prompts", 2]
    evaluated = run("evaluate", "--target", pair[0], *chosen, "--dynamic", "--size", 4, "--depth", 2, "--device", "cpu", "--format", "json")
    assert evaluated.code == 0, evaluated.err
    assert evaluated.json["lossless"] == "match"


def test_tables_show_both_acceptances_and_resume_goes_on(run: Any, pair: Pair, rows: Path) -> None:
    arguments = [*start(pair, rows), "--draft", pair[1], "-o", "out", "--text", "target"]
    first = run(*arguments)
    assert first.code == 0, first.err
    assert "first-choice acceptance, held-out texts" in first.out
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
    assert other.err.startswith("error: out was trained with --temperature 1.0, and now it is 2.0; ")


def test_heads_are_trained_by_their_kind_and_refused_in_the_words_of_the_command(run: Any, pair: Pair, rows: Path) -> None:
    outcome = run(*start(pair, rows), "--kind", "medusa", "--levels", 2, "-o", "out", "--format", "json")
    assert outcome.code == 0, outcome.err
    assert json.loads(Path("out/config.json").read_text())["medusa_num_heads"] == 2
    assert outcome.json["rank1_acceptance"]["after"] is not None
    settings = run("inspect", "out/training.json", "--format", "json").json["settings"]
    assert settings | {"draft": None, "kind": "medusa", "levels": 2, "draft_vocabulary": None} == settings
    for wrong, said in (
        (["--kind", "eagle3"], "pass at most as many|train Medusa heads \\(--kind medusa\\), or a draft of its own \\(--config\\)"),
        (
            ["--kind", "medusa", "--draft", pair[1]],
            "pass exactly one of --draft, .*, --config, .*, and --kind, .* \\(--draft and --kind are given\\)",
        ),
        (
            ["--draft", pair[1], "--levels", 2],
            "--levels is for heads; pass --kind \\(eagle3, medusa, dflash\\) in place of --draft and --config",
        ),
        (["--kind", "medusa", "--draft-vocabulary", 4], "--draft-vocabulary is for --kind eagle3: other heads propose all tokens"),
        (
            ["--draft", "out"],
            "out is a set of Medusa heads, and a head that is there is not trained further; pass --kind for a new one, or a whole model as --draft",
        ),
        (["--kind", "hydra"], "'hydra' is not one of 'eagle3', 'medusa', 'dflash'"),
    ):
        refused = run(*start(pair, rows), *wrong, "-o", "other")
        assert refused.code != 0
        assert re.search(said, refused.err), refused.err
        assert not Path("other").exists()


def test_cross_entropy_on_own_text_needs_the_targets_tokenizer_only(run: Any, pair: Pair, rows: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(pair[0], bare, ignore=shutil.ignore_patterns("*.safetensors"))
    shape = tmp_path / "shape.json"
    shape.write_text(json.dumps({"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}))
    arguments = [*start((bare, bare), rows), "--config", shape, "--objective", "ce", "-o", "out", "--format", "json"]
    refused = run(*arguments)
    assert refused.code == 1
    assert "holds no weights; pass --eval-prompts 0 to train without measuring acceptance" in refused.err
    outcome = run(*arguments, "--eval-prompts", 0)
    assert outcome.code == 0, outcome.err
    assert outcome.json["rank1_acceptance"] == {"before": None, "after": None}
    assert (Path("out") / "tokenizer.json").is_file()


def test_control_c_says_how_to_go_on(run: Any, pair: Pair, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from treeopt.training import train as drafting_models

    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(drafting_models, "target_texts", stop)
        outcome = run(*start(pair, rows), "--draft", pair[1])
    assert (outcome.code, outcome.out) == (130, "")
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
        (["--draft", "d", "--dataset", "x.jsonl", "--eval-dataset", "./x.jsonl"], "--eval-dataset ./x.jsonl is trained on"),
        (["--draft", "d", "--eval-field", "body"], "--eval-field is for --eval-dataset"),
        (["--draft", "d", "--steps", "20", "--warmup", "20"], "--warmup 20 takes all of the 20 steps; lower it, or raise --steps"),
        (["--draft", "d", "--warmup", "1000"], "--warmup 1000 takes all of the 1000 steps"),
        (["--draft", "d", "--objective", "rl"], "--objective"),
        (
            ["--draft", "d", "--seq-len", "16", "--prompt-len", "16", "--divergence", "sampled-ce"],
            "--seq-len 16 leaves nothing to write after --prompt-len 16; pass --seq-len 18 or more",
        ),
        (["--draft", "d", "--seed", "4294967296"], "4294967296 is not in the range 0<=x<=4294967295"),
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
        (["--seq-len", "300"], "texts of 300 tokens are longer than the 256 positions of the draft; lower --seq-len"),
        (["--batch-size", "50"], "but a step needs 50"),
        (["--dataset", "no-such.jsonl"], "no-such.jsonl"),
        (["--device", "cuda:7"], "for cuda:7 set CUDA_VISIBLE_DEVICES=7"),
    ],
)
def test_a_failure_is_one_line_and_exit_1(run: Any, pair: Pair, rows: Path, arguments: list[str], words: str) -> None:
    outcome = run(*start(pair, rows), "--draft", pair[1], *arguments, "-o", "new/out")
    assert (outcome.code, outcome.out) == (1, ""), outcome
    assert words in outcome.err
    assert outcome.err.count("\n") == 1
    assert not Path("new").exists(), "nothing was written"


def test_a_draft_is_known_by_its_configuration_before_its_tokenizer(run: Any, pair: Pair, rows: Path, tmp_path: Path) -> None:
    shutil.copytree(pair[1], tmp_path / "bad")
    (tmp_path / "bad" / "config.json").write_text("{")
    outcome = run(*start(pair, rows), "--draft", "bad", "-o", "out")
    assert outcome.code == 1
    assert outcome.err.startswith("error: bad cannot be loaded: config.json is no JSON object")
    assert not Path("out").exists()


def test_cross_entropy_with_the_data_sets_text_has_no_divergence(run: Any, pair: Pair, rows: Path) -> None:
    arguments = [*start(pair, rows), "--draft", pair[1], "--objective", "ce", "--eval-prompts", 0, "-o", "out"]
    trained = run(*arguments, "--format", "json")
    assert trained.json["settings"]["divergence"] is None
    record = json.loads(Path("out/training.json").read_text())
    assert not {"divergence", "temperature", "text_temperature"} & set(record["settings"])
    record["settings"]["divergence"] = "forward-kl"  # as records had it once
    Path("out/training.json").write_text(json.dumps(record))
    assert run("inspect", "out/training.json", "--format", "json").json == trained.json
    assert "out is finished; nothing is left to train" in run(*arguments, "--resume").err


def test_one_held_out_text_has_no_standard_error(run: Any, pair: Pair, rows: Path) -> None:
    arguments = [*start(pair, rows), "--draft", pair[1], "--eval-prompts", 1]
    found = run(*arguments, "-o", "a", "--format", "json").json["rank1_acceptance"]
    assert [found[when]["standard_error"] for when in ("before", "after")] == [None, None]
    shown = run(*arguments, "-o", "b").out
    assert f"{found['before']['probability']:.4f} +- -" in shown


def test_texts_lie_under_a_field_and_bad_rows_can_be_skipped(run: Any, pair: Pair, rows: Path, tmp_path: Path) -> None:
    texts = [json.loads(line)["text"] for line in rows.read_text().splitlines()]
    for name, key in (("train.jsonl", "body"), ("eval.jsonl", "story")):
        lines = [json.dumps({key: text, "text": 3}) for text in texts]
        (tmp_path / name).write_text("\n".join([lines[0], '{"text": "odd"}', *lines[1:]]))
    arguments = [*start(pair, tmp_path / "train.jsonl"), "--draft", pair[1], "--eval-dataset", tmp_path / "eval.jsonl"]
    arguments += ["--field", "body", "--eval-field", "story"]
    refused = run(*arguments, "-o", "a")
    assert refused.code == 1
    assert refused.err.startswith('error: eval.jsonl, line 2: the row has no key "story"')
    assert refused.err.endswith("(--skip-bad-rows goes on without such rows)\n")
    outcome = run(*arguments, "-o", "a", "--skip-bad-rows")
    assert outcome.code == 0, outcome.err
    for name in ("train", "eval"):
        assert f"skipped: {name}.jsonl, line 2: " in outcome.err
    assert json.loads(Path("a/training.json").read_text())["rows"] | {"sha256": ""} == {
        "training_rows": 8,
        "held_out_rows": 2,
        "sha256": "",
    }


def test_pictures_are_refused_by_what_reads_text_only(run: Any, pair: Pair, tmp_path: Path) -> None:
    write_scenes(tmp_path / "pictures", range(2))
    outcome = run(*start(pair, tmp_path / "pictures"), "--draft", pair[1])
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == "error: pictures/scene-0000.png is a picture, but train-draft reads text only; pass a data set of text\n"


def test_inspect_shows_a_run_from_its_record(run: Any, pair: Pair, rows: Path) -> None:
    trained = run(*start(pair, rows), "--draft", pair[1], "-o", "out", "--format", "json")
    shown = run("inspect", "out/training.json", "--format", "json")
    assert shown.code == 0, shown.err
    assert shown.json == trained.json
    assert (
        shown.json["settings"] | {"target": "target", "draft": "draft", "objective": "distill", "batch_size": 2} == shown.json["settings"]
    )
    table = run("inspect", "out/training.json").out
    for words in (
        "learning rate",
        "0.0003",
        "first-choice acceptance, held-out texts",
        f"{trained.json['loss']['last']:.4f}",
        "--draft out",
    ):
        assert words in table
    record = json.loads(Path("out/training.json").read_text())
    Path("out/training.json").write_text(json.dumps(record | {"finished": False}))
    assert "not finished; the same train-draft with --resume -o out goes on" in run("inspect", "out/training.json").out
    assert run("inspect", "out/training.json", "--format", "json").json["steps"] is None
    del record["loss"]
    Path("out/training.json").write_text(json.dumps(record))
    broken = run("inspect", "out/training.json")
    assert broken.code == 1
    assert broken.err.startswith("error: out/training.json has no 'loss'")


def test_what_is_not_measured_is_said_to_change_nothing(run: Any, pair: Pair, rows: Path, tmp_path: Path) -> None:
    arguments = [*start(pair, rows), "--draft", pair[1], "-o", "out", "--eval-prompts", 0, "--eval-dataset", "stdlib", "--text-batch", 3]
    outcome = run(*arguments)
    assert outcome.code == 0, outcome.err
    for option in ("--gen-len", "--eval-steps", "--eval-dataset", "--prompt-len", "--text-batch"):
        assert f"--eval-prompts 0 measures nothing, so {option} changes nothing\n" in outcome.err
    outcome = run(*arguments, "--text", "target", "-o", "other")
    assert outcome.code == 0, outcome.err
    assert "so --gen-len changes nothing" in outcome.err
    assert "--prompt-len changes" not in outcome.err
    assert "--text-batch changes" not in outcome.err


def test_a_step_takes_no_more_texts_than_there_are(run: Any, pair: Pair, rows: Path) -> None:
    outcome = run(*start(pair, rows), "--draft", pair[1], "--gradient-accumulation", 50)
    assert outcome.code == 1
    assert "but a step needs 100; give more or longer rows, or lower these lengths, --batch-size or --gradient-accumulation" in outcome.err
