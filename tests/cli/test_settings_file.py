"""`--settings FILE`: options of any command from a TOML file, overruled by the line, refused where they are no options."""

import json
from pathlib import Path
from typing import Any

import click
import pytest

from tests.cli.test_help import COMMANDS
from treeopt.cli.main import main
from treeopt.cli.settings_file import recorded_settings
from treespec.files.toml import toml_text


def write(text: str) -> Path:
    Path("s.toml").write_text(text)
    return Path("s.toml")


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if not isinstance(command, click.Group)])
def test_every_command_has_the_option_and_refuses_unknown_keys(name: str, run: Any) -> None:
    outcome = run(*name.split(), "--settings", write("no_such_thing_at_all = 1\n"))
    assert outcome.code == 2
    assert f"s.toml: no_such_thing_at_all is no option of treeopt {name}" in outcome.err


def test_the_file_gives_options_and_the_line_overrules_them(run: Any, profiles: Any) -> None:
    outcome = run("grow", "--acceptance", "a.json", "--settings", write("size = 4\ndepth = 2\n"), "--format", "json")
    assert (outcome.code, outcome.json["size"], outcome.json["depth"]) == (0, 4, 2), outcome.err
    given = write("max-size = 4\nmax_depth = 3\n")
    over = run("grow", "--acceptance", "a.json", "--settings", given, "--size", 3, "--depth", 2)
    assert over.code == 2
    assert "drop --max-depth and --max-size" in over.err, "what a file gives counts as given"
    line = run("grow", "--acceptance", "a.json", "--settings", write("size = 4\ndepth = 2\n"), "--size", 3, "--format", "json")
    assert line.json["size"] == 3


def test_lists_numbers_and_several_values(run: Any, profiles: Any) -> None:
    given = write('acceptance = ["a.json"]\nlatency = "l.json"\ncontext = 64\n')
    outcome = run("grow", "--settings", given, "--format", "json")
    assert outcome.code == 0, outcome.err
    asked = main.commands["profile"].commands["latency"]  # type: ignore[attr-defined]
    write('target = "t"\ndraft = "d"\nsizes = [1, 4, 2]\ndrafting = ["topk", "swor"]\ntemperature = 0.6\ndynamic = true\n')
    params = asked.make_context("latency", ["--settings", "s.toml"]).params
    assert (params["sizes"], params["temperature"], params["dynamic"]) == ((1, 2, 4), (0.6,), True)
    assert params["drafting"] == (("topk",), ("swor",))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("settings = 'other.toml'", "settings is no option of treeopt evaluate; drop it. ("),
        ("setings = 1", "setings is no option of treeopt evaluate; drop it. ("),
        ("tempratur = 0.6", "tempratur is no option of treeopt evaluate; did you mean temperature? ("),
        ("gen-len = 'x'", "s.toml: Invalid value for '--gen-len': 'x' is not a whole number"),
        ("chat = 1", "chat is 1, but it is a flag; write true or false"),
        ("[evaluate]\ngen_len = 2", "evaluate is no option of treeopt evaluate; drop it. ("),
        ("[target]\na = 2", "target is a table, but options have no tables"),
        ("gen_len = true", "has the value True, but it takes texts or numbers"),
        ("gen_len = 2\ngen-len = 3", "gen-len is given twice"),
        ('output = ["a.json", "b.json"]', "output is a list, but --output takes one value; write one. ("),
        ("gen_len = ", "is no TOML: "),
    ],
)
def test_what_is_wrong_is_one_line(run: Any, text: str, said: str) -> None:
    outcome = run("evaluate", "--target", "t", "--dataset", "stdlib", "--settings", write(text))
    assert outcome.code == 2
    assert said in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_a_value_of_the_line_is_not_blamed_on_the_file(run: Any) -> None:
    outcome = run("evaluate", "--target", "t", "--settings", write("num_prompts = 2\n"), "--gen-len", "x")
    assert outcome.code == 2
    assert outcome.err.startswith("error: Invalid value for '--gen-len': 'x' is not a whole number")


def test_recorded_settings_give_the_same_options_again(run: Any, tmp_path: Path) -> None:
    words = [
        "--target",
        "t",
        "--draft",
        "d",
        "--chat",
        "--chat-arg",
        "deep=[1, 2]",
        "--chat-arg",
        "tone=mild",
        "--seed",
        "3",
        "--temperature",
    ]
    command = main.commands["evaluate"]
    first = command.make_context("evaluate", [*words, "0.6", "--mode", "baseline", "--dataset", 'a "b"\\c.jsonl', "--no-processors"])
    recorded = recorded_settings(first)
    Path("s.toml").write_text(toml_text(json.loads(json.dumps(recorded))))
    again = command.make_context("evaluate", ["--settings", "s.toml"])
    assert again.params == first.params
    assert recorded["chat_arg"] == ["deep=[1, 2]", 'tone="mild"']


def test_a_file_that_is_no_text_is_said_to_be_none(run: Any, tmp_path: Path) -> None:
    (tmp_path / "tree.pt").write_bytes(b"PK\x03\x04\x80")
    outcome = run("evaluate", "--target", "t", "--dataset", "stdlib", "--settings", tmp_path / "tree.pt")
    assert outcome.code == 2
    assert "tree.pt is no TOML: it is no text in UTF-8; settings are lines such as temperature = 0.6" in outcome.err
