"""The snippets of the pages for people: each is run as it stands there, or says right before it why not and is at least understood.

A block of code begins with ```python (run in this process), ```text (output and drawings) or ``` alone (shell). A comment
`<!-- not run: REASON -->` on the line before takes a block out. RUN_ELSEWHERE names the pages that have tests of their own, which run them.
"""

import contextlib
import io
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from tests.cli.conftest import Run, _same_environment, run  # noqa: F401
from treespec.trees.growmap import GrowMap
from treespec.trees.tree import SpeculationTree

ROOT = Path(__file__).parents[1]
RUN_ELSEWHERE = {f"docs/{page}.md" for page in ("extending", "from-the-study", "python", "transformers")}
PAGES = sorted(["README.md", "CONTRIBUTING.md", "growmaps/README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
NOT_RUN = re.compile(r"<!-- not run: (\w.+) -->")
ASSIGNMENT = re.compile(r'(\w+)="(.*)"')


@dataclass(frozen=True)
class Block:
    """One block of code on a page."""

    page: str
    line: int
    language: str
    text: str
    reason: str | None
    """Why it is not run."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """Words of its command lines: continued lines joined, variables put in, comments left out."""
        found, variables = [], {}
        for line in self.text.replace("\\\n", " ").splitlines():
            if assigned := ASSIGNMENT.fullmatch(line):
                variables[assigned[1]] = assigned[2]
            else:
                whole = re.sub(r"\$(\w+)", lambda match: variables[match[1]], line)
                found.append([*shlex.split(whole, comments=True)])
        return [words for words in found if words]


def blocks(page: str) -> Iterator[Block]:
    """The blocks of a page. Fails where one is not closed."""
    lines = (ROOT / page).read_text().splitlines()
    fences = [number for number, line in enumerate(lines) if line.strip().startswith("```")]
    assert len(fences) % 2 == 0, f"{page} has a block that is not closed"
    for start, stop in zip(fences[::2], fences[1::2], strict=True):
        before = NOT_RUN.fullmatch(lines[start - 1].strip()) if start else None
        text = "\n".join(lines[start + 1 : stop]) + "\n"
        yield Block(page, start + 1, lines[start].strip().removeprefix("```"), text, before and before[1])


BLOCKS = [block for page in PAGES if page not in RUN_ELSEWHERE for block in blocks(page)]
SHELL = [block for block in BLOCKS if block.language == ""]


def inline(page: str) -> list[str]:
    """Commands of treeopt inside the text of a page; of a data set or a pair that stands for any, only that it is one is left."""
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    return [re.sub(r" (\$\w+|\.\.\.)", "", found) for found in re.findall(r"`treeopt ([^`]+)`", text)]


def understood(words: list[str]) -> None:
    """Raises click.UsageError where a command line of treeopt has a command or an option that is not there, or an option without a value."""
    from treeopt.cli.main import main

    command: click.Command = main
    context = click.Context(main, info_name="treeopt")
    while isinstance(command, click.Group) and words and not words[0].startswith("-") and not words[0].isupper():
        _, found, words = command.resolve_command(context, words)
        assert found is not None
        command = found
        context = click.Context(command, context, info_name=command.name)
    command.make_parser(context).parse_args(list(words))


@pytest.fixture
def desk(tmp_path: Path, run: Run) -> Path:  # noqa: F811
    """The empty folder that commands run in, with the tree that `make demo` leaves."""
    (tmp_path / "treeopt-demo").mkdir()
    GrowMap(SpeculationTree.from_branches([[3], [2, 1, 0]])).write(tmp_path / "treeopt-demo" / "tree.pt")
    return tmp_path


def test_every_block_says_what_it_is() -> None:
    assert {block.language for block in BLOCKS} <= {"", "python", "text"}
    assert [str(block) for block in BLOCKS if block.reason and block.language == "text"] == []


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "python" and not block.reason], ids=str)
def test_python_runs_and_prints_what_its_comments_say(block: Block, desk: Path) -> None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(block.text, str(block), "exec"), {"__name__": "snippet"})
    expected = re.findall(r"^print\(.*\)  # (.*)$", block.text, re.MULTILINE)
    assert said.getvalue()
    if expected:  # figures of this machine are in no comment
        assert len(expected) == block.text.count("print("), "say in a comment what is printed"
        assert said.getvalue().splitlines() == expected


@pytest.mark.parametrize("block", [block for block in SHELL if not block.reason], ids=str)
def test_commands_run(block: Block, desk: Path, run: Run) -> None:  # noqa: F811
    for program, *words in block.commands:
        assert program in ("treeopt", ".venv/bin/treeopt"), f"{block} runs {program}: say why it is not run"
        done = run(*words)
        assert done.code == 0, done.err
        assert done.out


@pytest.mark.parametrize("block", [block for block in SHELL if block.reason], ids=str)
def test_commands_that_are_not_run_are_understood(block: Block) -> None:
    for program, *words in block.commands:
        if program in ("treeopt", ".venv/bin/treeopt"):
            understood(words)


@pytest.mark.parametrize("page", PAGES)
def test_commands_inside_the_text_are_understood(page: str) -> None:
    for command in inline(page):
        understood(shlex.split(command))


def options(command: click.Command) -> Iterator[list[str]]:
    """The spellings of every option of a command and of those below it."""
    yield from ([*option.opts, *option.secondary_opts] for option in command.params if isinstance(option, click.Option))
    if isinstance(command, click.Group):
        for below in command.commands.values():
            yield from options(below)


def test_the_page_of_commands_names_every_option() -> None:
    from treeopt.cli.main import main

    named = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", (ROOT / "docs/commands.md").read_text()))
    known = list(options(main))
    assert len(known) > 100
    assert [spellings for spellings in known if named.isdisjoint(spellings)] == []
    assert {name for name in named if name.startswith("--")} - {name for spellings in known for name in spellings} == {"--help", "--model"}


def links(page: str) -> list[str]:
    """Where a page links to in this project, blocks of code left out."""
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith("http")]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in links(page):
        file, _, anchor = link.partition("#")
        found = ((ROOT / page).parent / file if file else ROOT / page).resolve()
        assert found.exists(), f"{page} links to {link}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", found.read_text(), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, f"{page} links to {link}"


def test_the_glossary_is_in_order_and_short() -> None:
    _, *parts = re.split(r"^### (.+)$", (ROOT / "docs/glossary.md").read_text(), flags=re.MULTILINE)
    terms = dict(zip(parts[::2], parts[1::2], strict=True))
    assert list(terms) == sorted(terms, key=str.lower)
    assert [term for term, text in terms.items() if len(re.findall(r"[.:?](?=\s|$)", text)) > 5] == []


def test_the_results_in_the_readme_are_those_that_were_measured() -> None:
    on_gpu, offloaded = (json.loads((ROOT / f"benchmarks/results/{name}.json").read_text()) for name in ("engine", "offload-gpu"))
    engine, offload = on_gpu["systems"], offloaded["systems"]
    sampled = [json.loads(path.read_text()) for path in (ROOT / "benchmarks/results").glob("sampling-gpu*.json")]
    warm = max(
        (found for found in sampled if {0.6} & {row["temperature"] for row in found["rows"]}), key=lambda found: found["provenance"]["utc"]
    )
    fastest = max((row for row in warm["rows"] if row["temperature"] == 0.6), key=lambda row: 1 / row["seconds_per_token"])
    speed = {name: system["tokens"] / system["seconds"] for name, system in engine.items()}
    (chosen,) = [name for name in engine if name.startswith("chosen tree")]
    slow, tree = offload["autoregressive"], offload["tree"]
    plain, autoregressive = speed["transformers generate"], speed["autoregressive"]
    expected = [
        *(
            [f"{speed[name]:.1f}", f"{speed[name] / plain:.2f}", f"{speed[name] / autoregressive:.2f}"]
            for name in ("transformers generate", "transformers assisted", "autoregressive", chosen)
        ),
        [f"{1 / fastest['seconds_per_token']:.1f}", "-", f"{fastest['speedup']:.2f}"],
        [f"{tree['tokens'] / tree['seconds']:.1f}", "-", f"{tree['tokens'] / tree['seconds'] / (slow['tokens'] / slow['seconds']):.2f}"],
    ]
    per_step = [engine[chosen]["tokens"] / engine[chosen]["steps"], fastest["tokens_per_step"], tree["tokens"] / tree["steps"]]
    steps = ["1", "-", "1", *(f"{number:.2f}" for number in per_step)]
    promised = on_gpu["chosen"]
    predicted = [
        *[["-", "-"]] * 3,
        [f"{promised['speedup']:.2f}", f"{promised['expected']:.2f}"],
        ["-", "-" if fastest["expected_tokens_per_step"] is None else f"{fastest['expected_tokens_per_step']:.2f}"],
        ["-", f"{offloaded['tree']['expected_tokens_per_step']:.2f}"],
    ]
    text = (ROOT / "README.md").read_text().partition("## Results")[2].partition("\n## ")[0]
    header, *rows = [[cell.strip() for cell in row.split("|")[2:-1]] for row in text.splitlines() if row.startswith(("| system", "| t"))]
    assert [name.startswith("predicted by the profiles: ") for name in header] == [False] * 4 + [True] * 2
    assert text.strip().startswith("Measured on")
    assert [[*row[:2], row[2].partition(" ")[0], *row[3:]] for row in rows] == [
        [*cells, step, *said] for cells, step, said in zip(expected, steps, predicted, strict=True)
    ]


def test_what_the_readme_says_of_memory_and_time_was_measured() -> None:
    engine, optimizer = (json.loads((ROOT / f"benchmarks/results/{name}.json").read_text()) for name in ("engine", "optimizer"))
    ways = [engine["systems"][name] for name in engine["systems"] if name == "autoregressive" or name.startswith("chosen tree")]
    (whole,) = [row["seconds"] for row in optimizer["results"] if row["what"].startswith("treeopt generate")]
    text = " ".join((ROOT / "README.md").read_text().split())
    assert f"{engine['memory_bytes']['peak'] / 1e9:.0f} GB of GPU memory were used at most" in text
    assert f"a latency profile took {engine['profile_seconds']:.0f} s" in text
    assert f"each prompt, {128 * sum(way['seconds'] / way['tokens'] for way in ways):.1f} s;" in text
    assert f"`grow` took {whole:.1f} s on a CPU core" in text


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


@pytest.mark.parametrize("wrong", ["evaluat", "profile speed", "evaluate --growmp x", "evaluate --growmap", "inspect --lists"])
def test_a_misspelt_command_is_not_understood(wrong: str) -> None:
    with pytest.raises(click.UsageError):
        understood(wrong.split())


def test_pages_are_read_as_they_are_written() -> None:
    assert len(SHELL) > 5
    (pair,) = [block for block in SHELL if block.page == "README.md" and block.text.startswith("pair=")]
    assert pair.reason
    assert [words[:2] for words in pair.commands] == [
        ["treeopt", "tune"],
        ["treeopt", "profile"],
        ["treeopt", "profile"],
        ["treeopt", "grow"],
        ["treeopt", "evaluate"],
    ]
    assert pair.commands[0][4:6] == ["--draft", "JackFram/llama-68m"]
    assert "inspect --list" in inline("README.md")
