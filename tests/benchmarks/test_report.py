"""docs/results.md says what the files of results say, and nothing else."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report
from benchmarks.reporting import page as page_module
from benchmarks.reporting.engine import system_name
from benchmarks.reporting.markdown import WIDTH, bullets, counted, link, paragraph, table
from benchmarks.reporting.optimizer import seconds
from benchmarks.reporting.page import EARLIER, PAGE, Superseded, entries_of, page
from benchmarks.reporting.reading import TABLES
from benchmarks.reporting.rules import step_name
from benchmarks.reporting.run import Run
from benchmarks.reporting.same_tree import depth_of
from benchmarks.reporting.sampling import SAMPLING, best_and_fixed, shape
from benchmarks.reporting.verdicts import MARK, Check, Goal, Slower, speedup, told, verdict
from treespec.errors import listed

RESULTS = report.ROOT / "benchmarks" / "results"
COMMANDS = (report.ROOT / "benchmarks" / "gpu.sh").read_text()


def files() -> dict[str, dict[str, Any]]:
    return {path.name: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}


def section_of(text: str, title: str) -> str:
    """The section that begins so, be it one of the page or one of the earlier runs."""
    return re.split(r"\n##", re.split(rf"\n##+ {re.escape(title)}", text)[1])[0]


def flat(text: str) -> str:
    """The text on one line."""
    return " ".join(text.split())


def section_of_page(text: str, title: str) -> str:
    """The section with the parts below it."""
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


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
        ("rules-h200.json", ("pairs", "7B and 68M", "dynamic (64, 8)", "ms")),
        ("predictions-7b-h200.json", ("rows", 5, "measured_seconds")),
        ("offload-gpu.json", ("speedup",)),
        ("training-gpu.json", ("rows", 2, "rank1_acceptance")),
        ("vision-gpu.json", ("target_prompt_ms",)),
        ("decoding-cpu.json", ("systems", "treeopt tree", "steps")),
        ("same-tree-cpu.json", ("rows", 3, "differences", 1, "mean")),
        ("sampling-cpu.json", ("rows", 11, "tokens_per_step")),
        ("sampling-gpu-mid.json", ("rows", 4, "visited", "p_value")),
        ("optimizer.json", ("results", 4, "peak_mib")),
        ("replay.json", ("results", 3, "seconds")),
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
    text = flat(source.kind.body(Run(source.file, source.command, data)))
    assert f"`{source.command}`" in text
    assert f"`benchmarks/results/{source.file}`" in text
    if "provenance" in data:
        provenance = data["provenance"]
        count = "one" if (provenance.get("processes") or 1) == 1 else f"{provenance['processes']} x"
        assert f"Measured on {count + ' ' + provenance['gpu'] if provenance['gpu'] else 'a CPU'}" in text
        assert f"on {provenance['utc'][:10]} by" in text
        assert f"torch {provenance['torch']}" in text
    else:
        assert data["machine"]["cpu"] in text
        assert "records no date" in text


def test_commands_on_a_gpu_are_those_of_gpu_sh() -> None:
    for source in PAGE:
        command = source.command.removesuffix(" --prompts 4").replace(
            "--temperatures 0.6", "--temperatures 0.2 0.6"
        )  # runs on an H200 were short
        if source.file not in (
            "same-tree-cpu.json",
            "sampling-cpu.json",
            "decoding-cpu.json",
            "optimizer.json",
            "growth.json",
            "replay.json",
            "acceptance-models.json",
            "audit-cpu.json",
            "drafts-cpu.json",
            "tensor-parallel.json",
        ):
            assert command.replace("python -m", "python3 -m") + " --out" in COMMANDS


def test_every_table_is_explained_before_it_or_leads_to_its_explanation() -> None:
    text = page(files())
    for title, how in TABLES.items():
        assert f"### {title}\n\n{how}" in section_of_page(text, "How to read the tables")
        assert re.search(r"\bcolumns give\b", how)
    blocks = text.split("\n\n")
    tables = [index for index, block in enumerate(blocks) if block.startswith("|")]
    assert len(tables) > 20
    for index in tables[1:]:  # the first one is the summary's
        before = flat(blocks[index - 1])
        assert re.search(r"\bcolumns give\b", before) or any(before.startswith(link(title)) for title in TABLES), before


def test_nothing_is_explained_twice() -> None:
    prose = [block for block in page(files()).split("\n\n") if not block.startswith(("|", "#", "- ", "Measured on", "["))]
    sentences = [found for found in re.findall(r"[^.]+\.(?=\s|$)", flat(" ".join(prose))) if "Superseded by" not in found]
    assert len(sentences) > 40
    assert [sentence for sentence in sentences if sentences.count(sentence) > 1] == []


def test_figures_of_the_engine_are_those_that_the_file_implies() -> None:
    data = files()["engine.json"]
    found = {row[0]: row[1:] for row in rows(section_of(page(files()), "The engine on one NVIDIA H100"))}
    generate, tree = data["systems"]["transformers generate"], data["systems"]["tree of 64 nodes, depth 8"]
    faster = (tree["tokens"] / tree["seconds"]) / (generate["tokens"] / generate["seconds"])
    assert found["treeopt, the best tree of 64 nodes, depth 8"][1] == f"{faster:.2f}"
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
                sampled = drafting["rule"] == "swr" or (drafting["rule"] == "swor" and row["temperature"] > 0)
                decides = drafting["verifier"] if sampled else "matching"
                start = f"| {row['temperature']:g} | `{drafting['rule']}` | {tree} | {decides} | {row['tokens_per_step']:.2f} ["
                assert start in text


def test_the_page_begins_with_a_summary_of_every_run() -> None:
    known = files()
    text = page(known)
    assert [line for line in text.splitlines() if line.startswith("## ")][:2] == ["## Summary", "## How to read the tables"]
    summary = section_of_page(text, "Summary")
    table_rows = rows(summary)[2:]
    assert [row[0] for row in table_rows if row[0]] == [
        link(entry.title, entry.short_title) + " (earlier)" * entry.earlier for entry in entries_of(known)
    ]
    for source in PAGE:
        provenance = known[source.file].get("provenance")
        if provenance:
            assert [row for row in table_rows if row[1] == f"{provenance['gpu'] or 'CPU'}, {provenance['utc'][:10]}"]
    engine = known["engine.json"]["systems"]
    (chosen,) = [name for name in engine if name.startswith("chosen")]
    rate = engine[chosen]["tokens_per_second"] / engine["autoregressive"]["tokens_per_second"]
    assert f"{rate:.2f} x autoregressive decoding (predicted: {known['engine.json']['chosen']['speedup']:.2f} x)" in summary


def test_what_the_page_says_of_all_models_holds() -> None:
    for file, data in files().items():
        for name in data.get("provenance", {"models": {}})["models"].values():
            head = file == "levels-h200.json" and name == "head"  # whose folder did not say that its weights are random
            assert name.startswith(("embedded-", "inflated-")) or name.endswith("random weights") or head, file


def missed_by_hand(known: dict[str, Any]) -> list[str]:
    """What is missed, from the files' own words alone."""
    found = []
    for file in ("engine.json", "engine-h200.json"):
        for row in known[file]["rows"]:
            if row["goal"]:
                figure = row["milliseconds"] if row["goal"].endswith("ms") else row["milliseconds"] / row["floor_ms"]
                if figure > float(row["goal"].removesuffix(" ms")):
                    found.append(row["what"].removeprefix("step, "))
    steps = known["rules-h200.json"]["pairs"]
    for pair, name, twin, limit in (
        ("7B and 68M", "swor (64, 7) sequential", "topk (64, 7)", 0.15),
        ("7B and 68M", "swr (64, 7)", "topk (64, 7)", 0.15),
        ("7B and 68M", "swor (64, 7) traversal", "topk (64, 7)", 0.25),
        ("7B and 68M", "dynamic (64, 8)", "topk (64, 8)", 0.2),
        ("30 layers x 576", "swor (16, 2) sequential", "topk (16, 2)", 0.1),
        ("30 layers x 576", "dynamic (64, 6)", None, 1.1),
    ):
        if steps[pair][name]["ms"] - (steps[pair][twin]["ms"] if twin else 0) > limit:
            found.append(step_name(name))
    for size in ("7b", "small"):
        rows = known[f"predictions-{size}-h200.json"]["rows"]
        found += sorted({row["name"] for row in rows if abs(row["error"]) > 0.05})
    commands = known["loop-h200.json"]["runs"]["filled cache"]
    limits = {"profile acceptance": 25, "profile latency": 40, "evaluate": 18, "in one process": 75, "tune": 90}
    found += [command for command, limit in limits.items() if command in commands and commands[command]["seconds"] > limit]
    for file in ("audit-h200.json", "audit-40-h200.json", "audit-cpu.json"):
        trees = [row for row in known[file]["rows"] if row["audited"]]
        for words, what in (("chances of ranks", "agreed"), ("replay", "agreed_by_replay")):
            if sum(row["splits"][what] for row in trees) < 0.9 * sum(row["splits"]["splits"] for row in trees):
                found.append(f"predictions that agree with the tokens per step of other prompts, by {words}")
        for words, what in (("chances of ranks", "seconds_per_token_error"), ("replay", "seconds_per_token_error_by_replay")):
            if max(abs(row.get(what, 0)) for row in trees) > 0.05:
                found.append(f"largest error of predicted seconds per token, by {words}")
    budgets = known["budgets-h200.json"]["rows"]
    if max(row["measured"]["over_picked"] for row in budgets) > 1.03:
        found.append("lead of the fastest budget over the chosen one")
    seconds, nodes = max((taken, nodes) for nodes, taken in known["levels-h200.json"]["draft_seconds"].items())
    found += [nodes] if seconds > 0.25e-3 else []
    return found


def test_missed_goals_are_marked_in_the_table_and_said_in_words() -> None:
    known = files()
    assert len(missed_by_hand(known)) >= 3
    for planted in ({}, {"engine.json": ("target pass, 64 nodes", "step, 64 nodes, depth 8")}):
        for file, names in planted.items():
            for row in known[file]["rows"]:
                row["milliseconds"] *= 1.2 if row["what"] in names else 1
        text = page(known)
        wanted = missed_by_hand(known)
        sections = text.partition("\n## How to read")[2]
        marked = [row for row in rows(sections) if row[-1].startswith("missed: ")]
        assert sorted(row[0] for row in marked) == sorted(wanted)
        assert all(sum(cell.startswith(MARK) for cell in row) == 1 for row in marked)
        assert flat(section_of_page(text, "Summary")).count(": missed: ") == len(wanted)
    assert "| ✗ 1.37 | missed: 1.37 against at most 1.35 x floor |" in text


def test_goals_of_the_optimizer_and_of_offloading_are_judged_as_their_files_do(tmp_path: Path) -> None:
    known = files()
    kinds = {source.file: source.kind for source in PAGE}
    data = known["optimizer.json"]
    assert {row["met"] for row in data["results"]} == {True, None}
    for row in data["results"]:
        checks = kinds["optimizer.json"].checks({**data, "results": [row]})
        assert (all(check.met for check in checks) if checks else None) == row["met"]
    slow = {**data["results"][1], "seconds": 2.004, "peak_mib": 501.0}
    assert (
        verdict(kinds["optimizer.json"].checks({"results": [slow]}))
        == "missed: 2.004 against at most 2 s; missed: 501 against at most 500 MiB"
    )
    offload = known["offload-gpu.json"]
    assert [check.goal.limit for check in kinds["offload-gpu.json"].checks(offload)] == list(offload["goals"].values())
    offload["figures"]["speed-up / tokens per step"] = 0.8
    assert "| ✗ 0.800 | missed: 0.800 against at least 0.9 |" in page(known)


def test_verdicts_go_by_the_figure_before_rounding() -> None:
    most, least = Goal(1.35, "x floor"), Goal(100, "x", at_most=False)
    assert verdict([Check("a", 1.35, most)]) == "met: at most 1.35 x floor"
    assert verdict([Check("a", 1.3504, most)]) == "missed: 1.3504 against at most 1.35 x floor"
    assert Check("a", 1.3504, most).figure == f"{MARK}1.3504"
    assert verdict([Check("a", 99.7, least, 0), Check("b", 1.3, most)]) == "missed: 99.7 against at least 100 x"
    assert verdict([]) == ""
    assert [speedup(0.9988, (0.9, 1.1)), speedup(1.0, (0.9, 1.1))] == [f"{MARK}0.999 [0.90, 1.10]", "1.00 [0.90, 1.10]"]
    assert speedup(0.5, [0.4, 0.6]) == f"{MARK}0.50 [0.40, 0.60]"
    words = told([Slower("a", 0.9, "b", (0.8, 0.95)), Slower("c", 0.9, "b", (0.8, 1.0)), Slower("d", 0.9, "b")])
    assert [line[:4] for line in words.splitlines() if line.startswith("- ")] == ["- ✗ "] * 3
    assert words.count("speculation lost") == 2
    assert "may be chance: c, 0.90 [0.80, 1.00] x." in flat(words)


def test_speculation_that_lost_is_said_in_words() -> None:
    known = files()
    lost = [row for row in known["sampling-cpu.json"]["rows"] if row["intervals_95"]["speedup"][1] < 1]
    assert {(row["temperature"], row["drafting"]["rule"]) for row in lost} == {(1.0, "topk")}
    section = flat(section_of(page(known), "Drafting rules and verifiers on a CPU"))
    assert section.count("speculation lost") == len(lost) == 2
    assert "temperature 1, `topk`, static tree (7, 1), matching: speculation lost, with 0.90 [0.86, 0.95] x" in section
    row = known["sampling-gpu.json"]["rows"][0]
    row["speedup"], row["intervals_95"]["speedup"] = 0.7, [0.6, 0.8]
    text = page(known)
    for part in (section_of(text, "Drafting rules and verifiers on one NVIDIA H100"), section_of_page(text, "Summary")):
        assert "speculation lost, with 0.70 [0.60, 0.80] x" in flat(part)
    known["offload-gpu.json"]["speedup"] = 0.5
    assert "nodes, depth 16: speculation lost, with 0.50 x" in flat(section_of(page(known), "Offloading"))


def test_earlier_runs_stand_at_the_end_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    known = files()
    text = page(known)
    titles = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert titles[-1] == "Earlier runs"
    end = section_of_page(text, "Earlier runs")
    entries = {entry.run.file: entry for entry in entries_of(known)}
    for file, found in EARLIER.items():
        assert entries[file].title not in titles
        assert f"### {entries[file].title}\n\nSuperseded by {link(entries[found.by].title)} of " in end
        assert flat(found.why) in flat(end)
    assert end.count("\n### ") == len(EARLIER) == 2
    monkeypatch.setitem(page_module.EARLIER, "engine.json", Superseded("engine-h200.json", "No reason."))
    with pytest.raises(ValueError, match="is no later"):
        page(known)


def test_a_run_of_fewer_prompts_says_so_beside_its_figures() -> None:
    known = files()
    text = page(known)
    said = "These figures are of only 4 prompts, the first 4 of the 12 prompts of the run on one NVIDIA H100"
    section = section_of(text, "The engine on one NVIDIA H200")
    (caption,) = [block for block in section.split("\n\n") if block.startswith("[Whole decoders]")]
    assert said in flat(caption)
    assert "| 4 of 12 |" in section_of_page(text, "Summary")
    assert "only 6 prompts, the first 6 of the 8 prompts" in flat(section_of(text, SAMPLING.title(known["sampling-gpu-mid.json"])))
    known["engine-h200.json"]["provenance"]["dataset"] = "stdlib[40:44]"  # other prompts are not the first ones
    assert said not in flat(page(known))


def test_topk_is_matched_on_the_page_as_it_is_in_the_engine() -> None:
    text = page(files())
    assert "`topk`, sequential" not in text
    assert not re.search(r"`topk` \| \w+ \(\d+, \d+\) \| (sequential|traversal)", text)
    header = rows(section_of(text, "Drafting rules and verifiers on one tree"))[0]
    assert header[1:] == ["`topk`, matching", "`swor`, sequential", "`swr`, sequential", "`swor`, traversal", "`swr`, traversal"]
    assert "At temperature 0, `swor` samples nothing, and matching verifies it too." in flat(text)


def test_counts_agree_with_their_nouns() -> None:
    assert [counted(number, "prompt") for number in (0, 1, 2, 1500)] == ["0 prompts", "1 prompt", "2 prompts", "1,500 prompts"]
    known = files()
    for system in known["engine-h200.json"]["systems"].values():
        system["identical"] = 1
    known["offload-gpu.json"]["prompts"] = known["offload-gpu.json"]["gen_len"] = 1
    for key in ("steps", "batch_size", "rows", "prompts"):
        known["training-gpu.json"]["settings"][key] = 1
    known["vision-gpu.json"]["picture_rows"] = 1
    known["optimizer.json"]["machine"]["cores"] = 1
    for name in ("sampling-gpu.json", "sampling-gpu-mid.json"):
        known[name]["profiling_seconds"]["prompts"] = 1
        for row in known[name]["rows"]:
            row["tokens_and_steps"] = row["tokens_and_steps"][:1]
    assert "on 1 prompt of 128 tokens" in flat(page(known))
    for text in (page(files()), page(known)):
        prose = flat(re.sub(r"^\|.*$", "", text, flags=re.MULTILINE))
        nouns = "prompt|step|token|text|row|node|window|position|rank|draw|core|run|case|figure"
        assert re.findall(rf"(?<![\d.,+-] )(?<![\d.,])\b1 (?:{nouns})s\b", prose) == []
        assert re.findall(rf"\b(?:\d*[02-9]|\d+1) (?:{nouns})\b(?! of)", prose) == []


def test_systems_have_names_for_people() -> None:
    assert system_name("autoregressive") == "treeopt, autoregressive"
    assert system_name("tree of 64 nodes, depth 8") == "treeopt, the best tree of 64 nodes, depth 8"
    assert system_name("chosen tree (64, 9)") == "treeopt, the tree it chose, 64 nodes, depth 9"


def test_small_functions_do_what_they_say() -> None:
    assert depth_of([-1, 0, 1, 1, 3]) == 3
    assert listed(["0", "0.2", "1"]) == "0, 0.2 and 1"
    assert listed(["0"]) == "0"
    assert [seconds(value) for value in (0.0013841, 0.0898, 1.9197)] == ["0.0014", "0.090", "1.92"]
    assert table(("a", "b"), [["x", ""]]).splitlines() == ["| a | b |", "|---|---:|", "| x | |"]
    with pytest.raises(ValueError, match="1 cells under 2 columns"):
        table(("a", "b"), [["x"]])


def test_lists_are_wrapped_and_links_are_not_cut() -> None:
    text = bullets([f"{'word ' * 24}{link('A title of some words')} and more.", "Short."])
    assert text.splitlines()[1:] == ["  [A title of some words](#a-title-of-some-words) and more.", "- Short."]


def test_paragraphs_are_wrapped_and_commands_are_not_cut() -> None:
    text = paragraph("A word. " * 20, "`" + "command with words " * 4 + "`", "and more. " * 12)
    assert max(len(line) for line in text.splitlines()) <= WIDTH
    assert all(line.count("`") % 2 == 0 for line in text.splitlines())
