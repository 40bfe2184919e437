"""The setting for drafting and verifying children. No torch."""

from dataclasses import dataclass

from treespec.checks import require_number
from treespec.decoding.plans import Plan
from treespec.decoding.rules import RULES, TOPK, Rule, Sampling, rule_named
from treespec.decoding.verifiers import VERIFIERS, verifier_named
from treespec.errors import SettingsError


@dataclass(frozen=True)
class Drafting:
    """The choice of a rule of `rules.RULES` to draft children by, and a verifier of `verifiers.VERIFIERS` to verify them by.

    `topk`: a node's children are the draft's most likely tokens there, and the target's own choice decides among them.
    `swor`, `swr`: children are sampled from the draft's distribution at `temperature` (None: the target's), without or with
    replacement, and are verified along residual chains. At draft temperature 0, `swor` equals `topk`, and `swr` gives copies of
    the most likely token.
    """

    rule: str = TOPK.name
    temperature: float | None = None
    verifier: str = next(iter(VERIFIERS))

    def __post_init__(self) -> None:
        rule, verifier = rule_named(self.rule), verifier_named(self.verifier)
        if self.temperature is not None:
            require_number(draft_temperature=self.temperature)
        if self.temperature is not None and not 0.0 <= self.temperature < float("inf"):
            raise SettingsError(f"`draft_temperature` is {self.temperature}, but it must be 0 or a positive number")
        if verifier.sampled and not rule.sampled:
            sampled = " or ".join(f"`drafting` {name}" for name, known in RULES.items() if known.sampled)
            raise SettingsError(
                f"`verifier` {self.verifier} needs sampled children, but {rule.name} drafts {rule.help}; pass {sampled} in its place"
            )
        if verifier.distinct and rule.replacement:
            fitting = " or ".join(f"`drafting` {name}" for name, known in RULES.items() if not known.replacement)
            raise SettingsError(
                f"`verifier` {self.verifier} needs distinct children, but {rule.name} drafts {rule.help}; pass {fitting}, "
                f"or `verifier` {Drafting.verifier}"
            )

    @property
    def kind(self) -> Rule:
        """Return the rule with the name `rule`."""
        return RULES[self.rule]

    def sampling(self, target: Sampling) -> Sampling:
        """Return how the draft's logits become the distribution that children are sampled from; top-p applies to the target only."""
        return Sampling(target.temperature if self.temperature is None else self.temperature)

    def samples(self, target: Sampling) -> bool:
        """Return whether children are random. If not, they are distinct and the target's choice decides."""
        return self.kind.is_random(self.sampling(target).temperature)

    def require_kind(self, plan: Plan | type[Plan]) -> None:
        """Raise SettingsError for a plan, or a kind of plan, that cannot be drafted in this way."""
        if self.kind.sampled and not plan.sampled:
            raise SettingsError(
                f"`{plan.drafter}` drafts tokens that are not sampled, so `drafting` {self.rule} does not go with it; pass `drafting` {TOPK.name}"
            )

    def require(self, plan: Plan, vocabulary: int | None = None) -> None:
        """Raise SettingsError for a plan that cannot be drafted in this way, ModelError if `vocabulary` has too few tokens for it."""
        self.require_kind(plan)
        if vocabulary is not None and not self.kind.replacement:
            plan.require_tokens(vocabulary)


def drafting_of(given: Drafting | str) -> Drafting:
    """Return the drafting of a rule's name, and a drafting as it is. Raises SettingsError for an unknown name."""
    return Drafting(given) if isinstance(given, str) else given
