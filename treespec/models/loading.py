"""From a local folder or a hub id to a model, a tokenizer or what reads pictures."""

import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from PIL import Image
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file

from treespec.embedded import DRAFT_FOLDER, TARGET_FOLDER
from treespec.errors import ModelError, TreeoptError, reason_of
from treespec.files import user_path
from treespec.models import families, hub
from treespec.models.offload import offload as stream_layers
from treespec.models.offload import require_host
from treespec.models.vision import KINDS, is_vision, picture_shape
from treespec.pictures import PictureReader, PictureShape

EMBEDDED = {"embedded-target": TARGET_FOLDER, "embedded-draft": DRAFT_FOLDER}
"""Names of the pair that comes with treespec."""

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


def folder_of(name: str) -> Path:
    """The folder that a name leads to where it is no hub id; there may be none. Raises ModelError."""
    return EMBEDDED.get(name) or user_path(name, ModelError)


def shape_of(name: str, revision: str | None = None) -> PictureShape | None:
    """What pictures are to a model, from its configuration alone; None for one that reads text only. Raises ModelError."""
    config = load_config(name, revision)
    return picture_shape(config, name) if is_vision(config) else None


def load_picture_reader(name: str, revision: str | None = None) -> PictureReader:
    """What makes pictures pixels for a vision-language model, by its own preprocessor configuration. Raises ModelError."""
    shape = shape_of(name, revision)
    if shape is None:
        raise ModelError(f"{name} reads text only; use a vision-language model for prompts with pictures")
    place = _locate(name)
    loader: Any = AutoImageProcessor
    with _explained(name, place, revision, "preprocessor_config.json"):
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
    """A model's configuration. Raises ModelError where its files or its configuration rule it out: no weight is looked at."""
    config = _config(name, _locate(name, weights=True), revision)
    families.check(config, name)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not is_vision(config):
        raise ModelError(
            f"{name} is a {config.model_type}, which is no causal language model; of models that see pictures, {', '.join(KINDS)} will do"
        )
    return config


def load_model(
    name: str, *, device: str = "cpu", dtype: str = "auto", revision: str | None = None, offload: bool = False
) -> PreTrainedModel:
    """A causal or vision-language model in eval mode from a local folder, a hub id, `embedded-target` or `embedded-draft`.

    `dtype`: "float32", "float16", "bfloat16", or "auto": float32 on the CPU, on a GPU the checkpoint's own half
    precision (of a float32 checkpoint bfloat16, which overflows no later than float32). Only safetensors are read, and
    no code from the repository is run. The family is checked before any weight is fetched. With `offload`, the decoder layers stay
    in host memory (see `offload.offload`) and never are on the GPU all at once. Raises ModelError.
    """
    where = _device(device, offload)
    if where.type == "cuda" and where.index is not None:
        torch.cuda.set_device(where)  # Triton launches on the current device
    if dtype != "auto" and dtype not in DTYPES:
        raise ModelError(f'dtype is "{dtype}", but it must be auto, {", ".join(DTYPES)}')
    _quiet_bars()
    config, place = require_model(name, revision), _locate(name)
    family = families.check(config, name)
    loader: Any = AutoModelForImageTextToText if is_vision(config) else AutoModelForCausalLM
    kwargs: dict[str, Any] = {} if family.attention is None else {"attn_implementation": family.attention}
    wanted = _dtype(dtype, where, config)
    with _explained(name, place, revision, "its weights or config.json"):
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
            f"{name}: {weight} has the shape {list(found)}, but config.json asks for {list(asked)} ({len(others)} weights differ); "
            "correct config.json, or save or download the model again"
        )
    missing = sorted(report.get("missing_keys") or ())
    if missing:
        raise ModelError(
            f"{name}: {len(missing)} weights are missing from its files ({', '.join(missing[:3])} ...); save or download the model again"
        )
    try:
        model: PreTrainedModel = (stream_layers(module, where, name=name) if offload else module.to(where)).eval()
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{name} does not fit into the memory of {where}; use a smaller --dtype, another --device or a smaller model"
        ) from error
    model._treespec_weights = weights_digest(name)  # type: ignore[assignment]
    return model


_PAGES, _PAGE = 256, 4096


def weights_digest(name: str) -> str | None:
    """SHA-256 over a local folder's configuration and over headers and evenly spread pages of its weights; None for a hub id.

    Cheap beside reading the weights, and other after they have been trained on or written anew. Raises ModelError.
    """
    place = _locate(name)
    if not place.local:
        return None
    with _explained(name, place, None, "its weights or config.json"):
        digest = hashlib.sha256((Path(place.path) / "config.json").read_bytes())
        for path in sorted(Path(place.path).glob("*.safetensors")):
            size = path.stat().st_size
            digest.update(f"{path.name} {size}".encode())
            with path.open("rb") as file:
                for start in sorted({*(size * page // _PAGES for page in range(_PAGES)), max(0, size - _PAGE)}):
                    file.seek(start)
                    digest.update(file.read(_PAGE))
    return digest.hexdigest()


def load_config(name: str, revision: str | None = None) -> PreTrainedConfig:
    """A model's configuration, which needs no weights. Raises ModelError."""
    return _config(name, _locate(name), revision)


def _config(name: str, place: "_Place", revision: str | None) -> PreTrainedConfig:
    with _explained(name, place, revision, "config.json"):
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            place.path, revision=revision, trust_remote_code=False, local_files_only=place.offline
        )
    return config


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a local folder, a hub id, `embedded-target` or `embedded-draft`. Raises ModelError."""
    tokenizer = tokenizer_or_none(name, revision)
    if tokenizer is None:
        raise ModelError(
            f"{name} holds no tokenizer ({', '.join(TOKENIZER_FILES[:3])}); copy the files of the model's tokenizer into the folder"
        )
    return tokenizer


def tokenizer_or_none(name: str, revision: str | None = None) -> PreTrainedTokenizerBase | None:
    """The tokenizer; None where the local folder holds none. Raises ModelError."""
    place = _locate(name)
    if place.local and not any((Path(place.path) / file).is_file() for file in TOKENIZER_FILES):
        return None
    with _explained(name, place, revision, "its tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            place.path, revision=revision, trust_remote_code=False, local_files_only=place.offline
        )
    return tokenizer


def _device(device: str, offload: bool = False) -> torch.device:
    try:
        where = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f'device "{device}" is not known; use cpu, cuda or cuda:N') from error
    if where.type == "cuda":
        if not torch.cuda.is_available():
            raise ModelError(f"device {device} was asked for, but this torch ({torch.__version__}) finds no CUDA GPU; use --device cpu")
        if (getattr(where, "index", None) or 0) >= torch.cuda.device_count():
            raise ModelError(f"device {device} was asked for, but there are {torch.cuda.device_count()} GPUs, counted from cuda:0")
    elif where.type != "cpu":
        raise ModelError(f"device {device} is not supported; use cpu, cuda or cuda:N")
    if offload and where.type == "cpu":
        raise ModelError("offloading copies weights from host memory to a GPU, but the device is cpu; drop --offload or pass --device cuda")
    return where


def _dtype(dtype: str, where: torch.device, config: PreTrainedConfig) -> torch.dtype:
    if dtype != "auto":
        return DTYPES[dtype]
    if where.type == "cpu":
        return torch.float32
    own = str(getattr(config, "dtype", None) or getattr(config.get_text_config(decoder=True), "dtype", None)).removeprefix("torch.")
    if own in ("float16", "bfloat16"):
        return DTYPES[own]
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


@dataclass(frozen=True)
class _Place:
    """Where a name leads: a local folder, or a hub id and whether only its cached files can be had."""

    path: str
    local: bool
    offline: bool


def _locate(name: str, weights: bool = False) -> _Place:
    """Find a name's files, or say why it has none before any library is asked."""
    if not name:
        raise ModelError("the name of a model is empty; give a folder, a hub id (owner/name), embedded-target or embedded-draft")
    folder = folder_of(name)
    if folder.is_dir():
        _require_files(name, folder, weights)
        return _Place(str(folder), local=True, offline=True)
    if name in EMBEDDED:
        raise ModelError(f"{name} is not in this installation; train it with: python -m treespec.embedded.train --out {folder.parent}")
    if folder.exists():
        raise ModelError(f"{name} is a file; give the folder that holds config.json and the .safetensors weights")
    if not hub.is_repository_id(name):
        raise ModelError(f"there is no folder {name}, and it is no hub id (owner/name) either; check the path")
    return _Place(name, local=False, offline=not hub.is_reachable())


def _require_files(name: str, folder: Path, weights: bool) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(f"folder {name} holds no config.json; give a folder written by save_pretrained")
    if weights and not any(folder.glob("*.safetensors")):
        others = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        found = f" (only {others[0]}, a pickle, which could run code and is never read)" if others else ""
        raise ModelError(f"folder {name} holds no .safetensors weights{found}; save the model with save_pretrained")


@contextmanager
def _explained(name: str, place: _Place, revision: str | None, part: str) -> Iterator[None]:
    """Turn whatever the libraries raise for a `part` of a model into one sentence for people."""
    try:
        yield
    except (TreeoptError, MemoryError):
        raise
    except Exception as error:  # for damaged files: errors of their own, assertions, divisions by zero, bare Exceptions
        causes = list(_chain(error))
        if any(isinstance(cause, GatedRepoError) for cause in causes):
            message = f"{name} is gated on the hub: accept its terms there and log in (hf auth login), or give a local folder"
        elif any(isinstance(cause, RevisionNotFoundError) for cause in causes):
            message = f"{name} has no revision {revision} on the hub; check --revision"
        elif any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
            message = f"{name} is neither a local folder nor a model on the hub (or it is private: hf auth login); check the name"
        elif not place.local and place.offline:
            message = f"the hub ({hub.endpoint()}) cannot be reached and {name} is not in the local cache; give a local folder instead"
        elif "trust_remote_code" in str(error):
            message = f"{name} needs code from its own repository, which is never run; use a family that transformers knows"
        else:
            message = f"{name} cannot be loaded: {part}: {reason_of(error)}; correct that, or save or download the model again"
        raise ModelError(message) from error


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _quiet_bars() -> None:
    """No progress bars where nobody watches: they belong on a terminal."""
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
