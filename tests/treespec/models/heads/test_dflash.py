"""DFlash drafts propose on every level what the slow implementation does, at every root of a text; others are refused."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.reference.head_files import BLOCK, DFLASH, HT, LAYERS, MASK, SHARED, WIDTH, Change, V, refusal, target, tensors, write
from tests.reference.head_trees import require_same
from tests.reference.heads import DFlash
from treespec.decoding.protocol import LevelHead, ParallelHead, ScoringHead
from treespec.errors import CapacityError, ModelError
from treespec.models.heads.dflash import DFlashHead
from treespec.models.heads.loading import load_head
from treespec.models.heads.target import HeadTarget
from treespec.trees.placement import Prefix

LENGTH, LEVELS = 9, BLOCK - 1


def opened(layout: str, folder: Path, of: HeadTarget | None = None) -> tuple[DFlashHead, DFlash]:
    """Write a layout, and return the draft and its slow twin."""
    published, of = DFLASH[layout], of or target()
    weights = published.write(folder)
    head = load_head(str(folder), of)
    assert isinstance(head, DFlashHead)
    return head, published.slow(weights, of)


def text(states: int, seed: int = 3) -> tuple[Tensor, Tensor]:
    """LENGTH tokens, and the target's states [LENGTH, n, Ht] at them."""
    random = torch.Generator().manual_seed(seed)
    return torch.randint(V, (LENGTH,), generator=random), torch.randn(LENGTH, states, HT, generator=random) * 2


def slow_levels(slow: DFlash, tokens: Tensor, states: Tensor, root: int) -> Tensor:
    """Logits [LEVELS, V] below the root that is a token of the text."""
    return torch.stack(slow.filled(states[:root].double(), int(tokens[root]))[1:])


@pytest.mark.parametrize("layout", DFLASH)
def test_every_root_of_a_text_has_the_levels_of_the_slow_implementation(layout: str, tmp_path: Path) -> None:
    head, slow = opened(layout, tmp_path)
    assert (head.kind, head.state_layers, head.levels, head.target_ids) == ("dflash", DFLASH[layout].states, LEVELS, None)
    assert isinstance(head, ParallelHead)
    assert isinstance(head, ScoringHead)
    assert not isinstance(head, LevelHead)
    tokens, states = text(len(head.state_layers))
    head.allocate(LENGTH)
    for begun in (1, 6):
        head.begin(states, begun)
        for root in (
            begun,
            begun + 1,
            min(begun + 1 + BLOCK, LENGTH - 1),
        ):  # as after a step that accepts nothing, and after one that accepts all
            found = head.propose(states, tokens[root : root + 1], Prefix.of(root, "cpu"))
            assert found.shape == (LEVELS, V)
            require_same(found, slow_levels(slow, tokens, states, root))


@pytest.mark.parametrize("layout", DFLASH)
def test_whole_texts_have_the_levels_of_every_root(layout: str, tmp_path: Path) -> None:
    head, slow = opened(layout, tmp_path)
    both = [text(len(head.state_layers), seed) for seed in (3, 4)]
    tokens, states = (torch.stack(each) for each in zip(*both, strict=True))
    states[:, -1] = float("nan")  # nothing reads the state of the last token
    wanted = torch.stack([torch.stack([slow_levels(slow, *one, root) for root in range(1, LENGTH)]) for one in both])
    for level, found in enumerate(head.score(tokens, states, LEVELS), start=1):
        assert found.shape == (2, LENGTH - level, V)
        require_same(found, wanted[:, : LENGTH - level, level - 1])


def test_texts_of_many_roots_are_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head, _ = opened("official", tmp_path)
    tokens, states = text(3)
    whole = torch.cat(list(head.score(tokens[None], states[None], 2)), dim=1)
    monkeypatch.setattr("treespec.models.heads.dflash._ROOTS", 3)
    torch.testing.assert_close(torch.cat(list(head.score(tokens[None], states[None], 2)), dim=1), whole)
    monkeypatch.setattr("treespec.models.heads.dflash._CHUNK", 3)
    head.allocate(LENGTH)
    head.begin(states, LENGTH - 1)
    found = head.propose(states, tokens[-1:], Prefix.of(LENGTH - 1, "cpu"))
    torch.testing.assert_close(found[0], whole[0, LENGTH - 2], rtol=1e-4, atol=1e-4)


def test_a_step_reads_only_what_the_last_one_can_have_committed(tmp_path: Path) -> None:
    """States further back are not read again, and nothing of a block or of an earlier text is seen."""
    head, slow = opened("official", tmp_path)
    tokens, states = text(3)
    head.allocate(LENGTH)
    head.begin(torch.full_like(states, 50.0), LENGTH)
    head.begin(states, 3)
    head.propose(states, tokens[3:4], Prefix.of(3, "cpu"))
    later = states.clone()
    later[: 8 - BLOCK] = float("nan")
    require_same(head.propose(later, tokens[8:], Prefix.of(8, "cpu")), slow_levels(slow, tokens, states, 8))


def test_gradients_flow_and_the_slots_stay(tmp_path: Path) -> None:
    head, _ = opened("biased", tmp_path)
    tokens, states = text(3)
    head.allocate(LENGTH)
    head.begin(states, LENGTH)
    before = head.stack[0].self_attn.keys.clone()
    head.requires_grad_(True)
    sum(level.square().sum() for level in head.score(tokens[None], states[None], LEVELS)).backward()  # type: ignore[union-attr]
    assert head.stack[0].self_attn.keys.equal(before)
    for name, weights in head.named_parameters():
        assert weights.grad is not None, name
        assert "k_proj.bias" in name or weights.grad.abs().sum() > 0, name


BAD: dict[str, tuple[Change, str]] = {
    "lacks a matrix": (lambda c, w: w.pop("fc.weight"), " lacks fc.weight, which a DFlash draft has; "),
    "lacks a norm": (
        lambda c, w: w.pop("layers.1.self_attn.k_norm.weight"),
        " lacks layers.1.self_attn.k_norm.weight, which a DFlash draft has; ",
    ),
    "lacks a layer": (
        lambda c, w: [w.update({k.replace(".1.", ".2."): w.pop(k)}) for k in [*w] if k.startswith("layers.1.")],
        " holds 2 layers up to number 2, but not number 1; ",
    ),
    "an embedding": (
        lambda c, w: w.update({"embed_tokens.weight": torch.ones(V, HT)}),
        " holds embed_tokens.weight, which a DFlash draft has not: ",
    ),
    "a tensor of another shape": (
        lambda c, w: w.update({"layers.1.self_attn.v_proj.weight": torch.ones(3, 4)}),
        rf" holds layers.1.self_attn.v_proj.weight of the shape \[3, 4\], but .* ask for \[{SHARED * WIDTH}, {HT}\]; ",
    ),
    "no block": (lambda c, w: c.pop("block_size"), ": no config.json says block_size, which must be a whole number, 1 or more; "),
    "a block of the root alone": (
        lambda c, w: c.update(block_size=1),
        ": block_size in config.json is 1, but it must be 2 or more: the root and a mask; ",
    ),
    "no mask": (
        lambda c, w: c["dflash_config"].pop("mask_token_id"),
        f": no config.json says mask_token_id, which must be a token of target the-target, 0 to {V - 1}; ",
    ),
    "a mask outside": (
        lambda c, w: c["dflash_config"].update(mask_token_id=V),
        f": mask_token_id in config.json is {V}, but it must be a token of target the-target, 0 to {V - 1}; ",
    ),
    "no layers": (
        lambda c, w: c["dflash_config"].pop("target_layer_ids"),
        ": no config.json says target_layer_ids, which must be a list of the target's layers; ",
    ),
    "layers that do not rise": (
        lambda c, w: c["dflash_config"].update(target_layer_ids=[5, 1, 8]),
        r": target_layer_ids in config.json is \[5, 1, 8\], but it must be a list of layers, ",
    ),
    "two layers for three states": (
        lambda c, w: c["dflash_config"].update(target_layer_ids=[5, 8]),
        rf" is a DFlash draft whose fc.weight reads {3 * HT} numbers, but 2 states of target the-target have {2 * HT} \(2 times {HT}\); ",
    ),
    "an object that is none": (lambda c, w: c.update(dflash_config=3), ": dflash_config in config.json is 3, but it must be an object; "),
    "layers that see a part": (
        lambda c, w: c.update(layer_types=["full_attention", "sliding_attention"], sliding_window=4),
        ": layer_types in config.json names 'sliding_attention', but only DFlash drafts whose layers see the whole text .*; use another",
    ),
    "a causal block": (
        lambda c, w: c["dflash_config"].update(causal=True),
        ": causal in config.json is True, but it must be false: only blocks that see themselves and the whole text are run; ",
    ),
    "windows": (lambda c, w: c.update(use_sliding_window=True), ": use_sliding_window in config.json is True, but it must be false: "),
    "a later kind": (
        lambda c, w: c["dflash_config"].update(selector_rank=256),
        ": config.json asks for 'selector_rank' 256, which is not run; use a DFlash draft without it",
    ),
    "scaled embeddings": (
        lambda c, w: c["dflash_config"].update(input_embedding_scale=2.0),
        ": config.json asks for 'input_embedding_scale' 2.0, which is not run; ",
    ),
    "capped logits": (
        lambda c, w: c.update(final_logit_softcapping=30.0),
        ": config.json asks for 'final_logit_softcapping' 30.0, which is not run; ",
    ),
    "speculators": (
        lambda c, w: c.update(speculators_model_type="dflash"),
        " is a DFlash draft in the speculators format, and DFlash drafts are run in the layout of their authors alone; ",
    ),
    "other heads": (lambda c, w: c.update(num_attention_heads=8), ": num_attention_heads in config.json is 8, but it must be that of "),
    "biases that are denied": (
        lambda c, w: w.update({"layers.0.self_attn.o_proj.bias": torch.ones(HT)}),
        ": attention_bias in config.json is false, but its files hold biases of self_attn; ",
    ),
}


def refused(folder: Path, change: Change, **sizes: int) -> str:
    layout = DFLASH["official"]
    return refusal(folder, layout.config, tensors(layout.shapes), layout.file, change, **sizes)


@pytest.mark.parametrize("bad", BAD)
def test_a_draft_that_contradicts_itself_or_is_not_run_is_refused(bad: str, tmp_path: Path) -> None:
    change, said = BAD[bad]
    message = refused(tmp_path, change)
    assert re.match(said, message), message


def test_a_draft_for_another_target_is_refused_by_name(tmp_path: Path) -> None:
    message = refused(tmp_path / "width", lambda c, w: None, width=HT + 8)
    assert (
        f" is a DFlash draft and lacks embed_tokens.weight, and that of target the-target is {HT + 8} wide, but the head {HT}; use a head made for it"
        in message
    )
    message = refused(tmp_path / "layers", lambda c, w: None, layers=LAYERS - 1)
    assert f": num_target_layers in config.json is {LAYERS}, but a DFlash draft for target the-target has {LAYERS - 1}; " in message
    message = refused(tmp_path / "few", lambda c, w: c.pop("num_target_layers"), layers=8)
    assert (
        " is a DFlash draft that reads the state that leaves layer 8 (target_layer_ids), but target the-target has the layers 0 to 7; "
        in message
    )
    message = refused(tmp_path / "tokens", lambda c, w: c.update(vocab_size=V + 4))
    assert f": vocab_size in config.json is {V + 4}, but a DFlash draft for target the-target has {V}; " in message


def test_a_draft_has_no_embedding_to_choose(tmp_path: Path) -> None:
    layout = DFLASH["official"]
    with pytest.raises(ModelError, match="which has no embedding of its own, but `embedding` is 'own'; leave it out"):
        load_head(write(tmp_path, layout.config, tensors(layout.shapes)), target(), embedding="own")


def test_the_matrices_of_the_target_are_not_copied(tmp_path: Path) -> None:
    of = target()
    head, _ = opened("official", tmp_path, of)
    assert head.borrowed.embedding is of.embedding
    assert head.borrowed.lm_head is of.lm_head
    assert int(head._masks[0]) == MASK


def test_more_levels_than_masks_and_texts_that_are_too_short_are_refused(tmp_path: Path) -> None:
    head, _ = opened("official", tmp_path)
    tokens, states = text(3)
    with pytest.raises(
        CapacityError, match=f"has blocks of {BLOCK}, the root among them, but {BLOCK} levels are asked for; ask for 4 at most"
    ):
        next(head.score(tokens[None], states[None], BLOCK))
    with pytest.raises(CapacityError, match="texts of 2 tokens have 1 level below the first root, but 2 are asked for"):
        next(head.score(tokens[None, :2], states[None, :2], 2))
    head.allocate(2)
    with pytest.raises(CapacityError, match=f"a head's cache has {2 + BLOCK} slots, but {3 + BLOCK} are needed"):
        head.propose(states, tokens[3:4], Prefix.of(3, "cpu"))
