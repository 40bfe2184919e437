"""Models in GGUF files: their configuration, how transformers loads them, and what is left of that when their weights are dequantised."""

import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from treespec.errors import ModelError
from treespec.files.gguf import GgufHeader, read_header
from treespec.models.locating import Place
from treespec.models.weights import require_real


def header_of(place: Place) -> GgufHeader:
    """Return the header of the place's GGUF file. Raises ModelError."""
    return _header(*_identity(place))


def quantization(place: Place) -> str | None:
    """Return the type that most weights in the place's GGUF file have; None if it has none, or plain weights. Raises ModelError."""
    return None if place.gguf is None else header_of(place).quantization


def config_of(place: Place, name: str) -> PreTrainedConfig:
    """Return the configuration that a GGUF file gives. Raises ModelError, and whatever transformers raises."""
    header = header_of(place)
    try:
        return copy.deepcopy(_config(*_identity(place)))  # transformers changes what it is given
    except ValueError as error:
        if "is not supported" not in str(error):
            raise
        raise ModelError(
            f"{name} is a GGUF file of the architecture {header.architecture}, which transformers {transformers.__version__} cannot read; "
            "give the folder of the model in safetensors instead"
        ) from error


def load_options() -> dict[str, Any]:
    """Return the options with which transformers dequantises the weights; versions without them always do."""
    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def made_plain(module: PreTrainedModel) -> PreTrainedModel:
    """Return a dequantised module without the marks of its former quantisation, so that it is saved and trained like any other."""
    for owner, mark in ((module.config, "quantization_config"), (module, "hf_quantizer"), (module, "quantization_method")):
        if hasattr(owner, mark):
            delattr(owner, mark)
    return module


def _identity(place: Place) -> tuple[Path, int, int]:
    """Return a GGUF file's path, with the time and the size that change when it is replaced."""
    assert place.gguf is not None
    path = Path(place.path) / place.gguf
    found = path.stat()
    return path, found.st_mtime_ns, found.st_size


@lru_cache(maxsize=4)
def _header(path: Path, changed: int, size: int) -> GgufHeader:
    require_real(path.parent.name, path)
    return read_header(path, ModelError)


@lru_cache(maxsize=4)
def _config(path: Path, changed: int, size: int) -> PreTrainedConfig:
    config: PreTrainedConfig = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True, trust_remote_code=False)
    return config
