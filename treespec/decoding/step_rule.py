"""StepRule: what decides how long a step takes beside its passes and its tree. No torch.

Temperatures 0.6 and 0.7 take the same time, and so do `topk` and `swor` where nothing is random: a rule is a class of settings, not the settings.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from treespec.decoding.drafters import DRAFTERS
from treespec.decoding.drafting import Drafting
from treespec.decoding.plans import DynamicBudget
from treespec.decoding.rules import RULES, TOPK, Sampling
from treespec.decoding.verifiers import MATCHING, VERIFIERS

TREE = next(iter(DRAFTERS))
"""The mode of static trees."""
_TARGETS = ("greedy", "sampled", "top-p")
_DRAFTS = ("greedy", "sampled")


@dataclass(frozen=True)
class StepRule:
    """The rule of a step: how children are drafted and verified, and how target and draft choose tokens.

    `mode` is the drafter of the plan ("tree" or "dynamic"). `drafting` and `verifier` are those that run: children that are not random are
    `topk`, verified by `matching`. `target` is "greedy", "sampled" or "top-p" (sampled from a nucleus), `draft` "greedy" or "sampled".
    """

    mode: str = TREE
    drafting: str = TOPK.name
    verifier: str = MATCHING
    target: str = "greedy"
    draft: str = "greedy"

    @classmethod
    def of(cls, sampling: Sampling, drafting: Drafting = Drafting(), mode: str = TREE) -> "StepRule":
        """Return the rule of steps with these settings, of plans whose drafter is `mode`."""
        target = "greedy" if sampling.greedy else "sampled" if sampling.top_p >= 1 else "top-p"
        if mode == DynamicBudget.drafter or not drafting.samples(sampling):
            return cls(mode=mode, target=target)
        draft = "greedy" if drafting.sampling(sampling).greedy else "sampled"
        return cls(mode, drafting.rule, drafting.verifier, target, draft)

    @property
    def name(self) -> str:
        """Return the rule in a few words, such as "swor, traversal, temperature above 0"."""
        words = ["dynamic trees"] if self.mode == DynamicBudget.drafter else [self.drafting]
        if self.drafting != TOPK.name:
            words.append(self.verifier)
        words.append("temperature 0" if self.target == "greedy" else "temperature above 0")
        if self.target == "top-p":
            words.append("top-p below 1")
        if self.drafting != TOPK.name and (self.draft == "greedy") != (self.target == "greedy"):
            words.append(f"draft temperature {'0' if self.draft == 'greedy' else 'above 0'}")
        return ", ".join(words)

    @property
    def alone(self) -> "StepRule":
        """Return the rule of all that have the same autoregressive steps, where only the target chooses."""
        return StepRule(target=self.target)

    @property
    def levels(self) -> "StepRule":
        """Return the rule of all whose draft levels take the same time: neither the target's choice nor the verifier counts there."""
        return replace(self, verifier=MATCHING, target="greedy")

    def to_json(self) -> dict[str, str]:
        """Return the rule as plain JSON."""
        return asdict(self)


GREEDY = StepRule()
"""Greedy decoding with `topk`: the rule of files that do not name one."""


def rule_of(value: Any) -> StepRule:
    """Return the rule of its JSON. Raises TypeError, ValueError for anything else, and for one that no settings give."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{value!r:.40} is no rule")
    known: dict[str, tuple[str, ...]] = {
        "mode": tuple(DRAFTERS),
        "drafting": tuple(RULES),
        "verifier": tuple(VERIFIERS),
        "target": _TARGETS,
        "draft": _DRAFTS,
    }
    for key, names in known.items():
        if value.get(key) not in names:
            raise ValueError(f"`{key}` of a rule is {value.get(key)!r:.40}, but it must be one of {', '.join(names)}")
    rule = StepRule(**{key: value[key] for key in known})
    if not _can_be(rule):
        raise ValueError(
            f"no settings give a rule of `drafting` {rule.drafting}, `verifier` {rule.verifier} and `draft` {rule.draft} together"
        )
    return rule


def _can_be(rule: StepRule) -> bool:
    """Return whether some settings have this rule: children that are not random are `topk`, and matched."""
    kind = RULES[rule.drafting]
    if rule.mode == DynamicBudget.drafter or not kind.sampled:
        return (rule.drafting, rule.verifier, rule.draft) == (TOPK.name, MATCHING, "greedy")
    drawn = rule.draft == "sampled" or kind.replacement
    return drawn and not (VERIFIERS[rule.verifier].distinct and kind.replacement)
