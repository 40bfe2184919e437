"""EAGLE-3 heads of every published layout propose, at every node of a tree, what the slow implementation proposes along its path."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.reference.head_files import EAGLE3, HT, VD, V, target, write
from tests.reference.head_trees import LENGTH, TREE, Text, committed, opened, over_the_tree, require_same, slow_over_the_tree
from treespec.models.heads.loading import load_head
from treespec.trees.placement import Placement


@pytest.mark.parametrize("kind", EAGLE3)
def test_every_node_has_the_logits_of_its_own_path(kind: str, tmp_path: Path) -> None:
    head, slow, text = opened(EAGLE3[kind], tmp_path)
    assert head.kind == "eagle3"
    found = over_the_tree(head, text)
    assert found.shape == (TREE.size, head.vocabulary_size)
    require_same(found, slow_over_the_tree(slow, text))


@pytest.mark.parametrize("kind", ["official", "speculators"])
def test_the_order_of_slots_does_not_matter(kind: str, tmp_path: Path) -> None:
    head, _, text = opened(EAGLE3[kind], tmp_path)
    torch.testing.assert_close(over_the_tree(head, text, seed=5), over_the_tree(head, text, seed=6))


def test_committed_tokens_are_read_over_what_was_drafted(tmp_path: Path) -> None:
    """After a tree, its slots hold drafted keys and values; reading the text on with the target's states leaves none of them."""
    head, _, text = opened(EAGLE3["official"], tmp_path)
    over_the_tree(head, text)
    after = committed(head, text, 5, LENGTH + 1)
    head.allocate(LENGTH + 1)
    fresh = committed(head, text, 1, LENGTH + 1)
    torch.testing.assert_close(after.logits, fresh.logits[4:])
    torch.testing.assert_close(after.features, fresh.features[4:])


def test_what_is_kept_is_a_part_of_the_whole(tmp_path: Path) -> None:
    head, _, text = opened(EAGLE3["eagle-3.1"], tmp_path)
    head.allocate(LENGTH + 1)
    whole = committed(head, text, 1, LENGTH + 1)
    features = head.features(text.states)
    part = head.forward(text.tokens[1:], features, Placement.causal(1, LENGTH, "cpu"), torch.tensor([4, 1]))
    torch.testing.assert_close(part.logits, whole.logits[[4, 1]])
    torch.testing.assert_close(part.features, whole.features[[4, 1]])


def test_draft_tokens_are_tokens_of_the_target(tmp_path: Path) -> None:
    weights = EAGLE3["official"].write(tmp_path)
    head = load_head(str(tmp_path), target())
    assert head.target_ids.tolist() == weights["t2d"].nonzero()[:, 0].tolist()
    EAGLE3["official-whole-vocabulary"].write(tmp_path / "whole")
    whole = load_head(str(tmp_path / "whole"), target())
    assert whole.target_ids is None
    assert (head.vocabulary_size, whole.vocabulary_size) == (VD, V)


@pytest.mark.parametrize("prefix", ["model.", ""])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_files_of_either_kind_and_prefix_are_one_head(prefix: str, file: str, tmp_path: Path) -> None:
    layout = EAGLE3["specforge"]
    weights = layout.write(tmp_path / "plain")
    renamed = {name if name in ("d2t", "t2d") else prefix + name: value for name, value in weights.items()}
    write(tmp_path / "other", layout.config, renamed, file)
    text = Text.random(3, HT)
    one, other = (over_the_tree(load_head(str(tmp_path / name), target()), text) for name in ("plain", "other"))
    assert one.equal(other)


def test_parts_and_old_buffers_are_read(tmp_path: Path) -> None:
    layout = EAGLE3["official-llama3"]
    weights = layout.write(tmp_path / "whole")
    write(tmp_path / "parts", layout.config, {})
    (tmp_path / "parts" / "model.safetensors").unlink()
    half = len(weights) // 2
    places = {}
    for number, names in enumerate((list(weights)[:half], list(weights)[half:])):
        part = {name: weights[name] for name in names}
        part |= {} if number else {"midlayer.self_attn.rotary_emb.inv_freq": torch.ones(3)}
        save_file(part, tmp_path / "parts" / f"{number}.safetensors")
        places |= dict.fromkeys(part, f"{number}.safetensors")
    import json

    (tmp_path / "parts" / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    text = Text.random(3, HT)
    one, other = (over_the_tree(load_head(str(tmp_path / name), target()), text) for name in ("whole", "parts"))
    assert one.equal(other)


def test_what_published_configs_have_wrong_is_not_read(tmp_path: Path) -> None:
    layout = EAGLE3["official"]
    layout.write(tmp_path / "published")
    right = {**layout.config, "num_hidden_layers": 1, "max_position_embeddings": 131072, "tie_word_embeddings": False, "bias": False}
    layout.write(tmp_path / "right")
    write(tmp_path / "right", {**right, "architectures": ["LlamaForCausalLMEagle3"]}, layout.write(tmp_path / "right"), layout.file)
    text = Text.random(3, HT)
    one, other = (over_the_tree(load_head(str(tmp_path / name), target()), text) for name in ("published", "right"))
    assert one.equal(other)
