"""The files of a head: config.json, names and shapes of its tensors before a weight is read, and then the tensors themselves."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from treespec.errors import ModelError, counted, listed_in_short
from treespec.files.pt_weights import load_weights
from treespec.models.contents import Contents
from treespec.models.headers import header_of
from treespec.models.weights import files_of, require_real

_LONE_FILES = ("medusa_lm_head.safetensors", "medusa_lm_head.pt")
"""The names of files of heads that are no model's. The first one that is there is read."""
_BUFFERS = re.compile(r"(^|\.)rotary_emb\.inv_freq$")
"""Tensors that old files carry and that are computed anew."""
_AGAIN = "download it again, or convert it"


@dataclass(frozen=True)
class HeadFiles:
    """The files of a head. Names are canonical: without `model.` before them, and with `layers.0.` for `midlayer.`."""

    name: str
    """The name of the head in messages."""
    config: Mapping[str, Any]
    """The content of config.json, which anyone may have written."""
    shapes: Mapping[str, tuple[int, ...]]
    """The shape of each tensor by its canonical name."""
    stored: Mapping[str, tuple[Path, str]]
    """The file of each tensor and its name there, by its canonical name."""

    @classmethod
    def of(cls, name: str, contents: Contents) -> "HeadFiles":
        """Read config.json and the headers of the weights; no weight is read. Raises ModelError for damaged files and for none."""
        shapes: dict[str, tuple[int, ...]] = {}
        stored: dict[str, tuple[Path, str]] = {}
        for path in _paths(name, contents):
            require_real(name, path)
            for key, shape in _shapes(name, path).items():
                canonical = _canonical(key)
                if _BUFFERS.search(canonical):
                    continue
                if canonical in shapes:
                    raise ModelError(f"{name} holds {key} and {stored[canonical][1]}, which are the same tensor; {_AGAIN}")
                shapes[canonical], stored[canonical] = shape, (path, key)
        return cls(name, contents.config, shapes, stored)

    def has(self, name: str) -> bool:
        """Return whether the files hold a tensor of this canonical name."""
        return name in self.shapes

    def rows(self, name: str) -> int:
        """Return the rows of a matrix that is there. Raises ModelError if it is no matrix."""
        return self.matrix(name)[0]

    def matrix(self, name: str) -> tuple[int, int]:
        """Return the shape of a matrix that is there. Raises ModelError if it is no matrix."""
        shape = self.shapes[name]
        if len(shape) != 2:
            raise ModelError(f"{self.name} holds {self.stored[name][1]} of the shape {list(shape)}, but it must be a matrix; {_AGAIN}")
        return shape[0], shape[1]

    def require(self, needed: Iterable[str], kind: str) -> None:
        """Raise ModelError if the files lack a tensor that a head of this kind has."""
        missing = [name for name in needed if name not in self.shapes]
        if missing:
            raise ModelError(f"{self.name} lacks {listed_in_short(missing)}, which {kind} has; {_AGAIN} with all its tensors")

    def require_shapes(self, needed: Mapping[str, tuple[int, ...]], kind: str) -> None:
        """Raise ModelError unless the tensors are the needed ones, of these shapes, and no others."""
        self.require(needed, kind)
        others = sorted(set(self.shapes) - set(needed))
        if others:
            known = listed_in_short([self.stored[name][1] for name in others])
            raise ModelError(
                f"{self.name} holds {known}, which {kind} has not: treeopt would not use {'it' if len(others) == 1 else 'them'}; "
                "use a head of a published layout"
            )
        for name, shape in needed.items():
            if self.shapes[name] != shape:
                raise ModelError(
                    f"{self.name} holds {self.stored[name][1]} of the shape {list(self.shapes[name])}, but its other tensors and config.json "
                    f"ask for {list(shape)}; {_AGAIN}"
                )

    def count(self, pattern: str, what: str) -> int:
        """Return how many numbers from 0 on stand in the tensors' names where the pattern's group is. Raises ModelError if one is left out."""
        found = {int(match[1][:9]) for name in self.shapes if (match := re.match(pattern, name))}
        gap = next(number for number in range(len(found) + 1) if number not in found)
        if gap < len(found):
            raise ModelError(f"{self.name} holds {counted(len(found), what)} up to number {max(found)}, but not number {gap}; {_AGAIN}")
        return len(found)

    def read(self, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        """Return the tensors: those of floating-point numbers in this type, others as they are. Raises ModelError for packed weights."""
        opened: dict[Path, Mapping[str, Tensor]] = {}
        found: dict[str, Tensor] = {}
        for name, (path, key) in self.stored.items():
            if path not in opened:
                opened[path] = _tensors(path)
            tensor = opened[path][key]
            if tensor.dtype not in _TYPES:
                raise ModelError(f"{self.name} holds {key} as {str(tensor.dtype).removeprefix('torch.')}; use the head with plain weights")
            kept = dtype if tensor.is_floating_point() else tensor.dtype
            found[name] = tensor.to(device, kept, copy=True)
        return found


_TYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool}
"""The types of tensors that are read."""


def _paths(name: str, contents: Contents) -> list[Path]:
    """Return the files that hold a head's weights. Raises ModelError if there are none, or if a part of them is missing."""
    found = files_of(name, contents.folder)
    found = found or [contents.folder / file for file in _LONE_FILES if file in contents.files][:1]
    if not found:
        raise ModelError(f"folder {name} holds no weights: no model.safetensors, no pytorch_model.bin and no medusa_lm_head file; {_AGAIN}")
    return found


def _canonical(key: str) -> str:
    """Return the name of a tensor without its prefix.

    >>> _canonical("model.midlayer.mlp.up_proj.weight"), _canonical("medusa_head.0.1.weight")
    ('layers.0.mlp.up_proj.weight', '0.1.weight')
    """
    name = re.sub(r"^(model|medusa_heads?)\.", "", key)
    return re.sub(r"^midlayer\.", "layers.0.", name)


def _shapes(name: str, path: Path) -> dict[str, tuple[int, ...]]:
    if path.suffix == ".safetensors":
        return {key: tensor.shape for key, tensor in header_of(name, path).items()}
    return {key: tuple(tensor.shape) for key, tensor in load_weights(path, ModelError).items()}


def _tensors(path: Path) -> Mapping[str, Tensor]:
    if path.suffix != ".safetensors":
        return load_weights(path, ModelError)
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
