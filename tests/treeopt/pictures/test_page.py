"""The page stands alone, escapes what it is given, and a browser shows it."""

import re
import shutil
import subprocess
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.treeopt.pictures.conftest import HOSTILE
from treeopt.pictures import facts
from treeopt.pictures.page import page
from treeopt.pictures.writing import check_replaceable, write
from treespec.errors import OutputError
from treespec.evaluation.drawing import speeds
from treespec.printable import printable
from treespec.tables import Table, number
from treespec.trees.growmap import GrowMap
from treespec.trees.tree import SpeculationTree

BROWSER = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Reader(HTMLParser):
    """The elements, attributes and text of a page. Fails where elements are not closed in their order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


SECTIONS = ("measured", "prediction", "acceptance", "latency", "speedup", "tree", "prompts", "samples", "commands")


@pytest.fixture
def text(found: dict[str, Any]) -> str:
    return page(**found, commands=[f"treeopt evaluate --dataset '{HOSTILE}'"])


def test_every_section_is_there_and_nothing_from_elsewhere(text: str) -> None:
    read = Reader(text)
    assert [name for name in read.ids if name in SECTIONS] == [
        "measured",
        "prediction",
        "acceptance",
        "latency",
        "speedup",
        "prompts",
        "tree",
        "samples",
        "commands",
    ]
    assert len(read.ids) == len(set(read.ids))
    assert not read.tags & {"script", "iframe", "object", "embed", "link", "img", "image", "foreignobject", "form", "base"}
    for name, value in read.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href", "action"):
            assert value.startswith("#")
    assert "url(" not in re.sub(r"url\(#", "", text)
    assert "@import" not in text


def test_texts_from_outside_are_shown_and_do_nothing(text: str) -> None:
    assert "<script" not in text
    assert "\u202e" not in text
    assert "\x1b" not in text
    shown = printable(HOSTILE)
    assert Reader(text).text.count(shown) >= 6


def test_the_page_says_what_the_results_say(found: dict[str, Any], text: str) -> None:
    words = " ".join(Reader(text).text.split())
    report = found["report"]
    low, high = report.intervals["speedup"]
    assert f"{report.speedup:.2f} x [{low:.2f}, {high:.2f}] over autoregressive decoding: faster" in words
    assert "2.100 [2.000, 2.200]" in words
    assert "Lossless: all 3 outputs equal those of autoregressive decoding, token for token." in words
    assert "A speed-up of 1.80 x was promised, from the chances of the ranks in the acceptance profile." in words
    assert "those that the growmap promises: they come from the chances of the ranks" in words
    assert f"What the growmap promises, {found['growmap'].promise.speedup:.2f} x, comes from the same chances." in words


@pytest.mark.parametrize("given", ["acceptance", "latency", "growmap", "report"])
def test_a_page_of_one_result_alone_is_whole(found: dict[str, Any], given: str) -> None:
    assert Reader(page(**{given: found[given]})).text


def test_runs_without_a_step_or_a_tree_have_a_page(found: dict[str, Any]) -> None:
    report = found["report"]
    nothing = replace(
        report, results=tuple(replace(r, tokens=1, steps=0, seconds=0.0, accepted_ranks=(), pieces=()) for r in report.results)
    )
    assert "No step" in Reader(page(report=nothing)).text
    alone = replace(report, mode="baseline", tree=None, results=tuple(replace(r, accepted_ranks=(), pieces=()) for r in report.results))
    assert "tokens per second" in Reader(page(report=alone)).text


def test_speeds_are_those_of_the_terminal_and_words_of_the_library_are_marked(found: dict[str, Any]) -> None:
    report = found["report"]
    text = page(report=report, missing=["left out for `max_length` and `<b>`"])
    assert [cell in text for row in speeds(report.summary()).rows for cell in row if "[" not in cell] == [True] * 6
    low, high = report.intervals["tokens_per_step"]
    assert f"{report.tokens_per_step:.3f} [{low:.3f},\N{NO-BREAK SPACE}{high:.3f}]" in text
    assert "Left out for max length and <code>&lt;b&gt;</code>." in text


def test_candidates_that_lost_are_shown_and_the_chosen_one_is_marked(found: dict[str, Any], text: str) -> None:
    rows = [("fast", "16", number(150.0, 1, (140.0, 160.0))), (HOSTILE, "4", number(92.0, 1)), ("slow", "2", number(51.0, 1))]
    table = Table("candidates, the chosen one first", ("candidate", "size", "expected tokens/s"), rows, left=("candidate",))
    shown = page(report=found["report"], candidates=table, candidate_notes=["compared on 4 prompts"])
    section = shown.partition('<section id="candidates">')[2].partition("</section>")[0]
    cells = [re.findall("<td.*?>(.*?)</td>", row) for row in section.split("<tr")[2:]]
    assert cells == [
        ['fast <span class="mark">chosen</span>', "16", "150.0 [140.0,\N{NO-BREAK SPACE}160.0]"],
        [escape(printable(HOSTILE), quote=False).replace("'", "&#39;").replace('"', "&#34;"), "4", "92.0"],
        ["slow", "2", "51.0"],
    ]
    assert section.count('<tr class="chosen"><td>fast ') == section.count("chosen</span>") == 1
    assert '<p class="note">Candidates, the chosen one first.</p>' in section
    assert "Compared on 4 prompts." in section
    assert 'id="candidates"' not in text


def test_no_name_of_a_parameter_is_shown(found: dict[str, Any]) -> None:
    latency = replace(found["latency"], target=tuple(replace(one, seconds=one.seconds[:4]) for one in found["latency"].target))
    results = tuple(replace(result, tokens=6, pieces=()) for result in found["report"].results)
    report = replace(found["report"], results=results, settings={**found["report"].settings, "gen_len": 6})
    words = " ".join(Reader(page(**{**found, "report": report, "latency": latency})).text.split())
    assert "3 of 3 texts ended at the limit of 6 tokens" in words
    assert "take 24 repetitions or more" in words
    assert "with 95 % intervals where a point has 24 samples or more: fewer are too few" in words
    assert not re.findall(r"[a-z]{2,}_[a-z]\w*", words)


def test_several_categories_have_a_table_and_one_has_none(found: dict[str, Any]) -> None:
    report, acceptance = found["report"], found["acceptance"]
    assert 'id="categories"' not in page(**found)
    kinds = ("code", "", "code")
    report = replace(report, results=tuple(replace(r, category=kind) for r, kind in zip(report.results, kinds, strict=True)))
    table = facts.categories(None, report)
    assert table is not None
    assert [row[:2] for row in table.rows] == [["code", "2"], ["-", "1"]]
    assert "[" in table.rows[0][2]
    assert "[" not in table.rows[1][2], "one prompt has no interval"
    profiled = replace(
        acceptance,
        prompts=3,
        positions=30,
        rank_probability=(0.5, 0.2),
        standard_error=(0.1, 0.1),
        none_accepted=0.3,
        by_depth=None,
        prompt_sums=((8, 1), (2, 2), (5, 3)),
        prompt_positions=(10, 10, 10),
        prompt_categories=("code", "code", "maths"),
    )
    table = facts.categories(profiled, report)
    assert table is not None
    assert [(row[0], *row[-2:]) for row in table.rows] == [("code", "2", "0.50 [0.00, 1.00]"), ("-", "-", "-"), ("maths", "1", "0.50")]
    assert 'id="categories"' in page(report=report, acceptance=profiled)
    assert facts.categories(profiled, replace(report, mode="baseline")) is not None, "what was profiled"
    one = replace(report, results=tuple(replace(r, category="code") for r in report.results))
    assert facts.categories(None, one) is None


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        (SpeculationTree((-1,)), "The tree is the root alone: nothing is drafted, and every step is an autoregressive one."),
        (SpeculationTree.chain(4), "The tree is a chain of depth 4."),
        (SpeculationTree.k_ary(2, 2), "The tree has 7 nodes and depth 2."),
    ],
)
def test_the_shape_of_the_tree_is_said(tree: SpeculationTree, said: str) -> None:
    assert said in Reader(page(growmap=GrowMap(tree))).text


def test_dynamic_trees_are_described_by_their_budget(found: dict[str, Any]) -> None:
    static = replace(found["report"], results=10 * found["report"].results)
    report = replace(static, mode="dynamic", tree={"size": 8, "depth": 4, "width": 3})
    words = Reader(page(report=report)).text
    assert "A tree is grown for every step: 8 nodes, depth 4, and at most 3 nodes of a level get children." in words
    assert "whether or not they had a child of that rank" in words
    assert "Observed shares are those of the nodes that decoding visited; fewer" in Reader(page(report=static)).text


def test_a_page_replaces_a_page_and_no_other_file(found: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    for _ in range(2):
        check_replaceable(file, "html")
        write(file, page(growmap=found["growmap"]))
    (tmp_path / "mine.html").write_text("<html>my own</html>")
    with pytest.raises(OutputError, match="would be overwritten but is no page of treeopt"):
        check_replaceable(tmp_path / "mine.html", "html")
    with pytest.raises(OutputError, match="its folder does not exist"):
        check_replaceable(tmp_path / "none" / "page.html", "html")


@pytest.mark.skipif(BROWSER is None, reason="needs chromium to open the page (Debian: apt-get install chromium)")
@pytest.mark.parametrize(("width", "wider"), [(400, ["tree"]), (1400, [])])
def test_a_browser_opens_the_page_and_nothing_sticks_out(found: dict[str, Any], tmp_path: Path, width: int, wider: list[str]) -> None:
    """A frame of that width is put around the page and measured by a script of the test's own; scripts of the page do not run.

    Of its pictures a large tree alone is wider than a narrow page, and the page says so there and nowhere else.
    """
    from PIL import Image

    chances = {"rank_probability": found["growmap"].promise.rank_probability}
    text = page(**{**found, "growmap": GrowMap(SpeculationTree.k_ary(3, 3), chances)})
    (tmp_path / "page.html").write_text(text)
    assert BROWSER is not None
    common = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={tmp_path / 'profile'}"]
    shot = [*common, f"--window-size={max(500, width)},900", f"--screenshot={tmp_path / 'shot.png'}", f"file://{tmp_path / 'page.html'}"]
    done = subprocess.run(shot, capture_output=True, text=True, timeout=240)
    assert (tmp_path / "shot.png").exists(), done.stderr
    assert len(Image.open(tmp_path / "shot.png").convert("RGB").getcolors(1 << 24) or []) > 50
    measuring = text.replace("default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'").replace(
        "</body>",
        f"<script>document.body.style.width='{width}px';document.title=[...document.querySelectorAll('header,section')]"
        ".map(e=>e.getBoundingClientRect()).filter(r=>r.right>" + str(width) + "+1||r.height<20).length+' stick out';"
        "const of=(kind,is)=>[...document.querySelectorAll(kind)].filter(is).map(e=>e.closest('section').id).join();"
        "document.title+='; wider: '+of('.picture',e=>e.scrollWidth>e.clientWidth)+'; said of: '+of('.hint',e=>e.offsetHeight>0)</script></body>",
    )
    (tmp_path / "measured.html").write_text(measuring)
    done = subprocess.run(
        [*common, f"--window-size={max(500, width)},900", "--dump-dom", f"file://{tmp_path / 'measured.html'}"],
        capture_output=True,
        text=True,
        timeout=240,
    )
    names = ",".join(wider)
    assert f"<title>0 stick out; wider: {names}; said of: {names}</title>" in done.stdout, re.findall("<title>.*?</title>", done.stdout)[:1]
