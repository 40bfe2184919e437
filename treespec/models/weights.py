"""The files that hold a model's weights in a folder: safetensors, pickles of PyTorch, or one GGUF file. No weight is read here."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from treespec.errors import ModelError
from treespec.files.kinds import LFS_POINTER
from treespec.files.pt_weights import weight_shapes
from treespec.files.reading import read_bytes

_PAGES, _PAGE = 256, 4096
_MAX_INDEX_BYTES = 64 << 20
PICKLE = "pytorch_model.bin"
"""The name of a pickle that holds all weights. Those of a model in parts stand in an index of this name."""


def holds_weights(folder: Path) -> bool:
    """Return whether a folder holds weights that can be read, by the names of its files alone."""
    return holds_torch_weights(folder) or bool(gguf_files(folder))


def holds_torch_weights(folder: Path) -> bool:
    """Return whether a folder holds safetensors or pickles of weights, by the names of its files alone."""
    return any(folder.glob("*.safetensors")) or bool(_pickle_names(folder))


def gguf_files(folder: Path) -> list[Path]:
    """Return the GGUF files of a folder."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == ".gguf" and path.is_file())


def require_weights(name: str, folder: Path) -> None:
    """Raise ModelError, by the names of the files alone, if a folder without a GGUF file lacks weights or parts of them."""
    if not _files(name, folder):
        others = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        only = f" (only {others[0]}, and neither {PICKLE} nor its index)" if others else ""
        raise ModelError(
            f"folder {name} holds no .safetensors weights, no {PICKLE} and no GGUF file{only}; save the model with save_pretrained"
        )


def require_content(name: str, folder: Path) -> None:
    """Raise ModelError if a file of a folder's weights only stands in for them."""
    for path in _files(name, folder):
        require_real(name, path)


def require_real(name: str, path: Path) -> None:
    """Raise ModelError for a file that stands in for weights that were not downloaded. Raises OSError."""
    with path.open("rb") as file:
        head = file.read(len(LFS_POINTER))
    if head == LFS_POINTER:
        raise ModelError(f"{path.name} of {name} is a pointer of git-lfs and not the weights; run git lfs pull there, or download it again")
    if not head:
        raise ModelError(f"{path.name} of {name} is empty; download it again")


def pickles(name: str, folder: Path) -> list[Path]:
    """Return the pickles that hold a folder's weights; none if it has safetensors. Raises ModelError if one of several is missing."""
    if any(folder.glob("*.safetensors")) or not (names := _pickle_names(folder)):
        return []
    return [folder / PICKLE] if names == [PICKLE] else _parts(name, folder / f"{PICKLE}.index.json")


def require_safe(paths: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in pickles of weights. Raises ModelError if one holds anything but dense tensors by name."""
    return {tensor: shape for path in paths for tensor, shape in weight_shapes(path, ModelError).items()}


def digest(folder: Path, gguf: str | None = None) -> str:
    """Return SHA-256 over a folder's configuration and over headers and evenly spread pages of its weights. Raises OSError.

    This costs little compared with reading the weights, and it changes when they are trained further or replaced.
    """
    config = folder / "config.json"
    found = hashlib.sha256(config.read_bytes() if gguf is None else b"")
    weights = [folder / gguf] if gguf is not None else sorted(folder.glob("*.safetensors")) or pickles(folder.name, folder)
    for path in weights:
        size = path.stat().st_size
        found.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for start in sorted({*(size * page // _PAGES for page in range(_PAGES)), max(0, size - _PAGE)}):
                file.seek(start)
                found.update(file.read(_PAGE))
    return found.hexdigest()


def _files(name: str, folder: Path) -> list[Path]:
    """Return the files of weights that are read from a folder. Raises ModelError if one of several is missing."""
    if found := pickles(name, folder):
        return found
    index = folder / "model.safetensors.index.json"
    whole = (folder / "model.safetensors").is_file() or not index.is_file()
    return sorted(folder.glob("*.safetensors")) if whole else _parts(name, index)


def _pickle_names(folder: Path) -> list[str]:
    """Return the names of a single pickle of weights or of the index of several, as far as they are there."""
    return [name for name in (PICKLE, f"{PICKLE}.index.json") if (folder / name).is_file()][:1]


def _parts(name: str, index: Path) -> list[Path]:
    """Return the files that an index names. Raises ModelError if it is no index, or if one is missing."""
    try:
        content: Any = json.loads(read_bytes(index, limit=_MAX_INDEX_BYTES, error=ModelError))
        files, has_metadata = sorted(set(content["weight_map"].values())), isinstance(content.get("metadata"), dict)
        if not files:
            raise ValueError
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{index.name} of {name} is no index of weights: it has no weight_map of names of files; download it again"
        ) from error
    if not has_metadata:
        raise ModelError(f'{index.name} of {name} has no "metadata", which transformers needs; add "metadata": {{}} to it')
    for file in files:
        if not isinstance(file, str) or Path(file).name != file:
            raise ModelError(f"{index.name} of {name} names {file!r}, which is no file beside it; correct it, or download it again")
        if not (index.parent / file).is_file():
            raise ModelError(f"{name} lacks {file}, one of the {len(files)} files that its {index.name} names; download that file too")
    return [index.parent / file for file in files]
