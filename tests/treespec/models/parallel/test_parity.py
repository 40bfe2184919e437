"""A target that several processes hold together gives what one process gives: logits, texts, profiles."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from tests.reference.head_pairs import head_pair
from tests.reference.ranks import of_ranks
from treespec.decoding.drafting import Drafting
from treespec.decoding.loop import Request, decode_speculative
from treespec.decoding.rules import Sampling
from treespec.decoding.sampling import prompt_generator
from treespec.models.pairs import Pair, load_pair
from treespec.trees.tree import SpeculationTree

Build = Callable[..., PreTrainedModel]
TREE = SpeculationTree.from_branches([[2], [2, 1], [1, 0, 1]])
PROMPT = tuple(range(5, 25))


@pytest.fixture(scope="module")
def folders(tiny_module: Build, tokenizer_into: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Family (and settings) -> folder with its model and a tokenizer."""

    def save(family: str, name: str, seed: int = 0, **changes: Any) -> str:
        folder = tmp_path_factory.mktemp("models") / name
        module = tiny_module(family, seed, **changes)
        module.generation_config.eos_token_id = None
        module.save_pretrained(folder, max_shard_size="40KB")
        tokenizer_into(folder)
        return str(folder)

    return save


def texts(pair: Pair) -> list[list[int]]:
    """A greedy text, and a sampled one of each kind of drafting."""
    found = []
    for sampling, drafting in (
        (Sampling(0.0), Drafting()),
        (Sampling(0.8, 0.9), Drafting()),
        (Sampling(1.0), Drafting("swor", verifier="traversal")),
    ):
        request = Request(PROMPT, 24, frozenset(), sampling)
        records = decode_speculative(pair.target, pair.draft, TREE, request, prompt_generator(7, 0, "cpu"), drafting=drafting)
        found.append([token for record in records for token in record.tokens])
    return found


def seen_by(pair: Pair) -> dict[str, Any]:
    ids = torch.tensor([PROMPT, PROMPT[::-1]])
    found = texts(pair)
    cache = pair.target._cache
    assert cache is not None
    return {
        "texts": found,
        "score": pair.target.score(ids, 3).numpy(),
        "stored": sum(storage.nbytes for storage in cache.storages.values()) / cache.capacity,
        "held": sum(parameter.numel() for parameter in pair.target.module.parameters()),
        "described": pair.describe()["target"],
        "sha256": pair.sha256,
        "provenance": pair.provenance(),
    }


def in_a_rank(models: list[tuple[str, str]], processes: int) -> list[dict[str, Any]]:
    return [seen_by(load_pair(target, draft, tensor_parallel=processes)) for target, draft in models]


@pytest.mark.parametrize("processes", [2, 4])
def test_parts_of_a_target_give_what_the_whole_gives(
    folders: Callable[..., str], tokenizer_into: Callable[..., None], tmp_path: Path, processes: int
) -> None:
    """Of sliced models with grouped heads, tied and untied products, biases, norms of heads, and a head as draft, and of one of another family.

    97 tokens are no multiple of 2 or 4: the vocabulary's product is filled up.
    """
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}
    models = [
        (folders("llama", "llama", **heads, attention_bias=True, mlp_bias=True), folders("llama", "draft", 1)),
        (folders("llama", "tied", 2, **heads, tie_word_embeddings=True), folders("llama", "draft", 1)),
    ]
    if processes == 2:
        models += [(folders(family, family, 3), folders(family, "draft", 4)) for family in ("qwen3-sliding", "qwen2", "gemma")]
        drafted = head_pair("eagle official", "llama", tmp_path / "head")  # it borrows two matrices of the target
        drafted.module.save_pretrained(tmp_path / "target")
        tokenizer_into(tmp_path / "target", size=60)
        models.append((str(tmp_path / "target"), str(tmp_path / "head")))
    ranks = of_ranks(processes, in_a_rank, models, processes)
    for number, (target, draft) in enumerate(models):
        whole = seen_by(load_pair(target, draft))
        for rank in ranks:
            part = rank[number]
            assert part["texts"] == whole["texts"], target
            assert abs(part["score"] - whole["score"]).max() < 1e-4
            assert (part["score"] == ranks[0][number]["score"]).all()  # to the bit: decisions rest on it
            assert part["stored"] * processes == whole["stored"]
            assert part["held"] < whole["held"] or part["described"]["family"] == "gemma"
            assert part["described"] == {**whole["described"], "tensor_parallel": processes}
            assert part["sha256"] == whole["sha256"]
            known = {key: part["provenance"][key] for key in ("tensor_parallel", "processes", "hosts", "backend")}
            assert known == {"tensor_parallel": processes, "processes": processes, "hosts": 1, "backend": "gloo"}
