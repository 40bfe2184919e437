"""Plans of what to draft at every step, as plain data: the protocol `Plan`, and the budget of a dynamic tree. No torch.

For a tree that stays the same, the `SpeculationTree` itself is the plan.
"""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from treespec.checks import require_whole
from treespec.errors import ModelError, SettingsError, counted
from treespec.trees.limits import MAX_SIZE

Given = TypeVar("Given")


class Plan(Protocol):
    """A plan of what to draft at every step. It names its drafter in `drafters.DRAFTERS` and its needs. Instances can be hashed."""

    drafter: ClassVar[str]
    """The drafter's name in `DRAFTERS`, which is also the `mode` of a report."""
    sampled: ClassVar[bool]
    """Whether children can be drawn at random. If not, they are distinct, and the target's choice decides among them."""

    @property
    def size(self) -> int:
        """Return the largest number of nodes that are verified in a step, the root included."""

    @property
    def depth(self) -> int:
        """Return the largest number of edges from the root to a leaf."""

    @property
    def candidates(self) -> int:
        """Return the largest number of nodes that are drafted in a step, the root included. The draft needs as many cache slots."""

    def require_tokens(self, vocabulary: int) -> None:
        """Raise ModelError if `vocabulary` has too few tokens for distinct siblings."""

    def describe(self) -> dict[str, Any]:
        """Return the plan as plain JSON, for records: at least `size` and `depth`."""


@dataclass(frozen=True)
class DynamicBudget:
    """The limits of a dynamic tree: `size` nodes to verify, `depth` draft passes, `width` nodes kept per level."""

    drafter: ClassVar[str] = "dynamic"
    sampled: ClassVar[bool] = False

    size: int
    depth: int
    width: int

    def __post_init__(self) -> None:
        require_whole(1, depth=self.depth, width=self.width, size=self.size)
        if self.size < self.depth + 1:
            shallower = f", or `depth` {self.size - 1} or less" if self.size > 1 else ""
            raise SettingsError(
                f"`size` {self.size} is too small for depth {self.depth}: such a tree has at least {counted(self.depth + 1, 'node')}, the root "
                f"included; pass `size` {self.depth + 1} or more{shallower}"
            )
        if self.size > self.candidates:
            raise SettingsError(
                f"`size` {self.size} cannot be filled: {counted(self.depth, 'level')} of width {self.width} can have "
                f"{counted(self.candidates, 'node')}, the root "
                f"included; pass `size` {self.candidates} or less, or `width` {-(-(self.size - 1) // self.depth)} or more"
            )
        if self.candidates > MAX_SIZE:
            raise SettingsError(
                f"{counted(self.depth, 'level')} of width {self.width} can have {counted(self.candidates, 'node')}, "
                f"the root included, which is above the limit of "
                f"{MAX_SIZE}; pass a smaller `size`, `depth` or `width`"
            )

    @classmethod
    def of(cls, size: int, depth: int, width: int | None = None) -> "DynamicBudget":
        """Make a budget. If no `width` is given, it is twice the average level width, so that likely levels can be wide."""
        most = max(1, size - 1)
        return cls(size, depth, min(most, -(-2 * most // max(1, depth))) if width is None else width)

    def require_tokens(self, vocabulary: int) -> None:
        """See `Plan.require_tokens`. A level must not be wider than the vocabulary."""
        if self.width > vocabulary:
            most = 1 + self.depth * vocabulary
            smaller = f" and `size` {most} or less" if self.size > most else ""
            raise ModelError(
                f"`width` is {self.width}, but the vocabulary has {counted(vocabulary, 'token')}; pass `width` {vocabulary} or less{smaller}"
            )

    @property
    def candidates(self) -> int:
        """Return the number of nodes that are drafted, the root included. The best `size` of them are verified."""
        return 1 + self.depth * self.width

    def describe(self) -> dict[str, Any]:
        """See `Plan.describe`."""
        return asdict(self)


def require_draft(draft: Given | None) -> Given:
    """Return the draft model of a tree, or its name. Raises SettingsError if none is given."""
    if draft is None:
        raise SettingsError("a tree needs a draft model; pass `draft`, or decode with the target alone")
    return draft
