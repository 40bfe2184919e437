"""The settings that a growmap was made for, which a run takes where none are given. No torch."""

from collections.abc import Mapping
from typing import Any

from treespec.decoding.drafting import Drafting
from treespec.decoding.rules import RULES, Sampling
from treespec.decoding.step_rule import rule_of
from treespec.errors import listed

_DEFAULTS = {
    "temperature": Sampling.temperature,
    "top_p": Sampling.top_p,
    "drafting": Drafting.rule,
    "draft_temperature": Drafting.temperature,
    "verifier": Drafting.verifier,
}


def settings_of(metadata: Mapping[str, Any], given: Mapping[str, Any] | None = None, *, sampling_alone: bool = False) -> dict[str, Any]:
    """Return the settings to run a growmap with that it was made for, differ from the defaults and are not `given`, by their names.

    The names are temperature, top_p, drafting, draft_temperature and verifier. Settings that are given to a run are kept: beside another
    drafting than the growmap's, neither its draft temperature nor its verifier is taken. `sampling_alone` leaves out all three, as for
    dynamic trees. A draft temperature that was the target's own follows the target's.

    >>> made = {"temperature": 0.6, "top_p": 1.0, "drafting": "swor", "draft_temperature": 0.6}
    >>> settings_of(made), settings_of(made, {"drafting": "topk", "temperature": 0.2})
    ({'temperature': 0.6, 'drafting': 'swor'}, {})
    """
    given = given or {}
    made = {name: metadata.get(name) for name in ("temperature", "top_p")}
    if given.get("temperature", made["temperature"]) == 0:
        made["top_p"] = None
    rule = metadata.get("drafting")
    if not sampling_alone and rule in RULES and given.get("drafting", rule) == rule:
        own = metadata.get("draft_temperature")
        made |= {
            "drafting": rule,
            "draft_temperature": None if own == metadata.get("temperature") or not RULES[rule].sampled else own,
            "verifier": _verifier(metadata, rule),
        }
    return {name: value for name, value in made.items() if name not in given and value is not None and value != _DEFAULTS[name]}


def taken_line(taken: Mapping[str, Any], noun: str = "growmap") -> str | None:
    """Return the line that says which settings come from the growmap, or what `noun` names; None if none do."""
    if not taken:
        return None
    values = [f"`{name}` {value if isinstance(value, str) else f'{value:g}'}" for name, value in taken.items()]
    return f"taken from the {noun}: {listed(values)}"


def _verifier(metadata: Mapping[str, Any], rule: str) -> str | None:
    """Return the verifier of a growmap's times, if it goes with its drafting."""
    if "timed_rule" not in metadata:
        return None
    try:
        timed = rule_of(metadata["timed_rule"])
        return Drafting(rule, verifier=timed.verifier).verifier if timed.drafting == rule else None
    except (TypeError, ValueError):
        return None
