"""The headers of safetensors files: names, shapes and types of all tensors, and the names in other files' indexes. No weight is read."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from treespec.errors import ModelError
from treespec.files.pt_weights import texts_in
from treespec.files.reading import parsed_object
from treespec.models.weights import INDEX, PICKLE, PICKLE_INDEX, SINGLE, damaged, files_by_tensor, require_real

_MOST_HEADER_BYTES = 32 << 20
"""Largest header that is read: a hundred thousand tensors fit."""
_WITHOUT_DOTS = {"d2t", "t2d"}
"""Names of tensors without a dot; other such texts in a pickle are no names."""
_BITS = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "C64": 64}
_FLOATS = {"F16", "BF16", "F32", "F64"}


@dataclass(frozen=True)
class Tensor:
    """The shape of a tensor in a file, and its type by safetensors' name."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def numbers(self) -> int:
        """Return how many weights it can stand for: its elements, or, where packed weights may lie in it, its bits."""
        return math.prod(self.shape) * (1 if self.dtype in _FLOATS else _bits(self.dtype))


@dataclass(frozen=True)
class Weights:
    """The tensors of a model's files."""

    names: frozenset[str]
    tensors: Mapping[str, Tensor] | None
    """The tensors by name; None if there are no safetensors, or if a file is not on this machine yet."""
    guessed: bool = False
    """Whether the names are all texts of a pickle that may be names."""

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]]) -> "Weights":
        """Return the same for tensors of floating-point numbers whose shapes are known."""
        return cls(frozenset(shapes), {name: Tensor(shape, "F32") for name, shape in shapes.items()})


def read_weights(name: str, folder: Path) -> Weights:
    """Return what the files of a folder say about the model's tensors. Raises ModelError for damaged files."""
    if (folder / SINGLE).is_file():
        found = header_of(name, folder / SINGLE)
        return Weights(frozenset(found), found)
    if not (folder / INDEX).is_file():
        other = folder / PICKLE_INDEX
        return Weights(frozenset(files_by_tensor(name, other)), None) if other.is_file() else Weights(_pickled(folder / PICKLE), None, True)
    index = files_by_tensor(name, folder / INDEX)
    shards = {shard: folder / shard for shard in sorted(set(index.values()))}
    if not all(path.is_file() for path in shards.values()):
        return Weights(frozenset(index), None)
    found = {tensor: entry for path in shards.values() for tensor, entry in header_of(name, path).items()}
    return Weights(frozenset(found), found)


def header_of(name: str, path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by its header. Raises ModelError if the file cannot hold them."""
    require_real(name, path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise damaged(name, path, f"its header is {length} bytes long, but the file has {size}")
        if length > _MOST_HEADER_BYTES:
            raise damaged(name, path, f"its header is {length} bytes long, and at most {_MOST_HEADER_BYTES} are read")
        try:
            found = parsed_object(file.read(length))
        except ValueError as error:
            raise damaged(name, path, f"its header is {error}") from error
    found.pop("__metadata__", None)
    tensors = {}
    for key, entry in found.items():
        tensor, end = _tensor(name, path, key, entry)
        if end > size - 8 - length:
            raise damaged(name, path, f"{key!r:.80} ends behind the end of the file ({size} bytes)")
        tensors[key] = tensor
    return tensors


def _tensor(name: str, path: Path, key: str, entry: Any) -> tuple[Tensor, int]:
    """Return a tensor and where its bytes end. Its shape and type must be what its bytes can hold."""
    try:
        tensor = Tensor(tuple(entry["shape"]), entry["dtype"])
        start, end = entry["data_offsets"]
        counts = [*tensor.shape, start, end]
        fits = all(type(count) is int and count >= 0 for count in counts) and math.prod(tensor.shape) * _bits(tensor.dtype) == 8 * (
            end - start
        )
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise damaged(name, path, f"the entry of {key!r:.80} is {entry!r:.80}") from error
    if not fits:
        raise damaged(name, path, f"the entry of {key!r:.80} contradicts itself: {entry!r:.120}")
    return tensor, end


def _pickled(path: Path) -> frozenset[str]:
    """Return the texts in a pickle of weights that may be names of tensors. A file that is none has no names."""
    if not path.is_file():
        return frozenset()
    try:
        texts = texts_in(path, ModelError)
    except (ModelError, OSError):
        return frozenset()  # whoever loads the file says what is wrong with it
    return frozenset(text for text in texts if ("." in text and " " not in text) or text in _WITHOUT_DOTS)


def _bits(dtype: str) -> int:
    """Return the bits of an element.

    >>> _bits("BF16"), _bits("F8_E4M3"), _bits("I64"), _bits("BOOL")
    (16, 8, 64, 8)
    """
    return _BITS.get(dtype) or int(dtype.lstrip("BFIU").partition("_")[0])
