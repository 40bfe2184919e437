"""What a step leaves behind, and the layout of the report that a kernel writes and a host reads."""

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
    """Whether the draft's were."""


@dataclass(frozen=True)
class ReportLayout:
    """Where the numbers of a step's report stand, int64 [size], for a tree of `depth` edges.

    At first the committed tokens [depth + 1], then the ranks [depth + 1] of the path's nodes, the root's among them; then one number each:
    how many drafted tokens were accepted, whether the target's logits were sound, and whether the draft's were.
    """

    depth: int

    @property
    def ranks(self) -> int:
        """The place of the first rank."""
        return self.depth + 1

    @property
    def count(self) -> int:
        """The place of the number of accepted tokens; the two signs of health follow."""
        return 2 * (self.depth + 1)

    @property
    def size(self) -> int:
        """Numbers in the report."""
        return self.count + 3

    @classmethod
    def of_size(cls, size: int) -> "ReportLayout":
        """Return the layout of a report of that many numbers."""
        return cls((size - 3) // 2 - 1)

    def read(self, report: list[int]) -> StepReport:
        """Return a report's meaning."""
        count, target, draft = report[self.count :]
        return StepReport(report[: count + 1], report[self.ranks + 1 : self.ranks + count + 1], bool(target), bool(draft))


@dataclass(frozen=True)
class Outcome:
    """The outcome of a step on the device: nothing has been read by the host yet."""

    path: Tensor
    """int64 [d + 1]; node ids from the root to the last accepted node, which is repeated to the end."""
    report: Tensor
    """int64 [2 (d + 1) + 3]; see `ReportLayout`."""
    state: Tensor
    """int64 [3]; the last two committed tokens, and how many tokens the caches hold."""

    @property
    def last(self) -> Tensor:
        """int64 [2]; the last two committed tokens."""
        return self.state[:2]

    @property
    def length(self) -> Tensor:
        """int64 [1]; how many tokens the caches hold now."""
        return self.state[2:]

    @property
    def tokens(self) -> Tensor:
        """int64 [d + 1]; the committed tokens in order; what stands behind the last one means nothing."""
        return self.report[: self.path.shape[0]]

    def read(self) -> StepReport:
        """Return the report; waits for the device."""
        return ReportLayout.of_size(self.report.shape[0]).read(self.report.tolist())
