"""Steps that run ahead of their reading, as captured ones do, but eagerly: for the decoding loop's tests."""

from collections import deque

import torch
from torch import Tensor

from treespec.decoding.engine import Parts
from treespec.decoding.step import Step, checked
from treespec.kernels.outcome import Outcome
from treespec.trees.placement import Prefix


class PipelinedSteps:
    """Knows tokens and length only as tensors, never cuts a tree, and counts what was launched."""

    def __init__(self, step: Step, ahead: int) -> None:
        self.step, self.ahead = step, ahead
        self.launched = 0

    def begin(self, last: Tensor, length: int, generator: torch.Generator | None) -> None:
        self.last, self.length, self.generator = last, torch.tensor([length]), generator
        self.under_way: deque[Outcome] = deque()

    def launch(self, room: int) -> None:
        outcome = self.step.advance(self.last, Prefix(self.length, int(self.length)), 1 << 30, self.generator)
        self.last, self.length = outcome.last, outcome.length
        self.under_way.append(outcome)
        self.launched += 1
        assert len(self.under_way) <= self.ahead + 1

    def read(self, length: int) -> tuple[list[int], list[int], Parts]:
        report = checked(self.under_way.popleft().read(), length)
        return report.tokens, report.ranks, ()
