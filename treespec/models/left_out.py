"""Weights that are in a model's files and not in its module: those that make another model are refused, others are named."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from treespec.errors import ModelError, counted
from treespec.models.contents import Contents

_TABLE = re.compile(r"(^|\.)(inv_freq|original_inv_freq|masked_bias|position_ids|cos_cached|sin_cached|(q|k|v|kv|prob)_scale)$")
"""Names of tables that a module computes itself, and of scales for caches in eight bits, which are not used."""
_MASK = re.compile(r"\.(attn|attention|self_attn)\.bias$")
"""A causal mask, if it has four dimensions."""
_SCALE = re.compile(r"(_scale|_scale_inv|_zero_point|_zeros|g_idx|_amax|_shape|_format)$")
"""Facts beside quantised weights, which a way of computing with them may not need."""


def left_out(module: nn.Module, unexpected: Collection[str], contents: Contents | None, name: str, *, quantised: bool = False) -> str:
    """Return a sentence that names the weights which are left out; the empty string if there are none but tables.

    Raises ModelError if one belongs to a part that is in the module, or to a layer beyond those that the configuration asks for: then the
    files are of another model.
    """
    base = str(getattr(module, "base_model_prefix", ""))
    if base:  # files that were saved without the head
        inner = _submodule(module, [base])
        unexpected = [f"{base}.{key}" if inner is not None and key.split(".")[0] in inner._modules else key for key in unexpected]
    rest = sorted(key for key in unexpected if not _is_table(module, key, contents) and not (quantised and _SCALE.search(key)))
    for key in rest:
        beyond = _beyond(module, key)
        if beyond is not None:
            layers, index, length = beyond
            raise ModelError(
                f"{name}: its files hold {key}, but config.json asks for {length} layers of {layers}, 0 to {length - 1}: without layer {index} "
                "another model would run; correct config.json, or save or download the model again"
            )
        if _belongs(module, key):
            raise ModelError(
                f"{name}: its files hold {key}, which the {type(module).__name__} of config.json does not have: without it another model "
                f"would run ({len(rest)} left out in all); correct config.json, or use a version of transformers that knows this model"
            )
    if not rest:
        return ""
    heads = sorted({_part(module, key) for key in rest})
    tensors = counted(len(rest), "of the tensors in its files is", "of the tensors in its files are")
    return f"{name}: {tensors} not used: those of {', '.join(heads[:4])}{' ...' if len(heads) > 4 else ''}"


def _is_table(module: nn.Module, key: str, contents: Contents | None) -> bool:
    if _TABLE.search(key) or key in {name for name, _ in module.named_buffers()}:
        return True
    if not _MASK.search(key):
        return False
    tensors = {} if contents is None else contents.weights.tensors or {}
    shapes = [tensor.shape for known, tensor in tensors.items() if key.endswith(known)]
    return all(len(shape) == 4 for shape in shapes)


def _beyond(module: nn.Module, key: str) -> tuple[str, int, int] | None:
    """Return the list, the index and the list's length for a layer that a list of the module does not have; None for other names.

    Layers for multi-token prediction, which follow the last one, are no such layers.
    """
    parts = key.split(".")
    for at, part in enumerate(parts):
        if not part.isdigit():
            continue
        layers = _submodule(module, parts[:at])
        if isinstance(layers, nn.ModuleList) and int(part) >= len(layers):
            if at == _depth(module) and int(part) < len(layers) + _predicting(module):
                return None
            return ".".join(parts[:at]), int(part), len(layers)
    return None


def _predicting(module: nn.Module) -> int:
    """Return the number of layers for multi-token prediction that the configuration names."""
    config: Any = getattr(module, "config", None)
    count = None if config is None else getattr(config.get_text_config(decoder=True), "num_nextn_predict_layers", None)
    return count if isinstance(count, int) else 0


def _depth(module: nn.Module) -> int:
    """Return how many names stand before the number of a decoder layer."""
    lists = [name.split(".") for name, part in module.named_modules() if isinstance(part, nn.ModuleList)]
    return min(map(len, lists), default=0)


def _belongs(module: nn.Module, key: str) -> bool:
    """Return whether a tensor belongs directly to a part of the module, or to anything inside one of its numbered layers.

    Of the module as a whole, a bias does; other tables, such as `d2t`, are of a head beside it.
    """
    parts = key.split(".")
    if len(parts) == 1:
        return key.endswith("bias")
    if _submodule(module, parts[:-1]) is not None:
        return True
    return any(part.isdigit() and _submodule(module, parts[: at + 1]) is not None for at, part in enumerate(parts))


def _submodule(module: nn.Module, parts: list[str]) -> nn.Module | None:
    found: nn.Module | None = module
    for part in parts:
        found = found._modules.get(part) if found is not None else None
    return found


def _part(module: nn.Module, key: str) -> str:
    """Return the beginning of a name up to the first part that the module does not have."""
    parts = key.split(".")
    known = next(at for at in range(len(parts) + 1) if _submodule(module, parts[:at]) is None)
    return ".".join(parts[:known])


def require_loaded(name: str, report: Mapping[str, Any]) -> None:
    """Raise ModelError if, by transformers' report of a load, weights of the module are missing from the files or have other shapes there."""
    others = sorted(report.get("mismatched_keys") or ())
    if others:
        weight, found, asked = others[0]
        raise ModelError(
            f"{name}: {weight} has the shape {list(found)}, but config.json asks for {list(asked)} "
            f"({counted(len(others), 'weight differs', 'weights differ')}); "
            "correct config.json, or save or download the model again"
        )
    missing = sorted(report.get("missing_keys") or ())
    if missing:
        raise ModelError(
            f"{name}: {counted(len(missing), 'weight is', 'weights are')} missing from its files ({', '.join(missing[:3])} ...); "
            "save or download the model again"
        )
