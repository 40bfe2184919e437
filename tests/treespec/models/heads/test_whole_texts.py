"""Heads read whole texts, level by level, as they read one path after another, and gradients flow through all levels."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.reference.head_files import EAGLE, EAGLE3, HT, MEDUSA_CONFIG, V, medusa_shapes, target, tensors, write
from tests.reference.head_trees import LENGTH, Text, committed, opened, require_same
from tests.reference.heads import medusa
from treespec.decoding.protocol import ParallelHead, ScoringHead
from treespec.errors import CapacityError
from treespec.models.heads.levels import LayeredHead
from treespec.models.heads.loading import load_head
from treespec.trees.placement import Placement, Prefix

LEVELS = 4
LAYOUTS = {**{f"eagle3-{name}": layout for name, layout in EAGLE3.items()}, **{f"eagle-{name}": layout for name, layout in EAGLE.items()}}


def texts(states: int) -> tuple[Tensor, Tensor, list[Text]]:
    """Two texts: their tokens [2, LENGTH + 1], the states at them, and each by itself. No head reads the state of the last token."""
    both = [Text.random(states, HT, seed) for seed in (3, 4)]
    padded = [torch.cat((text.states, torch.full((1, states, HT), float("nan")))) for text in both]
    return torch.stack([text.tokens for text in both]), torch.stack(padded), both


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_root_and_level_has_the_logits_of_its_own_path(layout: str, tmp_path: Path) -> None:
    head, slow, _ = opened(LAYOUTS[layout], tmp_path)
    tokens, states, both = texts(len(head.state_layers))
    found = list(head.score(tokens, states, LEVELS))
    assert isinstance(head, ScoringHead)
    for level, logits in enumerate(found, start=1):
        assert logits.shape == (2, LENGTH + 1 - level, head.vocabulary_size)
        wanted = [
            slow.along(text.states[:root].double(), text.tokens[1 : root + 1].tolist(), text.tokens[root + 1 : root + level].tolist())
            for text in both
            for root in range(1, LENGTH + 2 - level)
        ]
        require_same(logits.flatten(0, 1), torch.stack(wanted))


def along(head: LayeredHead, text: Text, root: int, level: int) -> Tensor:
    """Logits [Vd] of a level below a root, as a decoding step has them: the text in slots, then a drafted token per pass."""
    head.allocate(LENGTH + 2 * LEVELS)
    found = committed(head, text, 1, root + 1, keep_last=True)
    for depth in range(1, level):
        visible = torch.tensor([[offset <= depth for offset in range(LEVELS)]])
        place = Placement(Prefix.of(root, "cpu"), torch.tensor([depth]), torch.tensor([depth]), visible)
        found = head.forward(text.tokens[root + depth, None], found.features, place)
    return found.logits[0]


@pytest.mark.parametrize(
    "layout", ["eagle3-official-llama3", "eagle3-speculators-two-layers", "eagle3-without-lm-head", "eagle-two-layers"]
)
def test_a_decoding_step_proposes_the_same_along_the_path_that_is_accepted(layout: str, tmp_path: Path) -> None:
    head, _, _ = opened(LAYOUTS[layout], tmp_path)
    tokens, states, both = texts(len(head.state_layers))
    for level, logits in enumerate(head.score(tokens, states, LEVELS), start=1):
        for row, text in enumerate(both):
            wanted = torch.stack([along(head, text, root, level) for root in range(1, LENGTH + 2 - level)])
            torch.testing.assert_close(logits[row], wanted, rtol=1e-4, atol=1e-4 * float(wanted.std()))


@pytest.mark.parametrize("matrix", [True, False])
def test_medusa_heads_have_all_levels_from_the_state_before_the_root(matrix: bool, tmp_path: Path) -> None:
    of, weights = target(), tensors(medusa_shapes(5, 2, matrix=matrix))
    head = load_head(write(tmp_path, {**MEDUSA_CONFIG, "medusa_num_layers": 2}, weights), of)
    assert isinstance(head, ScoringHead)
    assert isinstance(head, ParallelHead)
    tokens, states, both = texts(1)
    wide = {name: value.double() for name, value in weights.items()}
    for level, logits in enumerate(head.score(tokens, states, LEVELS), start=1):
        wanted = [
            medusa(wide, state[0].double(), level - 1, 2, of.lm_head.double())
            for text in both
            for state in text.states[: LENGTH + 1 - level]
        ]
        require_same(logits.flatten(0, 1), torch.stack(wanted))
        assert logits.shape == (2, LENGTH + 1 - level, V)
        below = head.propose(states[0], tokens[0, 1:2], Prefix.of(1, "cpu"))
        torch.testing.assert_close(logits[0, 0], below[level - 1], rtol=1e-4, atol=1e-4)


def test_a_level_depends_on_no_token_that_it_proposes_or_that_follows(tmp_path: Path) -> None:
    head, _, _ = opened(EAGLE3["official"], tmp_path)
    tokens, states, _ = texts(3)
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % V
    for level, (one, other) in enumerate(
        zip(head.score(tokens, states, LEVELS), head.score(changed, states, LEVELS), strict=True), start=1
    ):
        differs = (one != other).any(-1).any(0)
        first = max(0, 5 - level)  # row i of this level reads the tokens up to i + level
        assert not differs[:first].any()
        assert differs[first:].all()


def test_gradients_flow_through_all_levels_and_the_slots_stay(tmp_path: Path) -> None:
    head, _, text = opened(EAGLE3["eagle-3.1"], tmp_path)
    tokens, states, _ = texts(3)
    head.allocate(LENGTH + 1)
    committed(head, text, 1, LENGTH + 1)
    before = head.attentions[0].keys.clone()
    head.requires_grad_(True)
    *_, last = head.score(tokens, states, LEVELS)
    last.square().sum().backward()
    assert head.attentions[0].keys.equal(before)
    for name, weights in head.named_parameters():
        assert weights.grad is not None, name
        assert weights.grad.abs().sum() > 0, name
    weight = head.fc.weight
    slope = float(weight.grad[0, 0])
    ends = []
    with torch.no_grad():
        for step in (1e-2, -1e-2):
            weight[0, 0] += step
            *_, moved = head.score(tokens, states, LEVELS)
            ends.append(float(moved.double().square().sum()))
            weight[0, 0] -= step
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-2, rel=2e-2)


def test_texts_that_are_too_short_and_too_many_levels_are_refused(tmp_path: Path) -> None:
    head, _, _ = opened(EAGLE3["official"], tmp_path / "eagle3")
    tokens, states, _ = texts(3)
    with pytest.raises(CapacityError, match="texts of 8 tokens have 7 levels below the first root, but 8 are asked for; give longer texts"):
        next(head.score(tokens, states, LENGTH + 1))
    assert len(list(head.score(tokens, states, LENGTH))) == LENGTH
    heads = load_head(write(tmp_path / "medusa", MEDUSA_CONFIG, tensors(medusa_shapes(3, 1))), target())
    assert isinstance(heads, ScoringHead)
    with pytest.raises(CapacityError, match="has 3 heads, one per level, but 4 levels are asked for; ask for fewer"):
        next(heads.score(tokens, states, 4))
