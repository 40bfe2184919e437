"""docs/results.md says what the files of results say, and nothing else."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report
from benchmarks.reporting.engine import system_name
from benchmarks.reporting.markdown import WIDTH, listed, paragraph, table
from benchmarks.reporting.optimizer import seconds
from benchmarks.reporting.page import PAGE, page
from benchmarks.reporting.same_tree import depth_of
from benchmarks.reporting.sampling import best_and_fixed, shape

RESULTS = report.ROOT / "benchmarks" / "results"
COMMANDS = (report.ROOT / "benchmarks" / "gpu.sh").read_text()


def files() -> dict[str, dict[str, Any]]:
    return {path.name: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}


def section_of(text: str, title: str) -> str:
    return text.partition(f"\n## {title}")[2].partition("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_the_page_is_what_the_files_give() -> None:
    assert report.main(["--check"]) == 0


@pytest.mark.parametrize(
    ("file", "path"),
    [
        ("engine.json", ("systems", "autoregressive", "tokens_per_second")),
        ("engine.json", ("steps", "100 nodes, depth 6", "error")),
        ("engine-h200.json", ("rows", 1, "milliseconds")),
        ("offload-gpu.json", ("speedup",)),
        ("training-gpu.json", ("rows", 2, "rank1_acceptance")),
        ("vision-gpu.json", ("target_prompt_ms",)),
        ("decoding-cpu.json", ("systems", "treeopt tree", "steps")),
        ("same-tree-cpu.json", ("rows", 3, "differences", 1, "mean")),
        ("sampling-cpu.json", ("rows", 11, "tokens_per_step")),
        ("sampling-gpu-mid.json", ("rows", 4, "visited", "p_value")),
        ("optimizer.json", ("results", 4, "peak_mib")),
    ],
    ids=str,
)
def test_a_planted_figure_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, path: tuple[Any, ...]) -> None:
    shutil.copytree(RESULTS, tmp_path / "results")
    data = json.loads((tmp_path / "results" / file).read_text())
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] *= 1.5
    (tmp_path / "results" / file).write_text(json.dumps(data))
    assert report.main(["--check", "--results", str(tmp_path / "results")]) == 1
    assert "run `python -m benchmarks.report`" in capsys.readouterr().err


def test_a_page_that_was_edited_or_is_not_there_is_found_and_made_again(tmp_path: Path) -> None:
    there = tmp_path / "results.md"
    assert report.main(["--check", "--page", str(there)]) == 1
    assert report.main(["--page", str(there)]) == 0
    assert report.main(["--check", "--page", str(there)]) == 0
    there.write_text(there.read_text().replace("734.6", "834.6"))
    assert report.main(["--check", "--page", str(there)]) == 1


def test_every_file_has_a_section_and_every_section_a_file() -> None:
    known = files()
    with pytest.raises(ValueError, match="new.json"):
        page({**known, "new.json": {}})
    known.pop("vision-gpu.json")
    with pytest.raises(ValueError, match="vision-gpu.json"):
        page(known)


@pytest.mark.parametrize("source", PAGE, ids=lambda source: source.file)
def test_every_section_says_where_when_and_how(source: Any) -> None:
    data = files()[source.file]
    text = " ".join(source.section(data, source.command, source.file).split())
    assert f"`{source.command}`" in text
    assert f"`benchmarks/results/{source.file}`" in text
    if "provenance" in data:
        provenance = data["provenance"]
        assert f"Measured on {'one ' + provenance['gpu'] if provenance['gpu'] else 'a CPU'}" in text
        assert f"on {provenance['utc'][:10]} by" in text
        assert f"torch {provenance['torch']}" in text
    else:
        assert data["machine"]["cpu"] in text
        assert "records no date" in text


def test_commands_on_a_gpu_are_those_of_gpu_sh() -> None:
    for source in PAGE:
        command = source.command.removesuffix(" --prompts 4")  # the run on an H200 was a short one
        if source.file not in ("same-tree-cpu.json", "sampling-cpu.json", "decoding-cpu.json", "optimizer.json"):
            assert command.replace("python -m", "python3 -m") + " --out" in COMMANDS


def test_every_table_has_a_sentence_before_it() -> None:
    blocks = page(files()).split("\n\n")
    tables = [index for index, block in enumerate(blocks) if block.startswith("|")]
    assert len(tables) > 20
    for index in tables:
        assert re.search(r"\bcolumns give\b", blocks[index - 1]), blocks[index]


def test_figures_of_the_engine_are_those_that_the_file_implies() -> None:
    data = files()["engine.json"]
    found = {row[0]: row[1:] for row in rows(section_of(page(files()), "The engine on one NVIDIA H100"))}
    generate, tree = data["systems"]["transformers generate"], data["systems"]["tree of 64 nodes, depth 8"]
    faster = (tree["tokens"] / tree["seconds"]) / (generate["tokens"] / generate["seconds"])
    assert found["treeopt, the exact tree of 64 nodes, depth 8"][1] == f"{faster:.2f}"
    (wide,) = [row for row in data["rows"] if row["what"] == "target pass, 256 nodes"]
    assert found["target pass, 256 nodes"][2] == f"{wide['milliseconds'] / wide['floor_ms']:.2f}"
    assert float(found["64 nodes, depth 8"][0]) == pytest.approx(1e3 * data["steps"]["64 nodes, depth 8"]["seconds"], abs=5e-4)


def test_figures_of_sampling_stand_under_their_rule_tree_and_verifier() -> None:
    known = files()
    text = page(known)
    for source in PAGE:
        if source.file.startswith("sampling"):
            wanted = known[source.file]["rows"]
            best, fixed = best_and_fixed(wanted)
            assert len(best) + len(fixed) == len(wanted)
            assert len(fixed) == (6 if source.file == "sampling-cpu.json" else 0)
            assert {(row["size"], row["depth"]) for row in fixed} <= {(32, 8), (64, 8), (64, 12)}
            for row in best:
                drafting = row["drafting"]
                tree = f"{shape(row)} ({row['size']}, {row['depth']})"
                start = (
                    f"| {row['temperature']:g} | `{drafting['rule']}` | {tree} | {drafting['verifier']} | {row['tokens_per_step']:.2f} ["
                )
                assert start in text


def test_systems_have_names_for_people() -> None:
    assert system_name("autoregressive") == "treeopt, autoregressive"
    assert system_name("tree of 64 nodes, depth 8") == "treeopt, the exact tree of 64 nodes, depth 8"
    assert system_name("chosen tree (64, 9)") == "treeopt, the tree it chose, 64 nodes, depth 9"


def test_small_functions_do_what_they_say() -> None:
    assert depth_of([-1, 0, 1, 1, 3]) == 3
    assert listed(["0", "0.2", "1"]) == "0, 0.2 and 1"
    assert listed(["0"]) == "0"
    assert [seconds(value) for value in (0.0013841, 0.0898, 1.9197)] == ["0.0014", "0.090", "1.92"]
    assert table(("a", "b"), [["x", ""]]).splitlines() == ["| a | b |", "|---|---:|", "| x | |"]
    with pytest.raises(ValueError, match="1 cells under 2 columns"):
        table(("a", "b"), [["x"]])


def test_paragraphs_are_wrapped_and_commands_are_not_cut() -> None:
    text = paragraph("A word. " * 20, "`" + "command with words " * 4 + "`", "and more. " * 12)
    assert max(len(line) for line in text.splitlines()) <= WIDTH
    assert all(line.count("`") % 2 == 0 for line in text.splitlines())
