"""The model families that are exact with trees, with the way each takes its mask, and those that are refused, with the reason.

A pass over a tree is exact if every node's logits equal those of its own path run alone. For this, attention may read only
the mask, the positions and the K/V slots: no running state, no bias by slot number, no hidden window.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from transformers import PreTrainedConfig

from treespec.errors import ModelError, counted

MaskStyle = Literal["single", "by-layer-type"]


@dataclass(frozen=True)
class Family:
    """The way to run a model of one configuration over a tree."""

    model_type: str
    mask_style: MaskStyle
    """One 4D mask for all layers, or a dict of one per layer type (a lone mask would silently drop the windows)."""
    window: int | None
    """Number of positions that a sliding layer sees, the token's own included; None if every layer sees all."""
    max_positions: int | None
    """Number of positions that trees can be run on; None if its configuration has no limit."""
    attention: Literal["eager"] | None
    """The attention implementation to load it with; None for transformers' own choice (sdpa if the family has it)."""
    verified: bool
    """Whether it is in the table of tested families; others must pass `verify_exactness` first."""
    rope_note: str = ""
    """For messages, why `max_positions` is below what the configuration says; the empty string if it is not."""


_SINGLE = (
    *("llama", "mistral", "ministral3", "mixtral", "internlm3", "seed_oss", "apertus", "arcee", "helium", "nemotron", "stablelm"),
    *("gemma", "phi", "phi3", "phimoe", "olmo", "olmo2", "olmoe", "starcoder2", "qwen3_moe", "minimax_m2", "minicpm3"),
    *("glm", "glm4", "glm4_moe", "glm4_moe_lite", "granite", "granitemoe", "granitemoeshared", "cohere", "deepseek_v2", "deepseek_v3"),
    *("hunyuan_v1_dense", "hunyuan_v1_moe", "ernie4_5", "ernie4_5_moe"),
    *("gpt2", "gpt_bigcode", "gptj", "gpt_neox", "opt", "falcon"),
    *("qwen3_vl_text", "qwen3_vl_moe_text", "glm4v_text"),
)
_BY_LAYER_TYPE = (
    *("qwen2", "qwen3", "qwen2_moe", "ministral", "gemma2", "gemma3_text", "gemma3n_text", "gemma4_text", "vaultgemma", "gpt_oss"),
    *("olmo3", "cohere2", "exaone4", "exaone_moe", "smollm3", "cwm", "dots1"),
    *("qwen2_vl_text", "qwen2_5_vl_text"),
)
VERIFIED: Mapping[str, MaskStyle] = MappingProxyType({**dict.fromkeys(_SINGLE, "single"), **dict.fromkeys(_BY_LAYER_TYPE, "by-layer-type")})
"""The way each model_type takes its mask. The tests compare every one of them with its paths run alone."""

WRAPPERS = (
    *("llava_next", "llava_onevision", "mistral3", "internvl", "idefics3", "smolvlm", "aya_vision", "cohere2_vision"),
    *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v", "gemma3", "gemma4", "qwen2_audio", "voxtral"),
)
"""Tested model types that wrap a text model, beside eyes or ears, which are not used: text through them is compared with `generate`."""

_EXAMPLES = "a llama, a qwen3, a mistral or a gemma3"
_RUNNING_STATE = "it carries a running state from token to token, which the branches of a tree cannot share"
_ROW_BIAS = "it biases attention by cache row instead of by position (ALiBi), which is wrong for tree nodes"
_ROW_WINDOW = "its attention windows and causal order go by cache row instead of by position, which is wrong for tree nodes"
_BOTH_WAYS = "it is an encoder-decoder or reads text in both directions; trees need a decoder-only causal language model"

REFUSED: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                "bamba",
                "falcon_h1",
                "falcon_mamba",
                "granitemoehybrid",
                "jamba",
                "kimi_linear",
                "lfm2",
                "lfm2_moe",
                "mamba",
                "mamba2",
                "minimax",
                "nemotron_h",
                "olmo_hybrid",
                "qwen3_5",
                "qwen3_5_moe",
                "qwen3_5_text",
                "qwen3_5_moe_text",
                "qwen3_next",
                "recurrent_gemma",
                "rwkv",
                "xlstm",
                "zamba",
                "zamba2",
            ),
            _RUNNING_STATE,
        ),
        "bloom": _ROW_BIAS,
        "mpt": _ROW_BIAS,
        "gpt_neo": _ROW_WINDOW,
        "llama4": "its layers attend in chunks, which are not supported over trees",
        "llama4_text": "its layers attend in chunks, which are not supported over trees",
        **dict.fromkeys(
            (
                "bart",
                "bert",
                "blenderbot",
                "encoder-decoder",
                "led",
                "longt5",
                "m2m_100",
                "marian",
                "mbart",
                "mt5",
                "pegasus",
                "t5",
                "umt5",
            ),
            _BOTH_WAYS,
        ),
    }
)
"""The reason why each of these model_types can never be exact here."""

_MASKED_LAYERS = {"full_attention", "sliding_attention"}
_WINDOW_NAMES = ("sliding_window", "sliding_window_size", "attention_window", "local_window_size", "window_size", "attention_chunk_size")
SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "head_dim"),
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("n_embd", "n_layer", "n_head", "ffn_dim"),
    *("max_position_embeddings", "n_positions", "original_max_position_embeddings"),
)
"""Settings that must be at least 1."""
_PLAIN_ROPES = {"default", "linear", "llama3", "yarn", "proportional"}


def check(config: PreTrainedConfig, name: str = "") -> Family:
    """Return the way to run a model of this configuration over trees.

    Raises ModelError, with the family and the reason, if no exact way is known.
    """
    text = config.get_text_config(decoder=True)
    model_type = str(text.model_type)
    reason = refusal(config)
    if reason:
        who = f"{name or 'this model'} (family {model_type})"
        raise ModelError(f"{who} cannot run trees exactly: {reason}; use another model, for example {_EXAMPLES}")
    for settings in (vars(text), *_ropes(text)):
        require_sizes(settings, name)
    limit, note = _max_positions(text)
    return Family(
        model_type=model_type,
        mask_style=VERIFIED.get(model_type, "single"),
        window=_window(text),
        max_positions=limit,
        attention="eager" if getattr(text, "attn_logit_softcapping", None) else None,
        verified=model_type in VERIFIED and (str(config.model_type) in (model_type, *WRAPPERS)),  # not inside an unknown wrapper
        rope_note=note,
    )


def require_sizes(settings: Mapping[str, Any], name: str) -> None:
    """Raise ModelError if a configuration has settings that no model can have."""
    for key in SIZES:
        value = settings.get(key)
        if isinstance(value, float | str | bool) or (isinstance(value, int) and value < 1):
            raise ModelError(
                f"{name or 'this model'}: {key} is {value!r:.40}, but it must be a whole number, 1 or more; correct its configuration"
            )
    chosen = settings.get("num_experts_per_tok")
    experts = next(
        (count for key in ("num_local_experts", "num_experts", "n_routed_experts") if isinstance(count := settings.get(key), int)), 0
    )
    if isinstance(chosen, int) and chosen > experts > 0:
        raise ModelError(
            f"{name or 'this model'}: num_experts_per_tok is {chosen}, but the model has {counted(experts, 'expert')}; correct its configuration"
        )
    heads, shared = (settings.get(key) for key in ("num_attention_heads", "num_key_value_heads"))
    if isinstance(heads, int) and isinstance(shared, int) and heads % shared:
        raise ModelError(
            f"{name or 'this model'}: num_attention_heads is {heads}, but it must be a multiple of num_key_value_heads, which is {shared}; "
            "correct its configuration"
        )


def refusal(config: PreTrainedConfig) -> str | None:
    """Return why models of this configuration cannot run trees exactly; None if they can, as far as it is known before one is loaded."""
    text = config.get_text_config(decoder=True)
    reason = REFUSED.get(str(config.model_type)) or REFUSED.get(str(text.model_type))
    if reason:
        return reason
    if any(getattr(part, "is_encoder_decoder", False) for part in (config, text)) or getattr(text, "add_cross_attention", False):
        return _BOTH_WAYS
    if getattr(text, "use_bidirectional_attention", None) not in (None, False, "vision"):  # text alone is read in order
        return _BOTH_WAYS
    if getattr(text, "alibi", False):
        return _ROW_BIAS
    others = sorted(set(getattr(text, "layer_types", None) or ()) - _MASKED_LAYERS)
    if others:
        return f"it has layers of type {', '.join(others)}, and only full and sliding attention can follow a tree's mask"
    window = None if text.model_type in VERIFIED else _window(text)
    if window is not None:
        return f"it has sliding windows of {window} positions, and how this family takes masks is unknown, as it is not tested with trees"
    return None


def _window(text: PreTrainedConfig) -> int | None:
    """Return the sliding window in positions; None if no layer has one."""
    kinds = getattr(text, "layer_types", None)
    names = ("sliding_window",) if text.model_type in VERIFIED else _WINDOW_NAMES
    window = next((value for name in names if (value := getattr(text, name, None)) is not None), None)
    if window is None or getattr(text, "use_sliding_window", True) is False:
        return None
    if VERIFIED.get(str(text.model_type)) != "single" and kinds is not None and "sliding_attention" not in kinds:
        return None  # families with a single mask slide in every layer, whatever their layer types say
    return int(window)


def _max_positions(text: PreTrainedConfig) -> tuple[int | None, str]:
    """Return the number of positions the model knows, and why they are fewer than configured.

    If its rope changes as the text grows, those before the first change are counted: keys that are stored already would be wrong after it.
    """
    known = limit = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    for rope in _ropes(text):
        if rope.get("rope_type", "default") not in _PLAIN_ROPES:
            original = rope.get("original_max_position_embeddings") or getattr(text, "original_max_position_embeddings", None) or limit
            limit = min(value for value in (limit, original) if value is not None) if original is not None else limit
    if limit is None or limit == known:
        return None if limit is None else int(limit), ""
    kind = next(kind for rope in _ropes(text) if (kind := rope.get("rope_type", "default")) not in _PLAIN_ROPES)
    told = "" if known is None else f" of the {known} positions in its config.json"
    return int(limit), f" (its rope, {kind!r:.20}, changes beyond the first {limit}{told}, and treeopt decodes up to there)"


def rope_changes(config: PreTrainedConfig) -> bool:
    """Return whether rotary positions are computed in another way when the text is long."""
    return any(rope.get("rope_type", "default") not in _PLAIN_ROPES for rope in _ropes(config.get_text_config(decoder=True)))


def _ropes(text: PreTrainedConfig) -> list[dict[str, Any]]:
    parameters = getattr(text, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return nested or [parameters]
