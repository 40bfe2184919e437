"""Pictures and pages of the command line: written, or refused in one line before any work."""

from pathlib import Path
from typing import Any

import pytest

from treespec.trees.growmap import GrowMap
from treespec.trees.tree import SpeculationTree

Pair = tuple[Path, Path]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    GrowMap(SpeculationTree.k_ary(2, 2), {"rank_probability": [[0.6, 0.2]]}).write(tmp_path / "tree.pt")
    return tmp_path / "tree.pt"


def test_inspect_writes_the_pictures_of_each_kind_of_file(run: Any, tree: Path, profiles: Pair, tmp_path: Path) -> None:
    for number, file in enumerate((tree, *profiles, "68m_7b-16")):
        done = run("inspect", file, "--svg", f"{number}.svg", "--png", f"{number}.png", "--format", "json")
        assert done.code == 0, done.err
        assert done.json
        assert done.err.splitlines() == [f"wrote {number}.svg", f"wrote {number}.png"]
        assert b"<svg" in (tmp_path / f"{number}.svg").read_bytes()[:200]
        assert (tmp_path / f"{number}.png").read_bytes().startswith(b"\x89PNG")
    again = run("inspect", tree, "--svg", "0.svg")
    assert (again.code, again.err) == (0, "wrote 0.svg, in place of an earlier one\n")


def test_a_picture_has_at_most_as_many_nodes_as_are_asked_for(run: Any, tree: Path, tmp_path: Path) -> None:
    assert run("inspect", tree, "--svg", "few.svg", "--max-nodes", 3).code == 0
    assert (tmp_path / "few.svg").read_text().count("<title>") == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["missing.pt", "--svg", "a.svg"], "there is no file missing.pt"),
        (["tree.pt", "--svg", "none/tree.svg"], "cannot write none/tree.svg: its folder does not exist; create it first"),
        (
            ["tree.pt", "--png", "tree.pt"],
            "tree.pt would be overwritten but is no picture in PNG; name another output, or delete that file",
        ),
        (["tree.pt", "--svg", "tree.json"], "tree.json would be overwritten but is no picture in SVG"),
        (["tree.pt", "--svg", "a", "--png", "a"], "--svg and --png both name a; name two files"),
        (
            ["tree.pt", "--png", "a.svg"],
            "--png writes PNG, but the name a.svg ends in .svg; name a file that ends in .png, or pass it as --svg",
        ),
        (
            ["tree.pt", "--svg", "a.PNG"],
            "--svg writes SVG, but the name a.PNG ends in .PNG; name a file that ends in .svg, or pass it as --png",
        ),
        (["tree.pt", "--png", "a.pdf"], "--png writes PNG, but the name a.pdf ends in .pdf; name a file that ends in .png"),
        (["--list", "--svg", "a.svg"], "--svg is for one file, and --list shows all growmaps; drop it"),
        (
            ["report.json", "--png", "a.png"],
            "there is no picture of report.json; pass a growmap, an acceptance profile, a latency profile or a trace",
        ),
        (["notes.txt", "--png", "a.png"], "notes.txt"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(run: Any, tree: Path, tmp_path: Path, words: list[str], said: str) -> None:
    from treespec.evaluation.report import EvaluationReport

    EvaluationReport("baseline", (), 0.0).write(tmp_path / "report.json")
    (tmp_path / "notes.txt").write_text("some notes")
    before = sorted(path.name for path in tmp_path.iterdir())
    done = run("inspect", *words)
    assert done.code in (1, 2)
    assert said in " ".join(done.err.split())
    assert len(done.err.strip().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_page_that_cannot_be_written_is_refused_before_any_work(run: Any, pair: Pair, rows: Path, tree: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.html").write_text("<html>my own</html>")
    models = ["--target", pair[0], "--draft", pair[1], "--device", "cpu", "--growmap", tree, "--dataset", rows]
    for path, said in (
        ("none/page.html", "its folder does not exist"),
        ("mine.html", "is no page of treeopt"),
        ("page.svg", "--html writes HTML, but the name page.svg ends in .svg; name a file that ends in .html"),
    ):
        done = run("evaluate", *models, "--html", path)
        assert done.code == 1
        assert said in done.err
        assert len(done.err.strip().splitlines()) == 1
    assert not (tmp_path / "report.json").exists()


def test_an_evaluation_writes_a_page(run: Any, pair: Pair, rows: Path, profiles: Pair, tmp_path: Path) -> None:
    for name, file in zip(("a", "l"), profiles, strict=True):
        (tmp_path / f"{name}.json").write_bytes(file.read_bytes())
    assert run("grow", "--acceptance", "a.json", "--latency", "l.json", "-o", "tree.pt").code == 0
    where = ["--dataset", rows, "--num-prompts", 2, "--prompt-len", 8, "--gen-len", 4]
    models = ["--target", pair[0], "--draft", pair[1], "--device", "cpu"]
    done = run("evaluate", *models, *where, "--growmap", "tree.pt", "--sample-texts", 1, "--html", "page.html")
    assert done.code == 0, done.err
    assert "wrote page.html" in done.err
    page = (tmp_path / "page.html").read_text()
    for section in ("measured", "acceptance", "latency", "speedup", "tree", "prompts", "samples", "commands"):
        assert f'<section id="{section}"' in page, section
    assert page.count('<pre class="sample">') == 1
    assert "treeopt grow --acceptance a.json --latency l.json" in page
    assert f"treeopt evaluate --target {pair[0]}" in page
    again = run("evaluate", *models, *where, "--growmap", "tree.pt", "--sample-texts", 0, "--html", "page.html")
    assert again.code == 0, again.err
    assert "wrote page.html, in place of an earlier one" in again.err
    assert "pieces" not in (tmp_path / "report.json").read_text()
    assert '<section id="samples"' not in (tmp_path / "page.html").read_text()
