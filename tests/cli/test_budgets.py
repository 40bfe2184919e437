"""The budget of dynamic trees from the command line: counted, chosen, run beside its promise, and refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_modes import in_json, refused
from treespec.decoding.chosen import ChosenBudget, read_budget
from treespec.decoding.plans import DynamicBudget
from treespec.decoding.step_rule import StepRule
from treespec.files.provenance import Provenance
from treespec.trees.growmap import GrowMap
from treespec.trees.tree import SpeculationTree

DYNAMIC = StepRule("dynamic")
Pair = tuple[Path, Path]


@pytest.fixture
def timed(profiles: tuple[Path, Path]) -> Path:
    """Write the latency profile with dynamic trees too, whose draft passes take longer the wider they are."""
    data = json.loads(profiles[1].read_text())
    levels = [{"width": w, "context": c, "seconds": [0.0005 + 0.0001 * w]} for c in (64, 256) for w in (2, 4, 8)]
    budgets = [(2, 1, 2), (4, 3, 2), (8, 2, 4), (8, 4, 2), (8, 1, 8), (6, 3, 4)]
    steps = [
        {"size": n, "depth": d, "width": w, "context": c, "seconds": [0.0103 + d * (0.0005 + 0.0001 * w) + 0.0004]}
        for c in (64, 256)
        for n, d, w in budgets
    ]
    rule = {"rule": DYNAMIC.to_json(), "draft": levels, "root": levels, "autoregressive_overhead_seconds": [0.0002], "steps": steps}
    path = profiles[1].with_name("dynamic-latency.json")
    path.write_text(json.dumps(data | {"rules": [{"rule": StepRule().to_json()}, rule]}))
    return path


@pytest.fixture
def counted(run: Any, pair: Pair, rows: Path, tmp_path: Path) -> Path:
    """Count the steps of dynamic trees on the first three rows."""
    models = ["--target", pair[0], "--draft", pair[1], "--device", "cpu", "--dataset", rows, "--num-prompts", 3]
    texts = ["--prompt-len", 8, "--gen-len", 16, "--max-branch", 4]
    grid = ["--dynamic", "--widths", "2,4", "--max-depth", 3, "--max-size", 9]
    data = in_json(run("profile", "acceptance", *models, *texts, *grid, "--format", "json", "-o", "counted.json"))
    assert data["dynamic"] == {"widths": [2, 4], "max_depth": 3, "max_size": 9}
    return tmp_path / "counted.json"


def test_the_chosen_budget_is_the_fastest_and_its_tokens_per_step_are_those_of_an_evaluation(
    run: Any, pair: Pair, rows: Path, counted: Path, timed: Path
) -> None:
    chosen = ("grow", "--dynamic", "--acceptance", counted, "--latency", timed)
    data = in_json(run(*chosen, "--format", "json"))
    assert data["rule"] == DYNAMIC.to_json()
    assert {row["width"] for row in data["by_width"]} == {2, 4}
    assert min(row["predicted_seconds_per_token"] for row in data["by_width"]) == data["predicted_seconds_per_token"]
    budget = read_budget("budget.json")
    assert budget.plan == DynamicBudget(data["size"], data["depth"], data["width"])
    models = ["--target", pair[0], "--draft", pair[1], "--device", "cpu", "--dataset", rows, "--num-prompts", 3, "--start", 0]
    texts = ["--prompt-len", 8, "--gen-len", 16, "--format", "json"]
    report = in_json(run("evaluate", *models, *texts, "--budget", "budget.json"))
    assert (report["mode"], report["tree"]) == ("dynamic", budget.plan.describe())
    assert report["lossless"] == "match"
    assert report["tokens_per_step"] == pytest.approx(data["expected_tokens_per_step"], rel=1e-12)
    assert report["predicted"]["tokens_per_step"] == data["expected_tokens_per_step"]
    shown = run(*chosen)
    assert "the fastest of 24 budgets, by width" in shown.out
    assert "level width" in run("inspect", "budget.json").out
    narrow = in_json(run(*chosen, "--max-width", 3, "--max-size", 4, "--max-depth", 2, "--format", "json", "-o", "narrow.json"))
    assert (narrow["width"], narrow["size"] <= 4, narrow["depth"] <= 2) == (2, True, True)


def test_a_budget_for_a_context_beyond_the_measured_ones_is_marked(run: Any, counted: Path, timed: Path) -> None:
    chosen = ("grow", "--dynamic", "--acceptance", counted, "--latency", timed, "--context")
    refused = run(*chosen, 4096)
    assert refused.code == 1
    assert refused.err.rstrip().endswith("or pass --extrapolate")
    grown = run(*chosen, 4096, "--extrapolate", "--format", "json")
    assert in_json(grown)["context"] == 4096
    assert "the times at context 4096 are extrapolated from those at 64 and 256: they are no measurement" in grown.err
    assert read_budget("budget.json").metadata["extrapolated_from"] == 256
    between = run(*chosen, 100)
    assert "the latency was not profiled at context 100: the times at 256, the next larger one, are taken" in between.err
    assert "extrapolated_from" not in read_budget("budget.json").metadata


def test_rows_that_a_budget_was_profiled_on_are_said_to_be_the_budgets(run: Any, pair: Pair, rows: Path) -> None:
    profiled = {"profiled_dataset": rows.name, "profiled_start": 0, "profiled_end": 3}
    ChosenBudget(DynamicBudget(4, 2, 2), {"expected_tokens_per_step": 1.5, **profiled}).write("b.json")
    models = ["--target", pair[0], "--draft", pair[1], "--device", "cpu", "--dataset", rows, "--num-prompts", 1]
    outcome = run("evaluate", *models, "--prompt-len", 8, "--gen-len", 4, "--budget", "b.json", "--format", "json")
    assert outcome.code == 0, outcome.err
    assert "the budget was profiled on rows 0 to 2 of " in outcome.err


def test_predicted_times_stand_beside_measured_ones_where_they_hold(run: Any, pair: Pair, rows: Path) -> None:
    from treespec.files.load import threads

    here = Provenance.collect()
    promise = {"expected_tokens_per_step": 1.5, "predicted_seconds_per_step": 0.01, "predicted_speedup": 1.2}
    made_for = {"drafting": "topk", "temperature": 0.0, "top_p": 1.0, "timed_rule": DYNAMIC.to_json()}
    models = ["--target", pair[0], "--draft", pair[1], "--device", "cpu", "--dataset", rows, "--num-prompts", 1]
    texts = ["--prompt-len", 8, "--gen-len", 4, "--format", "json", "--budget", "b.json"]
    known = {"cpu": here.cpu, "gpu": None, "threads": threads()}
    ChosenBudget(DynamicBudget(4, 2, 2), promise | made_for, Provenance.collect(**known)).write("b.json")
    assert in_json(run("evaluate", *models, *texts))["predicted"]["seconds_per_step"] == 0.01
    other = made_for | {"timed_rule": StepRule().to_json()}
    ChosenBudget(DynamicBudget(4, 2, 2), promise | other, Provenance.collect(**known)).write("b.json")
    outcome = run("evaluate", *models, *texts)
    assert in_json(outcome)["predicted"]["seconds_per_step"] is None
    assert "the budget was timed with other steps: topk, temperature 0 (this run has: dynamic trees, temperature 0)" in outcome.err
    ChosenBudget(DynamicBudget(4, 2, 2), promise | made_for | {"temperature": 0.6}).write("b.json")
    assert in_json(run("evaluate", *models, *texts))["temperature"] == 0.6, "it is taken from the budget"
    outcome = run("evaluate", *models, *texts, "--temperature", 0)
    assert in_json(outcome)["predicted"]["tokens_per_step"] is None
    assert "the budget was made for --temperature 0.6 (this run has 0)" in outcome.err


def test_what_was_not_measured_is_refused_with_the_way_to_measure_it(
    run: Any, profiles: tuple[Path, Path], counted: Path, timed: Path
) -> None:
    refused(
        run("grow", "--dynamic", "--acceptance", profiles[0], "--latency", timed),
        "holds no steps of dynamic trees; profile it again with --dynamic",
    )
    outcome = run("grow", "--dynamic", "--acceptance", counted, "--latency", profiles[1])
    refused(outcome, "the latency profile has no times of (dynamic trees, temperature 0); run: treeopt profile latency ")
    assert " --dynamic " in outcome.err
    assert outcome.err.endswith(f" -o {profiles[1]}\n")
    folder = Path("tuned")
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"schema": "treeopt.tuning", "version": 1}))
    (folder / "latency.json").write_bytes(profiles[1].read_bytes())
    tuned = run("grow", "--dynamic", "--acceptance", counted, "--latency", "tuned/latency.json")
    refused(tuned, "tuned/latency.json: the latency profile has no times of (dynamic trees, temperature 0); run: treeopt profile latency ")
    assert tuned.err.endswith(" -o tuned-latency.json\n"), "the folder of a tuning run stays as it is"
    refused(
        run("grow", "--dynamic", "--acceptance", counted, "--latency", timed, "--max-size", 1),
        "no dynamic budget is left to compare: measured",
    )
    assert not Path("budget.json").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--size", 3, "--depth", 2), "--dynamic chooses a budget, not a tree, so it has no use for --depth and --size"),
        (("-o", "tree.pt"), "a budget is JSON; pass -o tree.json"),
        (("--acceptance", "a.json"), "--dynamic needs one --acceptance FILE"),
    ],
)
def test_options_that_choose_no_budget_are_wrong_usage(run: Any, profiles: tuple[Path, Path], options: tuple[Any, ...], words: str) -> None:
    refused(run("grow", "--dynamic", "--acceptance", profiles[0], "--latency", profiles[1], *options), words, 2)


def test_options_of_budgets_go_alone(run: Any, profiles: tuple[Path, Path], tmp_path: Path) -> None:
    acceptance, latency = profiles
    refused(
        run("grow", "--acceptance", acceptance, "--latency", latency, "--max-width", 2),
        "--max-width bounds dynamic trees; pass --dynamic",
        2,
    )
    models = ("--target", "t", "--draft", "d", "--dataset", "stdlib")
    refused(run("profile", "acceptance", *models, "--widths", "2,4"), "--widths is of dynamic trees; pass --dynamic as well", 2)
    teacher = run("profile", "acceptance", *models, "--dynamic", "--method", "teacher-forced")
    refused(teacher, "--dynamic counts on the target's own choices", 2)
    ChosenBudget(DynamicBudget(4, 2, 2)).write("b.json")
    both = run("evaluate", *models, "--budget", "b.json", "--dynamic", "--size", 4)
    refused(both, "--budget says all about the trees; drop --dynamic and --size, or --budget", 2)
    refused(run("evaluate", *models, "--budget", "b.json", "--drafting", "swor"), "dynamic", 2)
    refused(run("evaluate", *models, "--mode", "baseline", "--budget", "b.json"), "--mode baseline runs no tree; drop --budget", 2)


def test_files_that_hold_no_budget_are_refused(run: Any, pair: Pair, profiles: tuple[Path, Path]) -> None:
    models = ("--target", pair[0], "--draft", pair[1], "--dataset", "stdlib")
    refused(run("evaluate", *models, "--budget", profiles[0]), "is an acceptance profile")
    content = {"schema": "treeopt.budget", "version": 1, "size": 3, "depth": 4, "width": 2}
    Path("bad.json").write_text(json.dumps(content))
    refused(run("evaluate", *models, "--budget", "bad.json"), "bad.json holds no budget: 'size' 3 is too small for depth 4")
    Path("bad.json").write_text(json.dumps(content | {"depth": "4"}))
    refused(run("evaluate", *models, "--budget", "bad.json"), "has a 'depth' that cannot be")


def test_a_budget_and_a_growmap_are_told_apart_in_a_line(run: Any, pair: Pair) -> None:
    models = ("--target", pair[0], "--draft", pair[1], "--dataset", "stdlib")
    ChosenBudget(DynamicBudget(4, 2, 2)).write("b.json")
    GrowMap(SpeculationTree.chain(2)).write("t.pt")
    takers = "`treeopt evaluate --budget` and `treeopt run --budget` take it; here pass the .pt file that `treeopt grow` wrote"
    wanted = f"b.json is a budget of dynamic trees, but a growmap is needed; {takers}"
    for words in (("evaluate", *models, "--growmap"), ("run", *models[:4], "--prompt", "x", "--growmap")):
        refused(run(*words, "b.json"), wanted)
    refused(run("convert", "b.json", "o.txt", "--to", "vllm"), wanted)
    for words in (("evaluate", *models), ("run", *models[:4], "--prompt", "x"), ("export", "--to", "sglang")):
        refused(
            run(*words, "--budget", "t.json"),
            "t.json is the description of a growmap, but a budget of dynamic trees is needed; `treeopt grow --dynamic` writes one",
        )
        refused(
            run(*words, "--budget", "t.pt"),
            "t.pt is a file of torch.save, but a budget of dynamic trees is needed; `treeopt grow --dynamic` writes one",
        )
    refused(run("compare", "b.json", "t.pt"), "b.json is a budget of dynamic trees and t.pt is a growmap, which have no figures in common")
    assert in_json(run("compare", "b.json", "b.json", "--format", "json"))["kind"] == "budget"


def test_a_chosen_budget_and_its_profiles_give_the_same_export(run: Any, counted: Path, timed: Path) -> None:
    data = in_json(run("grow", "--dynamic", "--acceptance", counted, "--latency", timed, "--format", "json", "-o", "b.json"))
    exports = [
        in_json(run("export", "--to", "sglang", *words, "--format", "json"))
        for words in (("--budget", "b.json"), ("--acceptance", counted, "--latency", timed))
    ]
    assert exports[0]["batches"] == exports[1]["batches"]
    assert exports[0]["lossy"] == exports[1]["lossy"]
    assert exports[0]["paste"] == exports[1]["paste"]
    (batch,) = exports[0]["batches"]
    if data["predicted_speedup"] > 1:
        assert {key: batch[key] for key in ("size", "depth", "width")} == {key: data[key] for key in ("size", "depth", "width")}
        assert batch["expected_tokens_per_step"] == data["expected_tokens_per_step"]
    else:
        assert batch["size"] == 1
