"""Loading a model, a tokenizer or a reader of pictures from a local folder, a GGUF file or a hub id."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import HfApi, snapshot_download
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
from treespec.errors import ModelError
from treespec.models import devices, families, gguf_models, tokenizer_files, weights
from treespec.models.adapters import NOWHERE, Adapter, note_beside, refuse_lone, without_adapter
from treespec.models.contents import Contents, contents_of
from treespec.models.headers import Weights
from treespec.models.left_out import left_out, require_loaded
from treespec.models.loaded import LoadedModel, return_objects
from treespec.models.locating import NO_CONFIG, Place, explained, locate, optional_file, weights_digest
from treespec.models.offload import require_gpu
from treespec.models.offload.streaming import offload as stream_layers
from treespec.models.offload.streaming import require_host
from treespec.models.parallel.loading import load_part
from treespec.models.parallel.team import Team
from treespec.models.quantised import quantisation, refuse_quantised, require_packages
from treespec.models.quiet import bars_for_people, native_output_as_text
from treespec.models.recognised import refuse_heads
from treespec.models.sizes import require_built, require_counts
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
    place = locate(name, revision)
    if place.local and not any((Path(place.path) / file).is_file() for file in ("preprocessor_config.json", "processor_config.json")):
        raise ModelError(
            f"{name} has no preprocessor_config.json, by which its pictures are read; copy it from the model that it was made of"
        )
    loader: Any = AutoImageProcessor
    with bars_for_people(), explained(name, place, revision, "preprocessor_config.json"):
        processor = loader.from_pretrained(
            place.path, revision=revision, backend="pil", trust_remote_code=False, local_files_only=place.local
        )
        older = optional_file(place, "chat_template.json", revision)
        template = None if older is None else json.loads(older.read_text(encoding="utf-8"))["chat_template"]
    tokenizer: Any = load_tokenizer(name, revision)
    if getattr(tokenizer, "chat_template", None) is None:  # processors kept it in a file of their own before tokenizers did
        tokenizer.chat_template = template
    reader = PictureReader(tokenizer, processor, shape)
    reader.processed(Image.new("RGB", (shape.pixels, shape.pixels)))  # settings that will not do are found out now
    return reader


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model that can be loaded, as far as that is known before a weight is read. `require_model` makes it."""

    name: str
    revision: str | None
    place: Place
    contents: Contents | None
    config: PreTrainedConfig
    adapter: Adapter | None
    """The adapter that is to be merged into the weights."""

    def fetched(self) -> "ModelFiles":
        """Return the same after the weights of a model on the hub were fetched, and their headers looked at. Raises ModelError."""
        if self.place.local:
            return self
        contents = _contents(self.name, self.place, self.revision, fetch=True)
        return replace(self, contents=contents, config=_required(self.name, self.place, self.revision, contents))


def require_model(name: str, revision: str | None = None, *, adapter: str | None = None) -> ModelFiles:
    """Return a model's files. Raises ModelError if they, the configuration or the adapter rule it out; no weight is read."""
    place = locate(name, revision)
    contents = _contents(name, place, revision)
    config = _required(name, place, revision, contents)
    return ModelFiles(name, revision, place, contents, config, _adapted(name, config, adapter))


def _adapted(name: str, config: PreTrainedConfig, adapter: str | None) -> Adapter | None:
    """Return an adapter that can be merged into a model of this configuration, None for none. Raises ModelError."""
    if adapter is None:
        return None
    quantised = quantisation(config)
    if quantised is not None:
        refuse_quantised(name, quantised, "`adapter` is merged into plain weights only; use the plain weights of the same model")
    return Adapter.of(adapter)


def _required(name: str, place: Place, revision: str | None, contents: Contents | None) -> PreTrainedConfig:
    """Return a model's configuration after all checks that its contents allow. Raises ModelError."""
    config = _config(name, place, revision, contents)
    families.check(config, name)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in MODEL_FOR_MULTIMODAL_LM_MAPPING:
        raise ModelError(f"{name} (model_type {config.model_type}) is no causal language model and has none inside; use another model")
    if contents is not None:
        if place.local and (shapes := _require_weights(name, revision, Path(place.path), config)):
            contents = replace(contents, weights=Weights.of(shapes))
            require_counts(contents.config, contents.weights, name)
        require_packages(config, contents, name)
        with explained(name, place, revision, "config.json"):
            require_built(_loader(config), config, contents.weights, name)
    return config


def load_model(
    model: str | ModelFiles,
    *,
    device: str = "cpu",
    dtype: str = "auto",
    revision: str | None = None,
    offload: bool = False,
    adapter: str | None = None,
    team: Team | None = None,
) -> LoadedModel:
    """Load a causal or vision-language model in eval mode: a local folder, a GGUF file, a hub id, `embedded-target` or `embedded-draft`.

    `dtype`: "float32", "float16", "bfloat16" or "auto". "auto" is float32 on the CPU; on a GPU it is the checkpoint's own half
    precision, or bfloat16 for a float32 checkpoint, because it has the range of float32. Safetensors are read; where there are none,
    pickles of PyTorch after a check that they hold weights alone, or a GGUF file, which is dequantised. No code from files is run.
    The family is checked before any weight is fetched. With `offload`, the decoder layers stay in host memory (see
    `offload.offload`) and are never all on the GPU at once. An `adapter` is a folder with a LoRA adapter, which is merged into the weights;
    one that lies beside the weights is not, whether peft is installed or not. For ModelFiles, `revision` and `adapter` are theirs.
    With a `team`, only this process's part of the model is loaded, on the team's device. Raises ModelError, SettingsError.
    """
    where = _device(device if team is None else team.device, offload)
    if dtype not in ("auto", *DTYPES):
        raise ModelError(f'dtype is "{dtype}", but it must be auto, {", ".join(DTYPES)}')
    files = require_model(model, revision, adapter=adapter) if isinstance(model, str) else model
    files = files.fetched()  # no weights are fetched before the checks above, and none are read before those of their headers
    name, revision, place, contents, config = files.name, files.revision, files.place, files.contents, files.config
    family, loader, quantised = families.check(config, name), _loader(config), None if place.gguf else quantisation(config)
    if quantised is not None and offload:
        refuse_quantised(name, quantised, "only plain weights are streamed from host memory; drop `offload`, or use the plain weights")
    kwargs: dict[str, Any] = {} if family.attention is None else {"attn_implementation": family.attention}
    if quantised is not None or (where.type == "cuda" and place.gguf is None and not offload):
        kwargs["device_map"] = {"": where}  # straight to the device; packed weights cannot be moved afterwards
    wanted = _dtype(dtype, where, config)
    if team is not None:
        return load_part(files, _loader(config), wanted, where, team, kwargs)
    with bars_for_people(), explained(name, place, revision, "its weights or config.json"):
        if offload:
            require_host(loader, config, wanted, name)
        place = _with_weights(name, place, revision)
        pickled = weights.pickles(name, Path(place.path)) if place.local and place.gguf is None else []
        if place.gguf is not None:
            kwargs |= gguf_models.load_options()
        with without_adapter(place.path) as path:
            loaded: Any = loader.from_pretrained(
                path,
                revision=revision,
                dtype=wanted,
                use_safetensors=not pickled,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
                adapter_kwargs={"subfolder": NOWHERE},
                **kwargs,
                **place.options,
            )
    module, report = loaded
    return_objects(module)
    require_loaded(name, report)
    notes = [left_out(module, report.get("unexpected_keys") or (), contents, name, quantised=quantised is not None)]
    notes.append("" if files.adapter else note_beside(name, contents))
    if quantised is not None:
        quantised = quantised.of_module(module)
        notes.append(quantised.note(name))
    if files.adapter is not None:
        module = files.adapter.merge(module, name)
    try:
        ready: PreTrainedModel = (stream_layers(module, where, name=name) if offload else module if quantised else module.to(where)).eval()
    except RuntimeError as error:
        if not devices.memory_is_full(error):
            raise
        raise ModelError(
            f"{name} does not fit into the memory of {where}; use a smaller `dtype`, another `device`, a smaller model, or on CUDA `offload`"
        ) from error
    _name_cached(ready.config, name, place)
    known = replace(
        LoadedModel.of(ready),
        digest=weights_digest(name),
        format="bin" if pickled else "safetensors",
        quantization=None if quantised is None else str(quantised),
        adapter=files.adapter,
        notes=tuple(filter(None, notes)),
    )
    if place.gguf is None:
        return known
    gguf_models.made_plain(ready)
    stored = gguf_models.quantization(place)
    return replace(known, format="gguf", quantization=stored and f"{stored}, dequantised")


def quantization_of(name: str, revision: str | None = None) -> str | None:
    """Return the type that most weights in a GGUF file have, as in "Q4_1"; None for models that are not quantised. Raises ModelError."""
    return gguf_models.quantization(locate(name, revision))


def load_config(name: str, revision: str | None = None) -> PreTrainedConfig:
    """Load a model's configuration, which needs no weights. Raises ModelError."""
    place = locate(name, revision)
    return _config(name, place, revision, _contents(name, place, revision))


def _contents(name: str, place: Place, revision: str | None, *, fetch: bool = False) -> Contents | None:
    """Return what lies in a model's folder; None for a GGUF file."""
    if place.gguf is not None:
        return None
    with bars_for_people(), explained(name, place, revision, "config.json"):
        return contents_of(name, place, revision, fetch=fetch)


def _loader(config: PreTrainedConfig) -> Any:
    """Return transformers' class for models of this configuration."""
    return AutoModelForCausalLM if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModelForMultimodalLM


def _config(name: str, place: Place, revision: str | None, contents: Contents | None) -> PreTrainedConfig:
    if contents is not None:
        refuse_heads(name, contents)
        refuse_lone(name, contents)
        if "config.json" not in contents.files:
            raise ModelError(f"{name} {NO_CONFIG}")
        require_counts(contents.config, contents.weights, name)
    with bars_for_people(), explained(name, place, revision, "config.json" if place.gguf is None else "its metadata"):
        if place.gguf is not None:
            return gguf_models.config_of(place, name)
        config: PreTrainedConfig = AutoConfig.from_pretrained(place.path, revision=revision, **place.options)
    _name_cached(config, name, place)
    return config


def _name_cached(config: PreTrainedConfig, name: str, place: Place) -> None:
    """Give a configuration from a folder of the hub's cache the name and the commit that it has when it comes from the hub."""
    if place.commit is not None:
        config.name_or_path, config._commit_hash = name, place.commit


def _with_weights(name: str, place: Place, revision: str | None) -> Place:
    """Return the place of the weights: the folder to which they are downloaded, for a hub id that has pickles and no safetensors."""
    if place.local:
        return place
    files = _files(place, revision)
    if weights.SINGLE in files or weights.INDEX in files:
        return place
    weights.require_pickle(name, files)
    folder = Path(snapshot_download(name, revision=revision, allow_patterns=["*.json", "pytorch_model*.bin"]))
    weights.require_safe(weights.pickles(name, folder))
    return Place(str(folder), local=True, commit=folder.name)


def _require_weights(name: str, revision: str | None, folder: Path, config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes in pickles of weights. Raises ModelError if weights are not there, or if pickles hold anything else. No weight is read."""
    named = getattr(config, "transformers_weights", None)
    locate(name, revision, with_weights=named is None)
    if named is not None and not str(named).endswith((".safetensors", ".safetensors.index.json")):
        raise ModelError(f'config.json of {name} names {named!r} as its weights ("transformers_weights"), but that can be safetensors only')
    with explained(name, Place(str(folder), local=True), None, "its weights"):
        weights.require_content(name, folder)
        return weights.require_safe(weights.pickles(name, folder))


def _files(place: Place, revision: str | None) -> list[str]:
    """Return the names of the files in a folder or on the hub."""
    held = (path.name for path in Path(place.path).iterdir()) if place.local else HfApi().list_repo_files(place.path, revision=revision)
    return sorted(held)


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a local folder, a hub id, `embedded-target` or `embedded-draft`. Raises ModelError."""
    tokenizer = tokenizer_or_none(name, revision)
    if tokenizer is None:
        raise ModelError(
            f"{name} holds no tokenizer (tokenizer.json, tokenizer.model ...); copy the files of the model's tokenizer into the folder"
        )
    return tokenizer


def tokenizer_or_none(name: str, revision: str | None = None) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer as `load_tokenizer` does, or return None if the model's files have none. Raises ModelError."""
    place = locate(name, revision)
    with bars_for_people(), explained(name, place, revision, "its tokenizer"), tokenizer_files.read_anew():
        if place.gguf is not None:
            return _tokenizer(place, revision) if gguf_models.header_of(place).has_tokenizer else None
        files = _files(place, revision)
        if not tokenizer_files.has_tokenizer(files, name, Path(place.path) if place.local else None):
            return None
        if place.local:
            tokenizer_files.require_small(Path(place.path), name)
        options: dict[str, Any] = {} if place.commit is None else {"config": _config(name, place, revision, None)}
        if (own := tokenizer_files.vocabulary_file(files)) is not None:
            options["vocab_file"] = cached_file(place.path, own, revision=revision, local_files_only=place.local)
        try:
            tokenizer = _tokenizer(place, revision, **options)
        except ValueError as error:
            if "instantiate the backend tokenizer" in str(error):
                raise tokenizer_files.lacks_vocabulary(name, files) from error
            raise
    tokenizer_files.require_vocabulary(tokenizer, files, name)
    return tokenizer


def _tokenizer(place: Place, revision: str | None, **options: Any) -> PreTrainedTokenizerBase:
    """Load a tokenizer, always of the same class, whether or not mistral-common is installed."""
    with native_output_as_text():
        found = AutoTokenizer.from_pretrained(place.path, revision=revision, mistral_format=False, **place.options, **options)
    return cast(PreTrainedTokenizerBase, found)


def _device(device: str, offload: bool = False) -> torch.device:
    where = devices.find(device)
    if offload:
        require_gpu(where.type)
    return where


def _dtype(dtype: str, where: torch.device, config: PreTrainedConfig) -> torch.dtype:
    if dtype != "auto" or where.type == "cpu":
        return DTYPES.get(dtype, torch.float32)
    own = str(getattr(config, "dtype", None) or getattr(config.get_text_config(decoder=True), "dtype", None)).removeprefix("torch.")
    return DTYPES[own] if own in ("float16", "bfloat16") else devices.half_precision(where)
