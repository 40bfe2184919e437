"""Tiny random models of every family, and tokenizers and folders for them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

VOCABULARY = 97
WINDOW = 6

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,  # large enough for logits that differ from context to context
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GQA: dict[str, Any] = {**_COMMON, "num_key_value_heads": 2}
_HEADS: dict[str, Any] = {**_GQA, "head_dim": 16}
_OLD: dict[str, Any] = {"vocab_size": VOCABULARY, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.2}
_FALCON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
    "eos_token_id": 2,
}
_OPT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "ffn_dim": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "word_embed_proj_dim": 48,
    "max_position_embeddings": 128,
    "init_std": 0.2,
}
_MOE: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_DEEPSEEK: dict[str, Any] = {
    **_COMMON,
    **_MOE,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
}
_DENSE = {*_MOE, "n_routed_experts", "n_group", "topk_group", "first_k_dense_replace"}
"""Settings of experts, which a model like DeepSeek's has not where all its layers are dense."""
_ALTERNATING: dict[str, Any] = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_UPPER_SLIDES: dict[str, Any] = {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 1}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _GQA),
    "qwen2": ("Qwen2Config", _GQA),
    "qwen2-sliding": ("Qwen2Config", {**_GQA, **_UPPER_SLIDES}),
    "qwen3": ("Qwen3Config", _HEADS),
    "qwen3-sliding": ("Qwen3Config", {**_HEADS, **_UPPER_SLIDES}),
    "mistral": ("MistralConfig", {**_GQA, "sliding_window": WINDOW}),
    "ministral": ("MinistralConfig", {**_HEADS, **_ALTERNATING}),
    "gemma": ("GemmaConfig", _HEADS),
    "gemma2": ("Gemma2Config", {**_HEADS, **_ALTERNATING}),
    "gemma3": ("Gemma3TextConfig", {**_HEADS, **_ALTERNATING}),
    "gpt_oss": ("GptOssConfig", {**_HEADS, **_ALTERNATING, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt2": ("GPT2Config", _OLD),
    "opt": ("OPTConfig", _OPT),
    "gpt_neox": ("GPTNeoXConfig", _COMMON),
    "phi": ("PhiConfig", _COMMON),
    "phi3": ("Phi3Config", {**_COMMON, "sliding_window": WINDOW}),
    "falcon": ("FalconConfig", {**_FALCON, "alibi": False}),
    "falcon-new": ("FalconConfig", {**_FALCON, "alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "starcoder2": ("Starcoder2Config", {**_GQA, "sliding_window": WINDOW}),
    "olmo2": ("Olmo2Config", _GQA),
    "mixtral": ("MixtralConfig", {**_GQA, "num_local_experts": 4, "sliding_window": WINDOW}),
    "qwen3_moe": ("Qwen3MoeConfig", {**_HEADS, **_MOE, "num_experts": 4, "decoder_sparse_step": 1}),
    "deepseek_v3": ("DeepseekV3Config", _DEEPSEEK),
    # not in the table: admitted by a trial tree
    "cohere": ("CohereConfig", {**_GQA, "logit_scale": 1.0}),
    "stablelm": ("StableLmConfig", {**_HEADS, "hidden_size": 64}),
    "youtu": ("YoutuConfig", {key: value for key, value in _DEEPSEEK.items() if key not in _DENSE}),
    "gptj": ("GPTJConfig", {**_OLD, "rotary_dim": 8}),
    "granite": ("GraniteConfig", _GQA),
}


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., PreTrainedConfig]:
    """Family name (and settings to change) -> configuration."""

    def build(family: str, **changes: Any) -> PreTrainedConfig:
        kind, settings = CONFIGS[family]
        config: PreTrainedConfig = getattr(transformers, kind)(**{**settings, **changes})
        return config

    return build


@pytest.fixture(scope="session")
def tiny_module(tiny_config: Callable[..., PreTrainedConfig]) -> Callable[..., PreTrainedModel]:
    """Family name, seed (and settings to change) -> random fp32 model on the CPU."""

    def build(family: str, seed: int = 0, attention: str | None = None, **changes: Any) -> PreTrainedModel:
        config = tiny_config(family, **changes)
        if attention is None and getattr(config, "attn_logit_softcapping", None):
            attention = "eager"
        torch.manual_seed(seed)
        module: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, **({} if attention is None else {"attn_implementation": attention})
        )
        return module.eval()

    return build


@pytest.fixture(scope="session")
def tokenizer_into() -> Callable[..., None]:
    """Folder (and a prefix for the words) -> writes a word-level tokenizer of 90 tokens there; id 3 is its EOS."""

    def write(folder: Path, prefix: str = "w", size: int = 90) -> None:
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        vocabulary = {f"{prefix}{index}": index for index in range(size)}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=f"{prefix}0"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=f"{prefix}0", eos_token=f"{prefix}3").save_pretrained(folder)

    return write
