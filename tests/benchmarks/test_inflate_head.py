"""A head that was grown together with its target proposes what it proposed before."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from benchmarks.inflate import Shape, big_config, inflate
from benchmarks.inflate_head import inflate_head
from tests.benchmarks.test_inflate import small_config
from treeopt.training.heads import write_head
from treespec.errors import ModelError
from treespec.models.heads.bound import BoundHead
from treespec.models.heads.loading import load_head
from treespec.models.heads.making import NewEagle3
from treespec.models.heads.target import HeadTarget
from treespec.models.tree_model import TreeModel

BIG = Shape(hidden_size=96, num_hidden_layers=11, num_attention_heads=6, intermediate_size=200)


@pytest.mark.parametrize("draft_tokens", [None, 20])
def test_proposals_are_those_of_the_small_head(tmp_path: Path, draft_tokens: int | None) -> None:
    torch.manual_seed(0)
    small = LlamaForCausalLM(small_config(num_hidden_layers=8)).eval()
    big = inflate(small, LlamaForCausalLM(big_config(small.config, BIG))).eval()
    new = NewEagle3.of("tiny", small.config, draft_tokens)
    ids = None if draft_tokens is None else torch.arange(draft_tokens) * 2
    write_head(tmp_path / "small", new, new.made(HeadTarget.of(small, "tiny"), ids, 0))
    inflate_head(tmp_path / "small", small.config, BIG, tmp_path / "big", torch.float32, "cpu")
    texts = torch.randint(0, 50, (2, 14), generator=torch.Generator().manual_seed(1))
    levels = []
    for module, name in ((small, "small"), (big, "big")):
        head = load_head(str(tmp_path / name), HeadTarget.of(module, name))
        levels.append(list(BoundHead(head, TreeModel(module, name=name)).levels(texts, 4)))
    for expected, found in zip(*levels, strict=True):
        assert expected[expected.isfinite()].std() > 0.1
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_smaller_shape_is_refused(tmp_path: Path) -> None:
    small = LlamaForCausalLM(small_config(num_hidden_layers=8))
    new = NewEagle3.of("tiny", small.config, None)
    write_head(tmp_path / "small", new, new.made(HeadTarget.of(small, "tiny"), None, 0))
    with pytest.raises(ModelError, match="take a larger shape"):
        inflate_head(tmp_path / "small", small.config, Shape(16, 8, 2, 64), tmp_path / "big", torch.float32, "cpu")
