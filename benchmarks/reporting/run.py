"""A file of results as the page reads it, and what each kind of result must be able to say."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.reporting.verdicts import Check, Slower

Data = dict[str, Any]
"""What a file of results holds."""


@dataclass(frozen=True)
class Run:
    """One file of results."""

    file: str
    command: str
    data: Data
    most: int | None = None
    """The prompts of the run of this kind that decoded these prompts and more, if there is one."""
    fewer: str = ""
    """A sentence that says how many of another run's prompts this one decoded, where it decoded fewer."""


def _none(data: Data) -> Any:
    return ()


def _no_prompts(data: Data) -> int | None:
    return None


@dataclass(frozen=True)
class Kind:
    """What a kind of result says: pure functions on the data of one file."""

    title: Callable[[Data], str]
    body: Callable[[Run], str]
    """Returns the section without its title."""
    headlines: Callable[[Data], list[str]]
    """Returns the main figures, a phrase for each."""
    checks: Callable[[Data], list[Check]] = _none
    """Returns all figures that have a goal."""
    slower: Callable[[Data], list[Slower]] = _none
    """Returns all ways to speculate that were slower than what they are compared with."""
    prompts: Callable[[Data], int | None] = _no_prompts
    """Returns how many prompts were decoded or measured; None if that is no matter."""
