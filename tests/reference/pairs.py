"""Tiny random Llama pairs and prompts for tests of whole measurements."""

import copy

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from treespec.data.prompts import Prompt, PromptSet
from treespec.models.pairs import Pair
from treespec.models.tree_model import TreeModel

VOCABULARY = 61


def tiny_pair(noise: float = 0.05, eos: frozenset[int] = frozenset(), device: str = "cpu", positions: int = 256) -> Pair:
    """A random target and a noisy copy of it as its draft."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.3,
        max_position_embeddings=positions,
    )
    module = LlamaForCausalLM(config).eval()
    draft = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter += noise * torch.randn(parameter.shape)
    return Pair(TreeModel(module.to(device), name="tiny"), None, eos, draft=TreeModel(draft.to(device), name="tiny-draft"))


def prompt_set(count: int = 4, length: int = 6, continuation: int = 0) -> PromptSet:
    """Random prompts of one length."""
    generator = torch.Generator().manual_seed(7)
    rows = torch.randint(0, VOCABULARY, (count, length + continuation), generator=generator).tolist()
    prompts = tuple(Prompt(i, f"row {i}", tuple(row[:length]), tuple(row[length:])) for i, row in enumerate(rows))
    return PromptSet(prompts, "random", 0, count, 0)
