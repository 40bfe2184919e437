"""The contract of a SlotModel, as tests that any implementation can run: subclass `SlotModelContract` and give it a fixture `subject`.

The model is held against itself, or against a twin: whatever the slots, the masks and the moves, the logits behind a token are those
that `prefill` gives for it and the tokens before it read alone. So no test here knows how an implementation works.
"""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from treespec.decoding.protocol import ScoringModel, SlotModel
from treespec.trees.placement import Layout, Placement, Prefix
from treespec.trees.tree import SpeculationTree

CAPACITY = 48
TREE = SpeculationTree.from_branches([[2], [2, 1], [1, 0, 1]])


@dataclass(frozen=True)
class Subject:
    """One implementation, and what it may read."""

    model: SlotModel
    prompt: Tensor
    """int64 [length], on the model's device; 5 tokens or more that are read first, and more than any window is wide."""
    words: Tensor
    """int64 [TREE.size + 4], all different: the tokens behind the prompt."""
    on_device: bool
    """Whether passes take a prefix whose length only the device knows."""
    twin: SlotModel | None = None
    """Another model of the same logits, to be held against where the model itself would take long to read many short texts."""
    tolerance: float = 1e-4

    @property
    def length(self) -> int:
        """Of the prompt."""
        return len(self.prompt)

    @property
    def nodes(self) -> Tensor:
        """int64 [TREE.size]; the tokens of the tree's nodes."""
        return self.words[: TREE.size]

    def alone(self, *tokens: Tensor) -> Tensor:
        """Logits behind the prompt and these tokens. What the slots hold is lost."""
        return self.behind(torch.cat([self.prompt, *tokens]))

    def behind(self, text: Tensor) -> Tensor:
        """Logits behind a text. What the slots hold is lost."""
        model = self.twin or self.model
        model.allocate(CAPACITY)
        return model.prefill(text).clone()

    def path(self, node: int) -> list[int]:
        """The nodes from the root to this one."""
        return [int(n) for n in torch.tensor(TREE.ancestor_mask)[node].nonzero().flatten()]

    def paths_alone(self) -> Tensor:
        """Logits [TREE.size, vocabulary] behind each node's path."""
        return torch.stack([self.alone(self.nodes[self.path(node)]) for node in range(TREE.size)])

    def begin(self) -> Prefix:
        """Read the prompt into slots."""
        self.model.allocate(CAPACITY)
        self.model.prefill(self.prompt)
        return Prefix.of(self.length, self.model.device)

    def tree(self, prefix: Prefix, rows: list[int], within: int) -> Placement:
        """The tree with its nodes in these rows, of `within` that a pass may look at."""
        visible = torch.zeros(TREE.size, within, dtype=torch.bool)
        visible[:, rows] = torch.tensor(TREE.ancestor_mask)
        device = self.model.device
        return Placement(prefix, torch.tensor(TREE.depths, device=device), torch.tensor(rows, device=device), visible.to(device))

    def ids(self, values: list[int]) -> Tensor:
        """int64 [values], on the device."""
        return torch.tensor(values, dtype=torch.int64, device=self.model.device)

    def require_same(self, got: Tensor, wanted: Tensor) -> None:
        """Fail where logits differ by more than rounding."""
        torch.testing.assert_close(got.float(), wanted.float(), atol=self.tolerance, rtol=0)


def part(place: Placement, start: int, stop: int) -> Placement:
    """Some of the tokens."""
    chosen = slice(start, stop)
    return Placement(place.prefix, place.depths[chosen], place.offsets[chosen], place.visible[chosen])


class SlotModelContract:
    """What decoding relies on. A subclass has a fixture `subject`."""

    def test_the_context_matters(self, subject: Subject) -> None:
        """Otherwise nothing below would prove a thing."""
        first, last = subject.words[:2]
        other = torch.cat([subject.prompt[:-1], subject.words[2:3], first[None]])
        found = [subject.alone(first[None]), subject.alone(last[None]), subject.behind(other)]
        for index, one in enumerate(found):
            for another in found[:index]:
                assert float((one - another).nan_to_num().abs().max()) > 100 * subject.tolerance

    def test_logits_are_rows_of_the_vocabulary(self, subject: Subject) -> None:
        model, prefix = subject.model, subject.begin()
        read = model.prefill(subject.prompt)
        found = model.forward(subject.nodes, subject.tree(prefix, [*range(TREE.size)], TREE.size))
        assert read.shape == (model.vocabulary_size,)
        assert found.shape == (TREE.size, model.vocabulary_size)
        for logits in (read, found):
            assert logits.is_floating_point()
            assert logits.device == model.device

    def test_only_the_rows_that_are_kept_come_back_in_their_order(self, subject: Subject) -> None:
        prefix = subject.begin()
        place = subject.tree(prefix, [*range(TREE.size)], TREE.size)
        whole = subject.model.forward(subject.nodes, place).clone()
        for rows in ([TREE.size - 1, 0, 3], [2]):
            subject.require_same(subject.model.forward(subject.nodes, place, subject.ids(rows)), whole[rows])

    def test_a_prompt_at_once_is_a_prompt_slot_by_slot(self, subject: Subject) -> None:
        words, whole = subject.words[:4], torch.cat([subject.prompt, subject.words[:4]])
        wanted = torch.stack([subject.alone(words[: count + 1]) for count in range(4)])
        one_by_one = []
        subject.model.allocate(CAPACITY)
        subject.require_same(subject.model.prefill(whole), wanted[-1])
        subject.begin()
        for index in range(4):
            place = Placement.causal(subject.length + index, 1, subject.model.device)
            one_by_one.append(subject.model.forward(words[index : index + 1], place)[0].clone())
        subject.require_same(torch.stack(one_by_one), wanted)
        subject.begin()
        subject.require_same(subject.model.forward(words, Placement.causal(subject.length, 4, subject.model.device)), wanted)

    def test_the_last_token_can_be_read_again_with_the_next(self, subject: Subject) -> None:
        """As a draft does that a leaf was accepted of: rows below 0 are slots of the prefix."""
        word = subject.words[:1]
        wanted = torch.stack([subject.alone(), subject.alone(word)])
        place = Layout.root(subject.model.device).behind(subject.begin())
        subject.require_same(subject.model.forward(torch.cat([subject.prompt[-1:], word]), place), wanted)

    def test_a_node_sees_the_prefix_and_its_ancestors_alone(self, subject: Subject) -> None:
        wanted = subject.paths_alone()
        place = subject.tree(subject.begin(), [*range(TREE.size)], TREE.size)
        subject.require_same(subject.model.forward(subject.nodes, place), wanted)

    def test_slots_may_lie_anywhere_and_a_tree_may_grow(self, subject: Subject) -> None:
        """In two passes, with slots between and behind them that hold something else."""
        wanted = subject.paths_alone()
        prefix, rows = subject.begin(), [9, 2, 12, 4, 7, 0, 11, 5]
        junk = subject.tree(prefix, [1, 3, 6, 8, 10, 13, 14, 2], 15)
        subject.model.forward(subject.words[-TREE.size :], junk)
        half, place = TREE.levels[2].start, subject.tree(prefix, rows, 15)
        found = [subject.model.forward(subject.nodes[:half], part(place, 0, half)).clone()]
        found.append(subject.model.forward(subject.nodes[half:], part(place, half, TREE.size)))
        subject.require_same(torch.cat(found), wanted)

    @pytest.mark.parametrize("first", [0, 1])
    def test_a_move_reads_everything_before_it_writes(self, subject: Subject, first: int) -> None:
        """Four tokens in a row, whose slots are written in an order in which each is read after it would have been overwritten."""
        words, last, device = subject.words[:4], subject.words[4:5], subject.model.device
        wanted = subject.alone(words, last)
        prefix, rows = subject.begin(), [0, 3, 1, 2] if first else [1, 3, 0, 2]
        visible = torch.zeros(4, 4, dtype=torch.bool)
        visible[:, rows] = torch.ones(4, 4, dtype=torch.bool).tril()
        subject.model.forward(words, Placement(prefix, torch.arange(4, device=device), subject.ids(rows), visible.to(device)))
        subject.model.move(prefix, subject.ids(rows[first:]), first)
        subject.require_same(subject.model.forward(last, Placement.causal(subject.length + 4, 1, device))[0], wanted)

    def test_a_move_leaves_other_slots_alone(self, subject: Subject) -> None:
        path = subject.path(TREE.size - 1)
        wanted, prefix = subject.alone(subject.nodes[path]), subject.begin()
        place = subject.tree(prefix, [*range(TREE.size)], TREE.size)
        subject.model.forward(subject.nodes, place)
        subject.model.move(prefix, subject.ids([]), 1)
        subject.model.move(prefix, subject.ids([1, 2]), TREE.size)
        again = part(place, TREE.size - 1, TREE.size)  # the deepest node alone: its ancestors are in their slots still
        assert len(path) > 2
        subject.require_same(subject.model.forward(subject.nodes[-1:], again)[0], wanted)

    def test_an_accepted_path_is_part_of_the_prefix(self, subject: Subject) -> None:
        """A step of decoding, and then another tree in the slots of the first."""
        path, last = subject.path(TREE.size - 1), subject.words[-1:]
        accepted = subject.nodes[path]
        wanted = subject.alone(accepted, last)
        prefix = subject.begin()
        subject.model.forward(subject.nodes, subject.tree(prefix, [*range(TREE.size)], TREE.size))
        subject.model.move(prefix, subject.ids(path[1:]), 1)
        after = subject.tree(Prefix.of(subject.length + len(path), subject.model.device), [*range(TREE.size)], TREE.size)
        tokens = torch.cat([last, subject.nodes[1:]])
        subject.require_same(subject.model.forward(tokens, after)[0], wanted)

    def test_allocating_forgets(self, subject: Subject) -> None:
        """A second, shorter prompt is read as if it were the first, in as much room, in more and in less."""
        words = subject.words[:2]
        wanted = [subject.alone(), subject.alone(words[:1]), subject.alone(words)]
        for capacity in (CAPACITY, CAPACITY + 7, subject.length + 2):
            prefix = subject.begin()
            subject.model.forward(subject.nodes, subject.tree(prefix, [*range(TREE.size)], TREE.size))
            subject.model.allocate(capacity)
            subject.require_same(subject.model.prefill(subject.prompt), wanted[0])
            found = subject.model.forward(words, Placement.causal(subject.length, 2, subject.model.device))
            subject.require_same(found, torch.stack(wanted[1:]))

    def test_a_length_may_be_known_to_the_device_alone(self, subject: Subject) -> None:
        """One length tensor serves every step, as in a captured one. A model that cannot do that refuses."""
        path, last = subject.path(TREE.size - 1), subject.words[-1:]
        wanted = subject.paths_alone(), subject.alone(subject.nodes[path], last)
        known = subject.begin()
        prefix = Prefix(known.length.clone())
        rows = [*range(TREE.size)]
        if not subject.on_device:
            with pytest.raises((RuntimeError, AssertionError)):
                subject.model.forward(subject.nodes, subject.tree(prefix, rows, TREE.size))
            return
        subject.require_same(subject.model.forward(subject.nodes, subject.tree(prefix, rows, TREE.size)), wanted[0])
        subject.model.move(prefix, subject.ids(path[1:]), 1)
        prefix.length.add_(len(path))
        place = subject.tree(prefix, rows, TREE.size)
        subject.require_same(subject.model.forward(torch.cat([last, subject.nodes[1:]]), place)[0], wanted[1])


class ScoringContract:
    """What profiling and verification rely on, of a model that scores. A subclass has a fixture `subject`."""

    def test_scores_are_the_logits_behind_every_token(self, subject: Subject) -> None:
        model = subject.model
        rows = [torch.cat([subject.prompt, subject.words[:3]]), torch.cat([subject.prompt, subject.words[3:6]])]
        wanted = [[subject.alone(row[subject.length : subject.length + count]) for count in range(4)] for row in rows]
        found = scoring(model).score(torch.stack(rows), subject.length - 1)
        assert found.shape == (2, 4, model.vocabulary_size)
        assert found.device == model.device
        subject.require_same(found, torch.stack([torch.stack(row) for row in wanted]))

    def test_scoring_leaves_the_slots_alone(self, subject: Subject) -> None:
        word = subject.words[:1]
        wanted = subject.alone(word)
        subject.begin()
        other = torch.cat([subject.words[1:5], subject.prompt])
        scoring(subject.model).score(other[None], len(other) - 1)
        subject.require_same(subject.model.forward(word, Placement.causal(subject.length, 1, subject.model.device))[0], wanted)


def scoring(model: object) -> ScoringModel:
    """The model, as one that scores."""
    assert hasattr(model, "score")
    return model
