"""Settings of tiny random models of every family, for tests and for the campaign against transformers' `generate`."""

from typing import Any

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
_GROUPS: dict[str, Any] = {"n_routed_experts": 8, "n_shared_experts": 1, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}
_LATENT: dict[str, Any] = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12}
_DEEPSEEK: dict[str, Any] = {**_COMMON, **_MOE, **_GROUPS, **_LATENT, "num_key_value_heads": 4}
_ALTERNATING: dict[str, Any] = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_UPPER_SLIDES: dict[str, Any] = {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 1}
_SCALES: dict[str, Any] = {"embedding_multiplier": 1.5, "logits_scaling": 2.0, "residual_multiplier": 0.8, "attention_multiplier": 0.2}
_SHARED: dict[str, Any] = {"num_experts": 4, "num_shared_experts": 1}
_QUERY_SCALE: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 16,  # queries are scaled from here on
    "max_position_embeddings": 128,
    "llama_4_scaling_beta": 0.3,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _GQA),
    "llama-3.1": (
        "LlamaConfig",
        {
            **_GQA,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e4,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "qwen2": ("Qwen2Config", _GQA),
    "qwen2-sliding": ("Qwen2Config", {**_GQA, **_UPPER_SLIDES}),
    "qwen3": ("Qwen3Config", _HEADS),
    "qwen3-sliding": ("Qwen3Config", {**_HEADS, **_UPPER_SLIDES}),
    "mistral": ("MistralConfig", {**_GQA, "sliding_window": WINDOW}),
    "ministral": ("MinistralConfig", {**_HEADS, **_ALTERNATING}),
    "ministral3": ("Ministral3Config", {**_HEADS, "rope_parameters": _QUERY_SCALE}),
    "ministral3-sliding": ("Ministral3Config", {**_HEADS, "rope_parameters": _QUERY_SCALE, "sliding_window": WINDOW}),
    "gemma": ("GemmaConfig", {**_HEADS, "tie_word_embeddings": False}),
    "gemma2": ("Gemma2Config", {**_HEADS, "tie_word_embeddings": False, **_ALTERNATING}),
    "gemma3": ("Gemma3TextConfig", {**_HEADS, "tie_word_embeddings": False, **_ALTERNATING}),
    "gpt_oss": ("GptOssConfig", {**_HEADS, **_ALTERNATING, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt2": ("GPT2Config", _OLD),
    "gpt_bigcode": ("GPTBigCodeConfig", {**_OLD, "multi_query": True}),
    "gptj": ("GPTJConfig", {**_OLD, "rotary_dim": 8}),
    "opt": ("OPTConfig", _OPT),
    "gpt_neox": ("GPTNeoXConfig", _COMMON),
    "phi": ("PhiConfig", _COMMON),
    "phi3": ("Phi3Config", {**_COMMON, "sliding_window": WINDOW}),
    "phimoe": ("PhimoeConfig", {**_GQA, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": WINDOW}),
    "falcon": ("FalconConfig", {**_FALCON, "alibi": False}),
    "falcon-new": ("FalconConfig", {**_FALCON, "alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "starcoder2": ("Starcoder2Config", {**_GQA, "sliding_window": WINDOW}),
    "olmo": ("OlmoConfig", _GQA),
    "olmo2": ("Olmo2Config", _GQA),
    "olmo3": ("Olmo3Config", {**_GQA, **_ALTERNATING}),
    "olmoe": ("OlmoeConfig", {**_GQA, "num_experts": 4, "num_experts_per_tok": 2}),
    "mixtral": ("MixtralConfig", {**_GQA, "num_local_experts": 4, "sliding_window": WINDOW}),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        {**_GQA, **_MOE, "num_experts": 4, "shared_expert_intermediate_size": 32},
    ),
    "qwen2_moe-sliding": (
        "Qwen2MoeConfig",
        {**_GQA, **_MOE, **_UPPER_SLIDES, "num_experts": 4, "shared_expert_intermediate_size": 32},
    ),
    "qwen3_moe": ("Qwen3MoeConfig", {**_HEADS, **_MOE, "num_experts": 4, "decoder_sparse_step": 1}),
    "deepseek_v2": ("DeepseekV2Config", {**_DEEPSEEK, "topk_method": "group_limited_greedy"}),
    "deepseek_v3": ("DeepseekV3Config", _DEEPSEEK),
    "youtu": ("YoutuConfig", {**_COMMON, **_LATENT, "num_key_value_heads": 4}),
    "minicpm3": ("MiniCPM3Config", {**_COMMON, "tie_word_embeddings": False, **_LATENT, "num_key_value_heads": 4}),
    "cohere": ("CohereConfig", {**_GQA, "logit_scale": 1.0}),
    "cohere2": ("Cohere2Config", {**_GQA, **_ALTERNATING, "logit_scale": 1.0}),
    "glm": ("GlmConfig", _HEADS),
    "glm4": ("Glm4Config", _HEADS),
    "glm4_moe": ("Glm4MoeConfig", {**_HEADS, **_MOE, **_GROUPS, "use_qk_norm": True}),
    "glm4_moe_lite": ("Glm4MoeLiteConfig", {**_DEEPSEEK, "n_group": 1, "mlp_layer_types": ["dense", "sparse"]}),
    "granite": ("GraniteConfig", {**_GQA, **_SCALES}),
    "granitemoe": ("GraniteMoeConfig", {**_GQA, **_SCALES, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "granitemoeshared": (
        "GraniteMoeSharedConfig",
        {**_GQA, **_SCALES, "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 32},
    ),
    "exaone4": ("Exaone4Config", {**_GQA, **_ALTERNATING}),
    "exaone4-full": ("Exaone4Config", {**_GQA, "sliding_window": None, "layer_types": ["full_attention"] * 2}),
    "exaone_moe": (
        "ExaoneMoeConfig",
        {**_GQA, **_MOE, **_SHARED, **_ALTERNATING, "mlp_layer_types": ["dense", "sparse"]},
    ),
    "smollm3": ("SmolLM3Config", {**_GQA, "no_rope_layer_interval": 2}),
    "smollm3-sliding": ("SmolLM3Config", {**_GQA, "no_rope_layer_interval": 2, "use_sliding_window": True, **_ALTERNATING}),
    "hunyuan_v1_dense": ("HunYuanDenseV1Config", _HEADS),
    "hunyuan_v1_moe": ("HunYuanMoEV1Config", {**_HEADS, "num_experts": 4, "moe_topk": 2}),
    "ernie4_5": ("Ernie4_5Config", _HEADS),
    "ernie4_5_moe": (
        "Ernie4_5_MoeConfig",
        {**_GQA, "moe_intermediate_size": 32, "moe_k": 2, "moe_num_experts": 4, "moe_num_shared_experts": 1, "moe_layer_start_index": 1},
    ),
    "seed_oss": ("SeedOssConfig", _HEADS),
    "apertus": ("ApertusConfig", _GQA),
    "arcee": ("ArceeConfig", _GQA),
    "helium": ("HeliumConfig", {**_GQA, "head_dim": 12}),
    "nemotron": ("NemotronConfig", _HEADS),
    "stablelm": ("StableLmConfig", {**_HEADS, "hidden_size": 64}),
    "cwm": ("CwmConfig", {**_HEADS, **_ALTERNATING}),
    "bitnet": ("BitNetConfig", _GQA),
    "dots1": ("Dots1Config", {**_HEADS, **_MOE, **_GROUPS, **_ALTERNATING}),
    "minimax_m2": ("MiniMaxM2Config", {**_HEADS, "num_local_experts": 4, "num_experts_per_tok": 2, "rotary_dim": 8}),
    "internlm3": ("InternLM3Config", _GQA),
    "jais2": ("Jais2Config", _GQA),
    "nanochat": ("NanoChatConfig", _GQA),
    "persimmon": ("PersimmonConfig", _COMMON),
    "vaultgemma": ("VaultGemmaConfig", {**_HEADS, "tie_word_embeddings": False, **_ALTERNATING}),
    "gemma3n": (
        "Gemma3nTextConfig",
        {
            **_HEADS,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 8,
            "num_kv_shared_layers": 2,
            "tie_word_embeddings": False,
            "num_hidden_layers": 4,
            "activation_sparsity_pattern": [0.0] * 4,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "gemma4": (
        "Gemma4TextConfig",
        {
            **_HEADS,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 8,
            "global_head_dim": 24,
            "num_kv_shared_layers": 2,
            "tie_word_embeddings": False,
            "num_hidden_layers": 4,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
}
"""Name -> (class of transformers, settings). The name begins with the model type; what follows a hyphen tells kinds of it apart."""


def known(family: str) -> bool:
    """Return whether the installed transformers has this family."""
    return hasattr(transformers, CONFIGS[family][0])


def config_of(family: str, **changes: Any) -> PreTrainedConfig:
    """Return the configuration of a tiny model, with some settings changed."""
    kind, settings = CONFIGS[family]
    config: PreTrainedConfig = getattr(transformers, kind)(**{**settings, **changes})
    return config


def module_of(config: PreTrainedConfig, seed: int = 0, attention: str | None = None) -> PreTrainedModel:
    """Return a random float32 model on the CPU in eval mode, with the attention that `load_model` would choose."""
    if attention is None and getattr(config, "attn_logit_softcapping", None):
        attention = "eager"
    torch.manual_seed(seed)
    module: PreTrainedModel = AutoModelForCausalLM.from_config(config, **({} if attention is None else {"attn_implementation": attention}))
    return module.eval()
