"""Quantised checkpoints: their method and precision, and whether the packages that compute with them are here."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, AutoHfQuantizer

from treespec.errors import ModelError, reason_of
from treespec.models.contents import Contents
from treespec.models.installed import is_installed

_PACKAGES: Mapping[str, Mapping[str, str]] = {
    "aqlm": {"aqlm": "aqlm"},
    "auto-round": {"auto_round": "auto-round"},
    "awq": {"gptqmodel": "gptqmodel"},
    "bitsandbytes": {"bitsandbytes": "bitsandbytes"},
    "compressed-tensors": {"compressed_tensors": "compressed-tensors"},
    "eetq": {"kernels": "kernels"},
    "fp_quant": {"fp_quant": "fp_quant"},
    "gptq": {"optimum": "optimum", "gptqmodel": "gptqmodel"},
    "higgs": {"flute": "flute-kernel", "fast_hadamard_transform": "fast_hadamard_transform"},
    "hqq": {"hqq": "hqq"},
    "quanto": {"optimum.quanto": "optimum-quanto"},
    "quark": {"quark": "amd-quark"},
    "sinq": {"sinq": "sinq"},
    "spqr": {"spqr_quant": "spqr_quant[gpu]"},
    "torchao": {"torchao": "torchao"},
    "vptq": {"vptq": "vptq"},
}
"""For each quant_method, the modules that it needs, with the packages that hold them. Other methods need none that treeopt lacks."""

_PLAIN = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_PACKED = re.compile(
    r"\.(qweight|qzeros|weight_packed|weight_scale|weight_scale_inv|weight_quant_state|absmax|SCB|codebooks|W_q|weight\.quant_map)$"
)
"""Names of tensors that only quantised weights have."""
_BITS = re.compile(r"(?:u?int|float|fp|nf|w)_?(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Quantised:
    """The way in which a checkpoint is quantised."""

    method: str
    """Its quant_method."""
    weights: str
    """The type of its weights: int4, int8, fp8 ..."""
    turned_into: str | None = None
    """The type that they were turned into on loading; None if the module computes with them as they are."""

    def __str__(self) -> str:
        """Return the method, the type unless the method is named after it, and what was done to it."""
        return ", ".join(dict.fromkeys((self.method, self.weights))) + (f", turned into {self.turned_into}" if self.turned_into else "")

    def of_module(self, module: nn.Module) -> "Quantised":
        """Return the same for a loaded module, in which the weights may be plain ones now."""
        held = [*module.parameters(), *module.buffers()]
        plain = all(tensor.dtype in _PLAIN and type(tensor.data) is Tensor for tensor in held)
        dtypes = {tensor.dtype for tensor in module.parameters()}
        return replace(self, turned_into=str(max(dtypes, key=str)).removeprefix("torch.")) if plain and len(dtypes) == 1 else self

    def note(self, name: str) -> str:
        """Return a sentence for people."""
        return f"{name} is quantised ({self})"


def quantisation(config: PreTrainedConfig) -> Quantised | None:
    """Return how a checkpoint of this configuration is quantised; None for plain weights.

    >>> str(quantisation(PreTrainedConfig(quantization_config={"quant_method": "awq", "bits": 4})))
    'awq, int4'
    """
    settings = _settings(config)
    if settings is None:
        return None
    method = str(_method(settings))
    return Quantised(method, _precision(method, settings))


def require_packages(config: PreTrainedConfig, contents: Contents, name: str) -> None:
    """Raise ModelError, with the reason, for a quantised checkpoint that cannot be run here."""
    settings = _settings(config)
    if settings is None:
        _require_plain(contents, name)
        return
    method = _method(settings)
    kind = f"{method}_{'8' if settings.get('load_in_8bit') else '4'}bit" if method == "bitsandbytes" else method
    if method is None or kind not in AUTO_QUANTIZER_MAPPING:
        told = "names no quant_method" if method is None else f"has the quant_method {method!r:.60}"
        if method is None and "bits" in settings:
            told += " (as those of MLX)"
        raise ModelError(
            f"{name}: its weights are quantised, and its quantization_config {told}, which transformers does not know; use the plain weights, "
            "or a checkpoint of awq, gptq, bitsandbytes, compressed-tensors, fp8, mxfp4, quanto, hqq or torchao"
        )
    what = Quantised(method, _precision(method, settings)).note(name)
    lost = [package for module, package in _PACKAGES.get(str(method), {}).items() if not is_installed(module, package)]
    if lost:
        raise ModelError(f"{what}, which needs {' and '.join(lost)}: pip install {' '.join(lost)}; or use the plain weights")
    try:
        quantiser = AutoHfQuantizer.from_config(dict(settings), pre_quantized=True)
        quantiser.validate_environment(device_map={"": torch.cuda.current_device()} if torch.cuda.is_available() else None)
    except Exception as error:  # ImportError, RuntimeError, ValueError, and what wrong settings raise
        raise ModelError(f"{what} and cannot run here: {reason_of(error)}; use the plain weights, or another checkpoint") from error


def refuse_quantised(name: str, quantised: Quantised, why: str) -> NoReturn:
    """Raise ModelError for what only plain weights can do."""
    raise ModelError(f"{name} is quantised ({quantised}), and {why}")


def _settings(config: PreTrainedConfig) -> dict[str, Any] | None:
    """Return the quantization_config; None if there is none."""
    for part in (config, config.get_text_config(decoder=True)):
        for key in ("quantization_config", "compression_config", "quantization"):
            found = getattr(part, key, None)
            if found is not None:
                found = found if isinstance(found, dict) else found.to_dict()
                return {"quant_method": "compressed-tensors", **found} if key == "compression_config" else found
    return None


def _method(settings: Mapping[str, Any]) -> str | None:
    if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
        return "bitsandbytes"
    method = settings.get("quant_method")
    return None if method is None else str(getattr(method, "value", method))


def _precision(method: str, settings: Mapping[str, Any]) -> str:
    """Return the type of quantised weights in one word, and its kind if it is no plain integer."""
    if method == "bitsandbytes":
        kind = str(settings.get("bnb_4bit_quant_type", "fp4"))
        return "int8" if settings.get("load_in_8bit") else f"int4 ({kind})"
    if method == "compressed-tensors":
        groups = settings.get("config_groups")
        weights = [group.get("weights") for group in groups.values() if isinstance(group, dict)] if isinstance(groups, dict) else []
        found = sorted({f"{_word(each.get('type'))}{each.get('num_bits')}" for each in weights if isinstance(each, dict)})
        return ", ".join(found) or str(settings.get("format", "of unknown precision"))
    if "fp8" in method:
        return "fp8"
    if method in ("mxfp4", "nvfp4"):
        return f"fp4 ({method})"
    if method == "bitnet":
        return "ternary"
    bits = next((settings[key] for key in ("bits", "nbits", "w_bit", "weight_bits") if isinstance(settings.get(key), int)), None)
    if bits is not None:
        return f"int{bits}"
    told = str(settings.get("weights") or settings.get("quant_type") or settings.get("quant_config") or settings.get("weight_dtype") or "")
    number = re.search(r"nbits\D+(\d+)", told) or _BITS.search(told)
    if number is None:
        return "of unknown precision"
    return f"{'fp' if re.search('float|fp', told, re.IGNORECASE) and 'int' not in told.lower() else 'int'}{number.group(1)}"


def _word(kind: Any) -> str:
    return "fp" if kind == "float" else "int"


def _require_plain(contents: Contents, name: str) -> None:
    """Raise ModelError if weights without a quantization_config are quantised all the same."""
    tensors = contents.weights.tensors or {}
    whole = {key for key, tensor in tensors.items() if key.endswith(".weight") and tensor.dtype[0] in "IU"}  # plain weights have fractions
    packed = sorted(whole.union(key for key in contents.weights.names if _PACKED.search(key)))
    file = next((file for file in ("hf_quant_config.json", "quantize_config.json", "quant_config.json") if file in contents.files), None)
    if packed:
        where = f"; {file} describes them for another program" if file else ""
        raise ModelError(
            f"{name}: its weights are quantised ({packed[0]}), but config.json has no quantization_config{where}; "
            "use the plain weights, or a checkpoint that was saved for transformers"
        )
