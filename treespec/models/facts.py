"""The facts that identify a model with weights in records and in the files of resumable runs."""

from typing import Any

import torch
import transformers

from treespec.files.provenance import public_name
from treespec.models.loaded import LoadedModel


def facts_of(name: str, loaded: LoadedModel, family: str, dtype: torch.dtype) -> dict[str, Any]:
    """Return the facts that identify work with a model, as plain JSON."""
    config = loaded.module.config
    plain = loaded.format == "safetensors" and loaded.quantization is None
    stored = {"format": loaded.format, "quantization": loaded.quantization}
    adapter = {} if loaded.adapter is None else {"adapter": loaded.adapter.describe()}
    shard = loaded.shard
    return {
        "name": name,
        "revision": loaded.revision,
        "family": family,
        "weights": loaded.digest,
        "parameters": sum(p.numel() for p in loaded.module.parameters()) if shard is None else shard.parameters,
        "offloaded": loaded.streamed > 0,
        "layers": config.get_text_config(decoder=True).num_hidden_layers,
        "dtype": str(dtype).removeprefix("torch."),
        "attention": config.get_text_config(decoder=True)._attn_implementation,
        "transformers": transformers.__version__,
        **adapter,
        **({} if shard is None else {"tensor_parallel": shard.team.size}),
        **({} if plain else stored),  # so runs of safetensors that were begun before these keys go on
    }


def identity_of(facts: dict[str, Any]) -> dict[str, Any]:
    """Return what tells a model with these facts from others: its weights, or name and size where no file has been read."""
    names = ("weights",) if facts["weights"] is not None else ("revision", "family", "parameters", "layers")
    known = {key: facts[key] for key in (*names, "adapter") if key in facts}
    return known if facts["weights"] is not None else {"name": named(facts), **known}


def named(facts: dict[str, Any]) -> str:
    """Return the name for records in the facts that `Draft.describe` gives."""
    revision = facts.get("revision")
    return public_name(facts["name"]) + (f"@{revision}" if revision else "")
