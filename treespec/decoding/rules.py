"""The ways to choose tokens, as plain data: the target's `Sampling`, and the `RULES` for drafting a node's children. No torch."""

from dataclasses import dataclass

from treespec.checks import require_number
from treespec.errors import SettingsError


@dataclass(frozen=True)
class Sampling:
    """The target's way to choose tokens. `temperature` 0 is greedy; `top_p` keeps the fewest most likely tokens with that mass."""

    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        require_number(temperature=self.temperature, top_p=self.top_p)
        if not 0.0 <= self.temperature < float("inf"):
            raise SettingsError(f"`temperature` is {self.temperature}, but it must be 0 (greedy) or a positive number")
        if not 0.0 < self.top_p <= 1.0:
            raise SettingsError(f"`top_p` is {self.top_p}, but it must be a number above 0 and up to 1; pass 1 to keep every token")

    @property
    def greedy(self) -> bool:
        """Return whether each token is the most likely one."""
        return self.temperature == 0.0


@dataclass(frozen=True)
class Rule:
    """The way to choose the children of a node from the draft's distribution there."""

    name: str
    help: str
    """A noun phrase for a help text."""
    sampled: bool
    """Whether children are sampled. If not, they are the most likely tokens."""
    replacement: bool = False
    """Whether the same token can be sampled twice."""

    def is_random(self, temperature: float) -> bool:
        """Return whether children are random at this draft temperature. Without replacement, temperature 0 gives the most likely tokens."""
        return self.sampled and (self.replacement or temperature > 0.0)


TOPK = Rule("topk", "the draft's most likely tokens", sampled=False)
SWOR = Rule("swor", "tokens sampled from the draft without replacement", sampled=True)
SWR = Rule("swr", "tokens sampled from the draft with replacement", sampled=True, replacement=True)

RULES: dict[str, Rule] = {rule.name: rule for rule in (TOPK, SWOR, SWR)}
"""The drafting rules by name. The table is closed: `StaticDrafter` draws what these say. Another way to draft is another drafter."""


def rule_named(name: str) -> Rule:
    """Return the rule with this name. Raises SettingsError for a name that is not registered."""
    if str(name) not in RULES:
        raise SettingsError(f"`drafting` is {name!r}, but it must be one of {', '.join(RULES)}")
    return RULES[name]
