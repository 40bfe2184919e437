"""Tiny random models that wrap a text model: those that see pictures or hear, of which only the text model is used here."""

from typing import Any

import torch
import transformers
from transformers import AutoModelForMultimodalLM, PreTrainedConfig, PreTrainedModel

from tests.reference.tiny import CONFIGS, VOCABULARY

_SIGHT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
_GRID: dict[str, Any] = {"depth": 1, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 1}
_MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 3]}
_QWEN2_5_SIGHT: dict[str, Any] = {
    "vision_config": {**_GRID, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 48, "fullatt_block_indexes": [0]},
    "image_token_id": 90,
    "video_token_id": 91,
}
_QWEN_HEADS: dict[str, Any] = {**CONFIGS["qwen3"][1], "head_dim": 12}

WRAPPERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "mistral3": (
        "Mistral3Config",
        {"model_type": "mistral", **CONFIGS["mistral"][1]},
        {"vision_config": {"model_type": "pixtral", **_SIGHT, "head_dim": 16}, "image_token_id": 90, "spatial_merge_size": 1},
    ),
    "mistral3-ministral3": (
        "Mistral3Config",
        {"model_type": "ministral3", **CONFIGS["ministral3"][1]},
        {"vision_config": {"model_type": "pixtral", **_SIGHT, "head_dim": 16}, "image_token_id": 90, "spatial_merge_size": 1},
    ),
    "smolvlm": (
        "SmolVLMConfig",
        {"model_type": "llama", **CONFIGS["llama"][1]},
        {"vision_config": _SIGHT, "image_token_id": 90, "scale_factor": 2, "pad_token_id": 0},
    ),
    "idefics3": (
        "Idefics3Config",
        {"model_type": "llama", **CONFIGS["llama"][1]},
        {"vision_config": _SIGHT, "image_token_id": 90, "scale_factor": 2, "pad_token_id": 0},
    ),
    "qwen2_vl": (
        "Qwen2VLConfig",
        {**CONFIGS["qwen2"][1], "rope_parameters": _MROPE},
        {"vision_config": {**_GRID, "embed_dim": 32, "hidden_size": 48}, "image_token_id": 90, "video_token_id": 91},
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VLConfig",
        {**CONFIGS["qwen2"][1], "rope_parameters": _MROPE},
        _QWEN2_5_SIGHT,
    ),
    "qwen2_5_vl-sliding": (
        "Qwen2_5_VLConfig",
        {**CONFIGS["qwen2-sliding"][1], "rope_parameters": _MROPE},
        _QWEN2_5_SIGHT,
    ),
    "qwen3_vl": (
        "Qwen3VLConfig",
        {**_QWEN_HEADS, "rope_parameters": {**_MROPE, "mrope_interleaved": True}},
        {
            "vision_config": {
                **_GRID,
                "hidden_size": 32,
                "intermediate_size": 48,
                "out_hidden_size": 48,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0],
            },
            "image_token_id": 90,
            "video_token_id": 91,
            "tie_word_embeddings": False,
        },
    ),
    "qwen3_vl_moe": (
        "Qwen3VLMoeConfig",
        {**CONFIGS["qwen3_moe"][1], "head_dim": 12, "rope_parameters": {**_MROPE, "mrope_interleaved": True}},
        {
            "vision_config": {
                **_GRID,
                "hidden_size": 32,
                "intermediate_size": 48,
                "out_hidden_size": 48,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0],
            },
            "image_token_id": 90,
            "video_token_id": 91,
            "tie_word_embeddings": False,
        },
    ),
    "glm4v": (
        "Glm4vConfig",
        {**CONFIGS["glm4"][1], "rope_parameters": {**_MROPE, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}},
        {
            "vision_config": {**_GRID, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 48, "image_size": 16},
            "image_token_id": 90,
            "video_token_id": 91,
        },
    ),
    "gemma3": (
        "Gemma3Config",
        CONFIGS["gemma3"][1],
        {
            "vision_config": _SIGHT,
            "mm_tokens_per_image": 4,
            "image_token_index": 90,
            "boi_token_index": 91,
            "eoi_token_index": 92,
            "tie_word_embeddings": False,
        },
    ),
    "internvl": (
        "InternVLConfig",
        {"model_type": "qwen2", **CONFIGS["qwen2"][1]},
        {"vision_config": {**_SIGHT, "image_size": [16, 16], "patch_size": [8, 8]}, "image_token_id": 90},
    ),
    "aya_vision": (
        "AyaVisionConfig",
        {"model_type": "cohere2", **CONFIGS["cohere2"][1]},
        {"vision_config": _SIGHT, "image_token_index": 90},
    ),
    "cohere2_vision": (
        "Cohere2VisionConfig",
        {"model_type": "cohere2", **CONFIGS["cohere2"][1], "logit_scale": 0.5},
        {"vision_config": _SIGHT, "image_token_id": 90},
    ),
    "llava_next": (
        "LlavaNextConfig",
        {"model_type": "llama", **CONFIGS["llama"][1]},
        {"vision_config": {"model_type": "clip_vision_model", **_SIGHT}, "image_token_index": 90, "image_grid_pinpoints": [[16, 16]]},
    ),
    "llava_onevision": (
        "LlavaOnevisionConfig",
        {"model_type": "qwen2", **CONFIGS["qwen2"][1]},
        {"vision_config": {"model_type": "siglip_vision_model", **_SIGHT}, "image_token_index": 90, "image_grid_pinpoints": [[16, 16]]},
    ),
    "paligemma": (
        "PaliGemmaConfig",
        {"model_type": "gemma", **CONFIGS["gemma"][1]},
        {
            "vision_config": {"model_type": "siglip_vision_model", **_SIGHT, "projection_dim": 48},
            "image_token_index": 90,
            "tie_word_embeddings": False,
        },
    ),
    "gemma4": (
        "Gemma4Config",
        CONFIGS["gemma4"][1],
        {"vision_config": None, "audio_config": None, "image_token_id": 90, "tie_word_embeddings": False},
    ),
    "gemma3n": ("Gemma3nConfig", CONFIGS["gemma3n"][1], {}),
    "qwen2_audio": (
        "Qwen2AudioConfig",
        {"model_type": "qwen2", **CONFIGS["qwen2"][1]},
        {
            "audio_config": {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32},
            "audio_token_index": 90,
        },
    ),
    "voxtral": (
        "VoxtralConfig",
        {"model_type": "llama", **CONFIGS["llama"][1]},
        {
            "audio_config": {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2},
            "audio_token_id": 90,
        },
    ),
}
"""Name -> (class of transformers, settings of the text model, other settings). The name begins with the model type."""


def known(name: str) -> bool:
    """Return whether the installed transformers has this wrapper."""
    return hasattr(transformers, WRAPPERS[name][0])


def config_of(name: str, **changes: Any) -> PreTrainedConfig:
    """Return the configuration of a tiny wrapper, with some settings of its text model changed."""
    kind, text, rest = WRAPPERS[name]
    config: PreTrainedConfig = getattr(transformers, kind)(text_config={**text, **changes}, **rest)
    return config


def module_of(name: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Return a random float32 wrapper on the CPU in eval mode."""
    assert VOCABULARY > 92
    torch.manual_seed(seed)
    module: PreTrainedModel = AutoModelForMultimodalLM.from_config(config_of(name, **changes))
    return module.eval()
