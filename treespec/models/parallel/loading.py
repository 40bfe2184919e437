"""Loading the part of a model that a process holds: of each weight, its own slice is read and nothing else."""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel

from treespec.errors import ModelError
from treespec.models import weights
from treespec.models.adapters import note_beside
from treespec.models.generation import generation_settings
from treespec.models.left_out import left_out, require_loaded
from treespec.models.loaded import LoadedModel, return_objects
from treespec.models.locating import Place, explained
from treespec.models.parallel.shard import (
    HEAD,
    Part,
    Shard,
    config_of_part,
    is_sliced,
    join_outputs,
    part_of,
    require_divisible,
    rows_of_head,
)
from treespec.models.parallel.team import Team
from treespec.models.quantised import quantisation
from treespec.models.quiet import bars_for_people

if TYPE_CHECKING:
    from treespec.models.loading import ModelFiles

Loaded = tuple[PreTrainedModel, dict[str, Any], Shard]
"""A module, the report of its load in the form of transformers, and what part it is."""


def load_part(
    files: "ModelFiles", loader: Any, dtype: torch.dtype, where: torch.device, team: Team, options: Mapping[str, Any]
) -> LoadedModel:
    """Load this process's part of a model, by slices or by transformers' plan. `loader` and its `options` are those for a whole one.

    Raises ModelError for what cannot be divided, and SettingsError where the processes have other files.
    """
    name, revision, place, config = files.name, files.revision, files.place, files.config
    if files.adapter is not None or quantisation(config) is not None:
        what = "an adapter is merged into whole weights" if files.adapter is not None else "quantised weights cannot be cut"
        raise ModelError(f"{name} cannot be divided by `tensor_parallel`: {what}; use plain weights, in which nothing is to be merged")
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    sliced = kind is not None and is_sliced(kind)
    if not sliced:
        require_plan(config, name)
    require_divisible(config, team.size, name, sliced=sliced)
    with bars_for_people(), explained(name, place, revision, "its weights or config.json"):
        found = safetensors_of(name, place, revision)
        digest = weights.digest(found[0].parent)
        team.require_same({f"the weights of {name}": digest, "the number type": str(dtype)})
        if sliced:
            generation = generation_settings(name, place, revision, config)
            module, report, shard = load_slices(found, config, generation, dtype, where, team)
        else:
            kept = {key: value for key, value in options.items() if key != "device_map"}
            kept |= {"dtype": dtype, "use_safetensors": True, "ignore_mismatched_sizes": True, "local_files_only": True}
            module, report, shard = load_planned(loader, str(found[0].parent), int(config.vocab_size), team, kept)
    module.config.name_or_path, module.config._commit_hash = config.name_or_path, getattr(config, "_commit_hash", None)
    return_objects(module)
    require_loaded(name, report)
    noted = left_out(module, report.get("unexpected_keys") or (), files.contents, name), note_beside(name, files.contents)
    known = replace(LoadedModel.of(nn.Module.eval(module)), digest=digest if place.local else None, shard=shard)
    return replace(known, notes=tuple(filter(None, noted)))


def safetensors_of(name: str, place: Place, revision: str | None) -> list[Path]:
    """Return a model's files of weights, fetched if need be. Raises ModelError if they are no safetensors, of which slices can be read."""
    if place.gguf is not None:
        _refuse(name, "a GGUF file")
    path = place.path if place.local else snapshot_download(place.path, revision=revision, allow_patterns=["*.json", "*.safetensors"])
    files = weights.files_of(name, Path(path))
    if not files or any(file.suffix != ".safetensors" for file in files):
        _refuse(name, "a pickle of PyTorch" if files else "no file of weights")
    return files


def _refuse(name: str, what: str) -> None:
    raise ModelError(
        f"{name} has {what}, but with `tensor_parallel` each process reads its slices of safetensors; save the model with save_pretrained"
    )


def load_slices(
    files: list[Path],
    config: PreTrainedConfig,
    generation: Mapping[str, Any],
    dtype: torch.dtype,
    where: torch.device,
    team: Team,
) -> Loaded:
    """Load this process's part of a Llama-like model as a module of transformers with fewer heads, whose layers join what all have computed.

    The embedding and the norms are whole in every process. So many processes must divide it (`require_divisible`). Raises whatever safetensors
    raises.
    """
    vocabulary = int(config.vocab_size)
    module = empty_part(config, team.size, dtype)
    report: dict[str, Any] = {"missing_keys": [], "mismatched_keys": []}
    parameters = 0
    with ExitStack() as opened:
        held = {key: file for file in (opened.enter_context(safe_open(path, framework="pt")) for path in files) for key in file.keys()}  # noqa: SIM118 - no mapping
        unread = set(held)
        for weight, parameter in list(module.named_parameters()):
            if weight == f"{HEAD}.weight" and config.tie_word_embeddings:
                continue
            key = next((key for key in _keys(weight, module.base_model_prefix) if key in held), None)
            if key is None:
                report["missing_keys"].append(weight)
                continue
            unread.discard(key)
            stored = held[key].get_slice(key)
            shape = tuple(stored.get_shape())
            expected = whole_shape(weight, parameter, vocabulary, team.size)
            if shape != expected:
                report["mismatched_keys"].append((weight, shape, expected))
                continue
            parameters += math.prod(shape)
            put(module, weight, own_part(stored, part_of(weight, shape, team.rank, team.size)).to(device=where, dtype=dtype))
    report["unexpected_keys"] = sorted(unread - ({f"{HEAD}.weight"} if config.tie_word_embeddings else set()))
    if not report["missing_keys"] and not report["mismatched_keys"]:
        if config.tie_word_embeddings:
            _tie(module, team)
        module.to(where)
        join_outputs(module, team, vocabulary)
    module.generation_config = GenerationConfig.from_dict(dict(generation))
    return module, report, Shard(team, vocabulary, parameters)


def empty_part(config: PreTrainedConfig, processes: int, dtype: torch.dtype) -> Any:
    """Return the module of one part of a Llama-like model, whose weights have shapes and take no memory until `put` gives them content."""
    with torch.device("meta"):
        auto: Any = AutoModelForCausalLM
        module: Any = auto.from_config(config_of_part(config, processes), dtype=dtype)
        head, rows = module.lm_head, rows_of_head(int(config.vocab_size), processes)
        module.lm_head = nn.Linear(head.in_features, rows, bias=head.bias is not None, dtype=dtype)
    module.model.rotary_emb = type(module.model.rotary_emb)(module.config)  # its tables are computed, and no file holds them
    return module


def _keys(weight: str, base: str) -> Iterator[str]:
    """Yield the names that a weight may have in the files: files that were saved without the head have no name of the model in front."""
    yield weight
    yield weight.removeprefix(f"{base}.")


def whole_shape(weight: str, parameter: Tensor, vocabulary: int, processes: int) -> tuple[int, ...]:
    """Return the shape of the whole weight of which a parameter is a part."""
    shape = tuple(parameter.shape)
    if weight.startswith(f"{HEAD}."):
        return (vocabulary, *shape[1:])
    part = part_of(weight, tuple(size * processes for size in shape), 0, processes)
    if part is None or part.stop == part.start:
        return shape
    return tuple(size * processes if dim == part.dim else size for dim, size in enumerate(shape))


def own_part(stored: Any, part: Part | None) -> Tensor:
    """Return a weight, or the part of it that is this process's, from a slice of safetensors or from a tensor."""
    if part is None:
        found: Tensor = stored[:]
        return found
    found = stored[part.start : part.stop] if part.dim == 0 else stored[:, part.start : part.stop]
    return _filled(found, part.dim, part.size)


def _filled(found: Tensor, dim: int, size: int) -> Tensor:
    """Return a tensor with zeros behind its last indices of a dimension, up to `size`."""
    if found.shape[dim] == size:
        return found.contiguous()
    filled = found.new_zeros(*found.shape[:dim], size, *found.shape[dim + 1 :])
    filled.narrow(dim, 0, found.shape[dim]).copy_(found)
    return filled


def put(module: nn.Module, weight: str, value: Tensor) -> None:
    """Make a tensor the weight of this name."""
    layer, _, kind = weight.rpartition(".")
    setattr(module.get_submodule(layer), kind, nn.Parameter(value, requires_grad=False))


def _tie(module: Any, team: Team) -> None:
    """Give the head this process's rows of the embedding: the very memory where they need no zeros behind them."""
    embedding: Tensor = module.model.embed_tokens.weight.detach()
    part = part_of(f"{HEAD}.weight", tuple(embedding.shape), team.rank, team.size)
    assert part is not None
    put(module, f"{HEAD}.weight", _filled(embedding[part.start : part.stop], 0, part.size))


def load_planned(loader: Any, path: str, vocabulary: int, team: Team, options: Mapping[str, Any]) -> Loaded:
    """Load a model of another family, which transformers divides by its own plan as it reads it. `options` are those of `from_pretrained`."""
    module, report = loader.from_pretrained(path, output_loading_info=True, **_division(team.size), **options)
    return module, report, Shard(team, vocabulary, sum(parameter.numel() for parameter in module.parameters()), planned=True)


def _division(processes: int) -> dict[str, Any]:
    """Return the argument of `from_pretrained` that divides a model, which newer versions of transformers have under another name."""
    try:
        from transformers.distributed.configuration_utils import DistributedConfig

        return {"distributed_config": DistributedConfig(tp_size=processes)}
    except (ImportError, TypeError):
        return {"tp_plan": "auto"}


def require_plan(config: PreTrainedConfig, name: str) -> None:
    """Raise ModelError for a family that transformers has no plan for."""
    text = config.get_text_config(decoder=True)
    if text is not config or not getattr(config, "base_model_tp_plan", None):
        inside = "" if text is config else f", around a {text.model_type}"
        raise ModelError(
            f"{name} (family {config.model_type}{inside}) has no plan in transformers by which `tensor_parallel` could divide it; use a model of another "
            "family, such as llama, mistral, qwen2 or qwen3, or run it on one GPU, with `offload` if it is too large"
        )
