"""The command line builds the library's settings: their defaults are its defaults, their checks its wrong usage."""

from dataclasses import MISSING, fields
from typing import Any

import click
import pytest

from treeopt.cli.main import main
from treeopt.cli.settings import RuleOptions
from treeopt.cli.unused import UNUSED
from treeopt.profiling.settings import AcceptanceSettings, LatencySettings, PotentialSettings
from treeopt.training.settings import TrainSettings, TrainSources
from treespec.decoding.drafting import Drafting
from treespec.decoding.rules import RULES, Sampling
from treespec.decoding.verifiers import VERIFIERS
from treespec.evaluation.settings import EvaluationSettings

MODELS = ["--target", "t", "--draft", "d"]
CALLED = {"rule": "drafting", "temperature": "draft_temperature"}
NESTED = {"sampling", "drafting"}

SETTINGS: list[tuple[str, type, dict[str, str], set[str]]] = [
    ("evaluate", EvaluationSettings, {}, NESTED),
    ("evaluate", Sampling, {}, set()),
    ("evaluate", Drafting, CALLED, set()),
    ("profile acceptance", AcceptanceSettings, {}, NESTED),
    ("profile acceptance", Sampling, {}, set()),
    ("profile acceptance", Drafting, CALLED, {"verifier"}),
    ("profile latency", LatencySettings, {}, {"seed", "samplings", "draftings"}),
    ("potential", PotentialSettings, {}, {"sampling"}),
    ("potential", Sampling, {}, set()),
    ("train-draft", TrainSources, {}, set()),
    ("train-draft", TrainSettings, {}, set()),
]


def command_of(path: str) -> click.Command:
    found: click.Command = main
    for name in path.split():
        assert isinstance(found, click.Group)
        found = found.commands[name]
    return found


def values_of(path: str) -> dict[str, Any]:
    """What a command is given where the models alone are said, and a data set if it needs one."""
    command = command_of(path)
    rows = ["--dataset", "stdlib"] if any(parameter.name == "dataset" for parameter in command.params) else []
    return command.make_context(path, [*MODELS, *rows]).params


@pytest.mark.parametrize(("path", "kind", "called", "without"), SETTINGS)
def test_defaults_are_those_of_the_settings(path: str, kind: type, called: dict[str, str], without: set[str]) -> None:
    values = values_of(path)
    names = {field.name: called.get(field.name, field.name) for field in fields(kind)}
    assert {field for field, option in names.items() if option not in values or field in NESTED} == without
    if kind is TrainSettings:
        given = {name: values[name] for name in names}
        assert TrainSettings.of(**given) == TrainSettings()
        return
    for field in fields(kind):
        if field.name not in without and field.default is not MISSING:
            assert values[names[field.name]] == (field.default if field.name != "draft" else "d"), field.name


def test_the_rules_of_a_latency_profile_are_by_default_those_of_its_settings() -> None:
    values = values_of("profile latency")
    rules = RuleOptions(**{field.name: values[field.name] for field in fields(RuleOptions)})
    assert (rules.samplings, rules.draftings) == (LatencySettings.samplings, LatencySettings.draftings)


@pytest.mark.parametrize(("path", "name", "table"), [("evaluate", "drafting", RULES), ("evaluate", "verifier", VERIFIERS)])
def test_choices_and_their_help_come_from_the_tables(path: str, name: str, table: dict[str, Any]) -> None:
    (option,) = (parameter for parameter in command_of(path).params if parameter.name == name)
    assert isinstance(option, click.Option)
    assert isinstance(option.type, click.Choice)
    assert list(option.type.choices) == list(table)
    for known, entry in table.items():
        assert f"{known}: {entry.help}" in str(option.help)


def test_a_new_verifier_is_taken_by_its_name(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matching asks for distinct children, whether they are sampled or not."""
    start = ["evaluate", *MODELS, "--dataset", "stdlib", "--growmap", "68m_7b-16", "--verifier", "matching"]
    refused = run(*start, "--drafting", "swr")
    assert (refused.code, refused.out) == (2, "")
    assert "--verifier matching needs distinct children" in refused.err
    assert run(*start, "--drafting", "swor").code == 1, "it goes on to look for the models"


@pytest.mark.parametrize("row", UNUSED, ids=lambda row: row.options[0])
def test_what_may_be_unused_is_an_option_and_can_be_told(row: Any) -> None:
    paths = {path for path, *_ in SETTINGS}
    for option in row.options:
        having = [values for path in paths if option in (values := values_of(path))]
        assert having, option
        row.said.format(**{**having[0], "option": option, "value": 0.5, "drafting": "r", "target": "t", "draft": "d"})
