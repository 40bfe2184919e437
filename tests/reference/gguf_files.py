"""Tiny GGUF files, written as llama.cpp's converter writes them for Llama."""

from pathlib import Path

import gguf
import numpy as np
from transformers import PreTrainedModel

TEMPLATE = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
TENSORS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def tokens_of(count: int) -> list[str]:
    """Single characters, and names of tokens that no text has."""
    letters = [chr(code) for code in (*range(97, 123), *range(33, 97), 123, 124, 125, 126)]
    return ["<unk>", "<s>", "</s>", "ab", "zz", *letters][:count]


def write_gguf(path: Path, module: PreTrainedModel, kind: str = "F32", tokenizer: bool = True, parts: int = 1, **claims: int) -> Path:
    """Write a Llama; `kind` is the type of its matrices. `claims` overrule sizes that the metadata states."""
    config = module.config
    writer = gguf.GGUFWriter(path, "llama")
    sizes = {
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "context_length": config.max_position_embeddings,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "vocab_size": config.vocab_size,
        **claims,
    }
    writer.add_string("general.name", "tiny")
    writer.add_uint16("split.count", parts)
    for name, value in sizes.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if tokenizer:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(tokens_of(config.vocab_size))
        writer.add_token_types([3, 3, 3] + [1] * (config.vocab_size - 3))
        writer.add_token_merges(["a b", "z z"])  # one alone is no list to some versions of transformers
        for name, token in (("unk", 0), ("bos", 1), ("eos", 2)):
            getattr(writer, f"add_{name}_token_id")(token)
        writer.add_chat_template(TEMPLATE)
    for name, weight in module.state_dict().items():
        values = weight.float().numpy()
        if ".q_proj." in name or ".k_proj." in name:
            heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
            values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        stored = gguf.GGMLQuantizationType[kind if values.ndim == 2 else "F32"]
        data = gguf.quants.quantize(np.ascontiguousarray(values), stored)
        writer.add_tensor(_named(name), data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _named(name: str) -> str:
    part, _, kind = name.rpartition(".")
    if part in TENSORS:
        return f"{TENSORS[part]}.{kind}"
    layer, _, part = part.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{TENSORS[part]}.{kind}"
