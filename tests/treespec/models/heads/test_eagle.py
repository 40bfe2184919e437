"""EAGLE-1 and EAGLE-2 heads propose, at every node of a tree, what the slow implementation proposes along its path; others are refused."""

import re
from pathlib import Path

import pytest
import torch

from tests.reference.head_files import EAGLE, HT, Change, V, refusal, target, tensors
from tests.reference.head_trees import LENGTH, TREE, committed, opened, over_the_tree, require_same, slow_over_the_tree
from treespec.decoding.protocol import FINAL_STATE
from treespec.errors import ModelError
from treespec.models.heads.loading import load_head


@pytest.mark.parametrize("kind", EAGLE)
def test_every_node_has_the_logits_of_its_own_path(kind: str, tmp_path: Path) -> None:
    head, slow, text = opened(EAGLE[kind], tmp_path)
    assert (head.kind, head.state_layers, head.target_ids) == ("eagle", (FINAL_STATE,), None)
    found = over_the_tree(head, text)
    assert found.shape == (TREE.size, head.vocabulary_size)
    require_same(found, slow_over_the_tree(slow, text))


def test_committed_tokens_are_read_over_what_was_drafted(tmp_path: Path) -> None:
    head, _, text = opened(EAGLE["two-layers"], tmp_path)
    over_the_tree(head, text)
    after = committed(head, text, 5, LENGTH + 1)
    head.allocate(LENGTH + 1)
    torch.testing.assert_close(after.logits, committed(head, text, 1, LENGTH + 1).logits[4:], rtol=1e-4, atol=1e-4)


def test_an_embedding_in_the_files_is_used_unless_the_targets_is_asked_for(tmp_path: Path) -> None:
    weights = EAGLE["official"].write(tmp_path)
    of = target()
    assert load_head(str(tmp_path), of).borrowed.embedding.equal(weights["embed_tokens.weight"])
    assert load_head(str(tmp_path), of, embedding="target").borrowed.embedding is of.embedding
    assert load_head(str(tmp_path), of).borrowed.lm_head is of.lm_head


BAD: dict[str, tuple[Change, str]] = {
    "lacks its fusion": (lambda c, w: w.pop("fc.weight"), " is no head that reads a target's hidden states; "),
    "lacks a matrix": (lambda c, w: w.pop("layers.0.mlp.up_proj.weight"), " lacks layers.0.mlp.up_proj.weight, which an EAGLE head has; "),
    "lacks a bias": (
        lambda c, w: w.pop("fc.bias"),
        ' lacks fc.bias, which an EAGLE head whose config.json does not say "bias": false has; ',
    ),
    "denies its bias": (lambda c, w: c.update(bias=False), ": bias in config.json is false, but its files hold fc.bias; "),
    "claims biases": (lambda c, w: c.update(qkv_bias=True), ": qkv_bias in config.json is true, but its files lack biases of self_attn; "),
    "has a first norm": (
        lambda c, w: w.update({"layers.0.input_layernorm.weight": torch.ones(HT)}),
        " holds layers.0.input_layernorm.weight, which an EAGLE head has not: ",
    ),
    "has an embedding of another vocabulary": (
        lambda c, w: w.update({"embed_tokens.weight": torch.ones(V + 1, HT)}),
        rf" holds embed_tokens.weight of the shape \[{V + 1}, {HT}\], but .* ask for \[{V}, {HT}\]; ",
    ),
    "is for other tokens": (
        lambda c, w: c.update(vocab_size=9),
        f": vocab_size in config.json is 9, but an EAGLE head for target the-target has {V}; ",
    ),
    "has another width": (lambda c, w: c.update(head_dim=8), ": num_attention_heads in config.json is 4, but it must be that of self_attn"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_head_that_contradicts_itself_is_refused(bad: str, tmp_path: Path) -> None:
    change, said = BAD[bad]
    layout = EAGLE["official"]
    message = refusal(tmp_path, layout.config, tensors(layout.shapes), layout.file, change)
    assert re.match(said, message), message


def test_a_head_for_another_target_is_refused_by_name(tmp_path: Path) -> None:
    EAGLE["official"].write(tmp_path)
    said = rf"is an EAGLE head for a target of hidden size {HT} .*, but target the-target has {HT + 8} and needs .*; use a head made for it"
    with pytest.raises(ModelError, match=said):
        load_head(str(tmp_path), target(HT + 8))
