"""The command `export`."""

import json
import shlex

import pytest

from treeopt.cli.export import NAMES
from treeopt.exports.engines import ENGINES
from treeopt.profiles.latency import OTHER_ENGINES
from treespec.decoding.chosen import ChosenBudget
from treespec.decoding.plans import DynamicBudget


def test_the_command_and_latency_profiles_know_every_engine():
    assert list(ENGINES) == NAMES
    assert tuple(name for name, engine in ENGINES.items() if not engine.own_times) == OTHER_ENGINES


@pytest.fixture
def measured(profiles, tmp_path):
    """Two latency profiles of vLLM, of batch sizes 1 and 4."""
    _, latency = profiles
    data = json.loads(latency.read_text()) | {"engine": "vllm"}
    ChosenBudget(DynamicBudget(4, 2, 2)).write(tmp_path / "b.json")
    for batch in (1, 4):
        (tmp_path / f"l{batch}.json").write_text(json.dumps(data | {"batch": batch}))
    return tmp_path


def test_numbers_are_printed_and_written(profiles, measured, run):
    words = ["export", "--to", "vllm", "--acceptance", profiles[0], "--latency", "l4.json", "--latency", "l1.json", "-o", "vllm.txt"]
    done = run(*words, "--format", "json")
    assert done.code == 0, done.err
    found = done.json
    assert [row["batch"] for row in found["batches"]] == [1, 4]
    text = found["paste"][0]["text"]
    config = json.loads(shlex.split(text)[1])
    assert config["num_speculative_tokens"] == found["batches"][0]["depth"] > 0
    assert text in (measured / "vllm.txt").read_text()
    assert "wrote vllm.txt\n" in done.err
    shown = run(*words)
    assert shown.code == 0, shown.err
    assert "wrote vllm.txt, in place of an earlier one\n" in shown.err
    assert text in shown.out
    assert "lossy: " in shown.out
    (measured / "vllm.txt").write_text("mine")
    refused = run(*words)
    assert refused.code == 1
    assert "vllm.txt would be overwritten but is no export" in refused.err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--to", "sglang"), 1, "l1.json was measured in vllm, but the numbers are for sglang; pass times of sglang"),
        (("--to", "vllm", "--batch", "1,8"), 2, "--batch 8 was not measured, only 1: each needs a --latency profile of its own"),
        (("--to", "vllm", "--context", "9999"), 1, "9999"),
        (
            ("--to", "sglang", "--budget", "b.json"),
            2,
            "--budget stands in the place of profiles; pass it alone, or --acceptance and --latency",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(profiles, measured, run, words, code, said):
    done = run("export", *words, "--acceptance", profiles[0], "--latency", "l1.json")
    assert done.code == code
    assert said in done.err
    assert len([line for line in done.err.splitlines() if "measured" in line or said in line]) == 1


def test_profiles_or_a_budget_are_needed(run):
    done = run("export", "--to", "sglang")
    assert done.code == 2
    assert "the numbers come from profiles; pass --acceptance and --latency, or a --budget" in done.err


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("export", "--to", "sglang", "--budget"), "a budget of dynamic trees is needed; `treeopt grow --dynamic` writes one"),
        (("replay", "68m_7b-16", "--trace"), "a trace is needed; `treeopt profile acceptance --trace` writes one"),
    ],
)
def test_a_file_of_another_kind_is_named_with_the_options_that_write_the_right_one(profiles, run, words, wanted):
    done = run(*words, "a.json")
    assert (done.code, done.err) == (1, f"error: a.json is an acceptance profile, but {wanted}\n")


def test_an_engine_that_is_not_known_is_named_with_those_that_are(profiles, measured, run):
    data = json.loads((measured / "l1.json").read_text())
    (measured / "l1.json").write_text(json.dumps(data | {"engine": "sglnag"}))
    for words in (("export", "--to", "sglang", "--acceptance", profiles[0], "--latency", "l1.json"), ("inspect", "l1.json")):
        done = run(*words)
        assert done.code == 1
        said = "error: l1.json: engine is 'sglnag', which is none that is known; correct it to the one that was measured: "
        assert done.err == f"{said}sglang, tensorrt-llm, vllm, llama.cpp, treeopt\n"


@pytest.mark.parametrize("to", NAMES)
def test_times_of_another_engine_than_the_exports_are_refused_by_name(profiles, measured, run, to):
    other = "llama.cpp" if to == "vllm" else "vllm"
    data = json.loads((measured / "l1.json").read_text())
    (measured / "l1.json").write_text(json.dumps(data | {"engine": other}))
    done = run("export", "--to", to, "--acceptance", profiles[0], "--latency", "l1.json")
    own = "treeopt" if to == "transformers" else to
    assert (done.code, done.out) == (1, "")
    assert done.err == f"error: l1.json was measured in {other}, but the numbers are for {to}; pass times of {own}\n"


def test_times_of_another_engine_are_shown_and_grow_refuses_them(profiles, measured, run):
    assert run("inspect", "l4.json", "--format", "json").json["batch"] == 4
    done = run("grow", "--acceptance", profiles[0], "--latency", "l4.json", "-o", "t.pt")
    assert done.code == 1
    assert "was measured in vllm, but a growmap runs in treeopt" in done.err
