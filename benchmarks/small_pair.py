"""A small pair of random weights: a target of 30 layers x 576 (9 query and 3 K/V heads, vocabulary 49,152) and a draft of 3 such layers.

What a step does beside its passes shows most on models as small as these. Nothing is downloaded; the tokenizer is that of the embedded
pair, whose ids lie within the vocabulary, so prompts can be read, and what is generated has no meaning.
"""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from treespec.embedded import TARGET_FOLDER
from treespec.models.pairs import Pair
from treespec.models.tree_model import TreeModel


def small_config(layers: int) -> LlamaConfig:
    """Return the configuration of a model of so many layers."""
    return LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        initializer_range=0.04,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def small_pair(device: torch.device | str, dtype: torch.dtype, layers: int = 30, draft_layers: int = 3, seed: int = 0) -> Pair:
    """Return the pair, with weights drawn on the device in the wanted dtype. No token ends a text."""
    target, draft = (_random(small_config(n), device, dtype, seed + role) for role, n in enumerate((layers, draft_layers)))
    tokenizer = AutoTokenizer.from_pretrained(TARGET_FOLDER)
    return Pair(TreeModel(target, name=_name(layers)), tokenizer, frozenset(), draft=TreeModel(draft, name=_name(draft_layers)))


def _name(layers: int) -> str:
    return f"{layers} layers x 576 with random weights"


def _random(config: LlamaConfig, device: torch.device | str, dtype: torch.dtype, seed: int) -> Any:
    make: Any = AutoModelForCausalLM.from_config
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    torch.manual_seed(seed)
    try:
        with torch.device(device):
            module = make(config)
    finally:
        torch.set_default_dtype(before)
    return module.train(False)
