"""The outcome of a step, and the layout of the report that a kernel writes and the host reads."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class StepReport:
    """A step's report as the host reads it."""

    tokens: list[int]
    """The committed tokens: the accepted ones and the target's own after them."""
    ranks: list[int]
    """Ranks on the way from the root to the last accepted node; one per accepted token."""
    target_sound: bool
    """Whether the target's logits were finite on the path."""
    draft_sound: bool
    """Whether the draft's logits were finite, for all nodes that it read."""


@dataclass(frozen=True)
class ReportLayout:
    """The layout of a step's report, int64 [size], for a tree of `depth` edges.

    The report has the committed tokens [depth + 1], then the ranks [depth + 1] of the path's nodes, the root included, then three numbers:
    how many drafted tokens were accepted, whether the target's logits were finite, and whether the draft's were.
    """

    depth: int

    @property
    def ranks(self) -> int:
        """The index of the first rank."""
        return self.depth + 1

    @property
    def count(self) -> int:
        """The index of the number of accepted tokens; the two signs of health follow it."""
        return 2 * (self.depth + 1)

    @property
    def size(self) -> int:
        """The length of the report."""
        return self.count + 3

    @classmethod
    def of_size(cls, size: int) -> "ReportLayout":
        """Return the layout of a report with `size` numbers."""
        return cls((size - 3) // 2 - 1)

    def read(self, report: list[int]) -> StepReport:
        """Return the report's content from its numbers."""
        count, target, draft = report[self.count :]
        return StepReport(report[: count + 1], report[self.ranks + 1 : self.ranks + count + 1], bool(target), bool(draft))


@dataclass(frozen=True)
class Outcome:
    """The outcome of a step on the device; the host has not read any of it yet."""

    path: Tensor
    """int64 [d + 1]; node ids from the root to the last accepted node, which is then repeated to the end."""
    report: Tensor
    """int64 [2 (d + 1) + 3]; see `ReportLayout`."""
    state: Tensor
    """int64 [3]; the last two committed tokens, and how many tokens the caches hold."""

    @property
    def last(self) -> Tensor:
        """Return the last two committed tokens, int64 [2]."""
        return self.state[:2]

    @property
    def length(self) -> Tensor:
        """Return the number of tokens that the caches hold now, int64 [1]."""
        return self.state[2:]

    @property
    def tokens(self) -> Tensor:
        """Return the committed tokens in order, int64 [d + 1]; the values after the last one mean nothing."""
        return self.report[: self.path.shape[0]]

    def read(self) -> StepReport:
        """Return the report; waits for the device."""
        return ReportLayout.of_size(self.report.shape[0]).read(self.report.tolist())
