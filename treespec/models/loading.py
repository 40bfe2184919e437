"""Loading a model, a tokenizer or a reader of pictures from a local folder or a hub id."""

import json
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file

from treespec.data.pictures import PictureReader, PictureShape
from treespec.errors import ModelError, counted
from treespec.models import devices, families
from treespec.models.loaded import LoadedModel
from treespec.models.locating import TOKENIZER_FILES, Place, explained, locate, weights_digest
from treespec.models.offload import require_gpu
from treespec.models.offload.streaming import offload as stream_layers
from treespec.models.offload.streaming import require_host
from treespec.models.quiet import without_bars
from treespec.models.vision import TEXT_ONLY, is_vision, picture_shape

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def shape_of(name: str, revision: str | None = None) -> PictureShape | None:
    """Return the shape of a model's pictures, from its configuration alone; None if it reads text only. Raises ModelError."""
    config = load_config(name, revision)
    return picture_shape(config, name) if is_vision(config) else None


def load_picture_reader(name: str, revision: str | None = None) -> PictureReader:
    """Load the reader that turns pictures into pixels for a model, by its own preprocessor configuration. Raises ModelError."""
    shape = shape_of(name, revision)
    if shape is None:
        raise ModelError(f"{name} {TEXT_ONLY}")
    place = locate(name)
    loader: Any = AutoImageProcessor
    with _bars(), explained(name, place, revision, "preprocessor_config.json"):
        processor = loader.from_pretrained(
            place.path, revision=revision, backend="pil", trust_remote_code=False, local_files_only=place.offline
        )
        older = cached_file(
            place.path,
            "chat_template.json",
            revision=revision,
            local_files_only=place.offline,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        template = None if older is None else json.loads(Path(older).read_text(encoding="utf-8"))["chat_template"]
    tokenizer: Any = load_tokenizer(name, revision)
    if getattr(tokenizer, "chat_template", None) is None:  # processors kept it in a file of their own before tokenizers did
        tokenizer.chat_template = template
    reader = PictureReader(tokenizer, processor, shape)
    reader.processed(Image.new("RGB", (shape.pixels, shape.pixels)))  # settings that will not do are found out now
    return reader


def require_model(name: str, revision: str | None = None) -> PreTrainedConfig:
    """Return a model's configuration. Raises ModelError if its files or its configuration rule it out; no weight is read."""
    config = _config(name, locate(name, weights=True), revision)
    families.check(config, name)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in MODEL_FOR_MULTIMODAL_LM_MAPPING:
        raise ModelError(f"{name} is a {config.model_type}, which is no causal language model and has none inside; use another model")
    return config


def load_model(name: str, *, device: str = "cpu", dtype: str = "auto", revision: str | None = None, offload: bool = False) -> LoadedModel:
    """Load a causal or vision-language model in eval mode from a local folder, a hub id, `embedded-target` or `embedded-draft`.

    `dtype`: "float32", "float16", "bfloat16" or "auto". "auto" is float32 on the CPU; on a GPU it is the checkpoint's own half
    precision, or bfloat16 for a float32 checkpoint, because it has the range of float32. Only safetensors are read, and no code
    from the repository is run. The family is checked before any weight is fetched. With `offload`, the decoder layers stay in host
    memory (see `offload.offload`) and are never all on the GPU at once. Raises ModelError, SettingsError.
    """
    where = _device(device, offload)
    if dtype != "auto" and dtype not in DTYPES:
        raise ModelError(f'dtype is "{dtype}", but it must be auto, {", ".join(DTYPES)}')
    config, place = require_model(name, revision), locate(name)
    family = families.check(config, name)
    loader: Any = AutoModelForCausalLM if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModelForMultimodalLM
    kwargs: dict[str, Any] = {} if family.attention is None else {"attn_implementation": family.attention}
    wanted = _dtype(dtype, where, config)
    with _bars(), explained(name, place, revision, "its weights or config.json"):
        if offload:
            require_host(loader, config, wanted, name)
        loaded: Any = loader.from_pretrained(
            place.path,
            revision=revision,
            dtype=wanted,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=place.offline,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            **kwargs,
        )
    module, report = loaded
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
    try:
        model: PreTrainedModel = (stream_layers(module, where, name=name) if offload else module.to(where)).eval()
    except RuntimeError as error:
        if not devices.memory_is_full(error):
            raise
        raise ModelError(
            f"{name} does not fit into the memory of {where}; use a smaller `dtype`, another `device`, a smaller model, or on CUDA `offload`"
        ) from error
    return replace(LoadedModel.of(model), digest=weights_digest(name))


def load_config(name: str, revision: str | None = None) -> PreTrainedConfig:
    """Load a model's configuration, which needs no weights. Raises ModelError."""
    return _config(name, locate(name), revision)


def _config(name: str, place: "Place", revision: str | None) -> PreTrainedConfig:
    with _bars(), explained(name, place, revision, "config.json"):
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            place.path, revision=revision, trust_remote_code=False, local_files_only=place.offline
        )
    return config


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a local folder, a hub id, `embedded-target` or `embedded-draft`. Raises ModelError."""
    tokenizer = tokenizer_or_none(name, revision)
    if tokenizer is None:
        raise ModelError(
            f"{name} holds no tokenizer ({', '.join(TOKENIZER_FILES[:3])}); copy the files of the model's tokenizer into the folder"
        )
    return tokenizer


def tokenizer_or_none(name: str, revision: str | None = None) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer as `load_tokenizer` does, or return None if the local folder holds none. Raises ModelError."""
    place = locate(name)
    if place.local and not any((Path(place.path) / file).is_file() for file in TOKENIZER_FILES):
        return None
    with _bars(), explained(name, place, revision, "its tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            place.path, revision=revision, trust_remote_code=False, local_files_only=place.offline
        )
    return tokenizer


def _device(device: str, offload: bool = False) -> torch.device:
    where = devices.find(device)
    if offload:
        require_gpu(where.type)
    return where


def _dtype(dtype: str, where: torch.device, config: PreTrainedConfig) -> torch.dtype:
    if dtype != "auto":
        return DTYPES[dtype]
    if where.type == "cpu":
        return torch.float32
    own = str(getattr(config, "dtype", None) or getattr(config.get_text_config(decoder=True), "dtype", None)).removeprefix("torch.")
    if own in ("float16", "bfloat16"):
        return DTYPES[own]
    return devices.half_precision(where)


def _bars() -> AbstractContextManager[None]:
    """Return a context without progress bars unless stderr is a terminal."""
    return nullcontext() if sys.stderr.isatty() else without_bars()
