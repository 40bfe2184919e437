"""Adapters (LoRA): recognised beside a model or alone, and merged into a model's weights when that is asked for, and only then."""

import hashlib
import importlib
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from treespec.errors import ModelError, reason_of
from treespec.files.provenance import public_name
from treespec.files.reading import parsed_object, read_bytes, user_path
from treespec.models.contents import Contents
from treespec.models.headers import header_of
from treespec.models.installed import is_installed
from treespec.models.weights import require_real, require_safe

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
NOWHERE = "no-adapter-is-read-from-here"
"""A folder that no model on the hub has: transformers looks there for an adapter, and finds none, if it is told this name."""
_MOST_CONFIG_BYTES = 16 << 20
_USED = (
    *("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "bias", "lora_bias", "fan_in_fan_out"),
    *(
        "target_modules",
        "exclude_modules",
        "target_parameters",
        "layers_to_transform",
        "layers_pattern",
        "modules_to_save",
        "ensure_weight_tying",
    ),
)
"""Settings of LoRA that decide what is merged."""
_UNUSED = {
    *("auto_mapping", "base_model_name_or_path", "revision", "peft_type", "peft_version", "task_type", "inference_mode", "runtime_config"),
    *("lora_dropout", "init_lora_weights", "eva_config", "loftq_config", "megatron_core", "qalora_group_size"),
}
"""Settings that decide nothing once an adapter is trained. Any other setting that is on is refused."""
_WHOLE = re.compile(r"^(model|pytorch_model|consolidated)\b.*\.(safetensors|bin|pth|json)$|\.gguf$")
"""Names of files with a whole model's weights."""
_PROMPTS = re.compile(r"PROMPT|PREFIX|P_TUNING|CPT|CARTRIDGE")
"""Adapters that change what is read and not the weights."""
_PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
"""Ways of starting an adapter that leave its base unchanged."""


@contextmanager
def without_adapter(path: str) -> Iterator[str]:
    """Give a place from which transformers loads the same model without the adapter that lies beside it: a folder of links, if need be."""
    folder = Path(path)
    if not (folder / CONFIG).is_file():
        yield path
        return
    with TemporaryDirectory(prefix="treeopt-") as links:
        for file in folder.iterdir():
            if not file.name.startswith("adapter_"):
                (Path(links) / file.name).symlink_to(file.resolve())
        yield links


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter in a folder, that can be merged."""

    name: str
    weights: Path
    settings: Mapping[str, Any]
    digest: str
    """SHA-256 over its settings and its weights."""

    @classmethod
    def of(cls, name: str) -> "Adapter":
        """Read an adapter's settings and headers. Raises ModelError if it is none that can be merged, or if peft is missing."""
        folder = user_path(name, ModelError)
        if not folder.is_dir():
            raise ModelError(
                f"there is no folder {name}, which `adapter` or `draft_adapter` names; give the folder that holds {CONFIG}, downloaded if need be"
            )
        if not (folder / CONFIG).is_file():
            raise ModelError(
                f"folder {name}, which `adapter` or `draft_adapter` names, holds no adapter ({CONFIG}); give the folder that holds one"
            )
        data, settings = _read(name, folder)
        weights = _mergeable(name, folder, settings)
        if not is_installed("peft"):
            raise ModelError(f"merging the adapter {name} needs peft: pip install peft; or give a folder into which it is merged already")
        digest = hashlib.sha256(data)
        with weights.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return cls(name, weights, settings, digest.hexdigest())

    def describe(self) -> dict[str, str]:
        """Return the facts that identify it, as plain JSON."""
        return {"name": public_name(self.name), "sha256": self.digest}

    def merge(self, module: PreTrainedModel, name: str) -> PreTrainedModel:
        """Return the module with this adapter merged into its weights. Raises ModelError if it does not fit, for example another base."""
        import safetensors.torch

        peft: Any = importlib.import_module("peft")
        pickled = self.weights.name == PICKLE  # it was looked through when the adapter was found
        state = torch.load(self.weights, weights_only=True, map_location="cpu") if pickled else safetensors.torch.load_file(self.weights)
        with warnings.catch_warnings():  # peft warns of what concerns training, or itself
            warnings.simplefilter("ignore")
            return self._merged(peft, module, name, state)

    def _merged(self, peft: Any, module: PreTrainedModel, name: str, state: Mapping[str, Tensor]) -> PreTrainedModel:
        try:
            config = peft.LoraConfig(**{key: self.settings[key] for key in _USED if self.settings.get(key) is not None})
            wrapped = peft.get_peft_model(module, config)
            report = peft.set_peft_model_state_dict(wrapped, state)
        except Exception as error:  # peft raises what comes: ValueError, RuntimeError, KeyError, TypeError
            raise ModelError(
                f"the adapter {self.name} does not fit {name}: {reason_of(error)}; give the model that it was made for"
            ) from error
        lost = sorted(key for key in report.missing_keys if "lora_" in key or "modules_to_save" in key)
        odd = sorted(report.unexpected_keys)
        if lost or odd:
            what = f"it lacks {lost[0]}" if lost else f"its {odd[0]} has no place there"
            raise ModelError(f"the adapter {self.name} does not fit {name}: {what}; give the model that it was made for")
        try:
            merged: PreTrainedModel = wrapped.merge_and_unload(safe_merge=True)
        except ValueError as error:  # numbers that are not finite
            raise ModelError(f"the adapter {self.name} cannot be merged into {name}: {reason_of(error)}; use another one") from error
        return merged


def refuse_lone(name: str, contents: Contents) -> None:
    """Raise ModelError, with the base and the way to use it, for an adapter that is given as a model."""
    if CONFIG not in contents.files or (contents.config and _has_weights(contents)):
        return
    base = _read(name, contents.folder)[1].get("base_model_name_or_path")
    told = f"{base!r:.100}" if isinstance(base, str) and base else "a model that it does not name"
    raise ModelError(
        f"{name} is an adapter for {told} and no model by itself; give a folder into which it is merged, or that model and, where the command "
        f"can merge it, {name} as its adapter (`adapter` of the target, `draft_adapter` of the draft)"
    )


def note_beside(name: str, contents: Contents | None) -> str:
    """Return a sentence about an adapter that lies beside a model's whole weights; the empty string if there is none."""
    if contents is None or CONFIG not in contents.files:
        return ""
    return f"{name} holds whole weights and an adapter ({CONFIG}): the weights run as they are; `adapter` merges one, where that is wanted"


def _has_weights(contents: Contents) -> bool:
    """Return whether there are weights besides the adapter's."""
    return bool(contents.weights.names) or any(_WHOLE.search(file) for file in contents.files)


def _read(name: str, folder: Path) -> tuple[bytes, dict[str, Any]]:
    data = read_bytes(folder / CONFIG, limit=_MOST_CONFIG_BYTES, error=ModelError)
    try:
        return data, parsed_object(data)
    except ValueError as error:
        raise ModelError(f"{name}: {CONFIG} is {error}; save or download the adapter again") from error


def _mergeable(name: str, folder: Path, settings: Mapping[str, Any]) -> Path:
    """Return the file of an adapter's weights.

    Raises ModelError for an adapter of another kind than LoRA, for settings that merging does not know, and for ranks beyond its weights.
    """
    elsewhere = "if peft can merge it (merge_and_unload), save the merged model and give that folder"
    kind = settings.get("peft_type")
    if _PROMPTS.search(str(kind)):
        raise ModelError(f"the adapter {name} ({kind!r:.40}) changes what the model reads and not its weights, so that it cannot be merged")
    if kind != "LORA":
        raise ModelError(f"the adapter {name} has the peft_type {kind!r:.40}, and only LORA is merged here; {elsewhere}")
    start = settings.get("init_lora_weights")
    if start not in _PLAIN_STARTS:
        raise ModelError(f"the adapter {name} has init_lora_weights {start!r:.40}, which changes its base as well; {elsewhere}")
    odd = sorted(key for key, value in settings.items() if value and key not in _UNUSED and key not in _USED)
    if odd:
        raise ModelError(f"the adapter {name} has the setting {odd[0]!r:.40}, which is not merged here; {elsewhere}")
    weights = next((path for file in (WEIGHTS, PICKLE) if (path := folder / file).is_file()), None)
    if weights is None:
        raise ModelError(f"the adapter {name} holds neither {WEIGHTS} nor {PICKLE}; save it with save_pretrained")
    require_real(name, weights)
    shapes = require_safe([weights]) if weights.name == PICKLE else {key: tensor.shape for key, tensor in header_of(name, weights).items()}
    most = max((size for shape in shapes.values() for size in shape), default=0)
    pattern = settings.get("rank_pattern") or {}
    ranks = [settings.get("r"), *(pattern.values() if isinstance(pattern, dict) else [pattern])]
    for rank in ranks:
        if type(rank) is not int or not 1 <= rank <= most:
            raise ModelError(f"the adapter {name} has the rank {rank!r:.40}, but its weights have at most {most} rows; save it again")
    return weights
