"""The files that hold a model's weights in a folder: safetensors, pickles of PyTorch, or one GGUF file. No weight is read here."""

import hashlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from treespec.errors import ModelError
from treespec.files.kinds import LFS_POINTER
from treespec.files.pt_weights import weight_shapes
from treespec.files.reading import parsed_object, read_bytes

_PAGES, _PAGE = 256, 4096
_MAX_INDEX_BYTES = 32 << 20
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""The names of the file that holds all weights, and of the index of several files."""
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
"""The names of these two for pickles of PyTorch."""
_OTHER_KINDS = {".bin", ".h5", ".msgpack", ".pt", ".pth", ".safetensors"}
"""The endings of files that may hold weights under names that transformers does not look for."""


def holds_weights(folder: Path) -> bool:
    """Return whether a folder holds weights that can be read, by the names of its files alone."""
    return holds_torch_weights(folder) or bool(gguf_files(folder))


def holds_torch_weights(folder: Path) -> bool:
    """Return whether a folder holds safetensors or pickles of weights, by the names of its files alone."""
    return _first(folder) is not None


def may_be_head(folder: Path) -> bool:
    """Return whether a folder's weights can be looked at to tell whether they are a head, which may come without a config.json."""
    return holds_torch_weights(folder) or any(folder.glob("*_lm_head.*"))


def gguf_files(folder: Path) -> list[Path]:
    """Return the GGUF files of a folder, but for those that llama.cpp names as the eyes of a model beside them."""
    found = (path for path in folder.iterdir() if path.suffix.lower() == ".gguf" and path.is_file())
    return sorted(path for path in found if not path.name.startswith("mmproj"))


def require_weights(name: str, folder: Path) -> None:
    """Raise ModelError, by the names of the files alone, if a folder without a GGUF file lacks weights or parts of them."""
    if not files_of(name, folder):
        others = sorted(path.name for path in folder.iterdir() if path.suffix in _OTHER_KINDS and path.is_file())
        only = f" (only {others[0]})" if others else ""
        raise ModelError(
            f"folder {name} holds no {SINGLE}, no {PICKLE}, no index of one in parts and no GGUF file{only}; save the model with save_pretrained"
        )


def require_pickle(name: str, files: Collection[str]) -> None:
    """Raise ModelError for a model on the hub whose files are neither safetensors, as the caller knows, nor a pickle of weights."""
    if PICKLE not in files and PICKLE_INDEX not in files:
        raise ModelError(
            f"{name} has neither {SINGLE} nor {PICKLE} on the hub, nor an index of one in parts; use another model, or download "
            "a GGUF file of this one and give its path"
        )


def require_content(name: str, folder: Path) -> None:
    """Raise ModelError if a file of a folder's weights only stands in for them."""
    for path in files_of(name, folder):
        require_real(name, path)


def require_real(name: str, path: Path) -> None:
    """Raise ModelError for a file that stands in for weights that were not downloaded. Raises OSError."""
    with path.open("rb") as file:
        head = file.read(len(LFS_POINTER))
    if head == LFS_POINTER:
        raise ModelError(
            f"{path.name} of {name} is a pointer of git-lfs and not the file itself; run git lfs pull there, or download it again"
        )
    if not head:
        raise ModelError(f"{path.name} of {name} is empty; download it again")


def pickles(name: str, folder: Path) -> list[Path]:
    """Return the pickles that hold a folder's weights; none if it has safetensors. Raises ModelError if one of several is missing."""
    return files_of(name, folder) if _first(folder) in (PICKLE, PICKLE_INDEX) else []


def require_safe(paths: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in pickles of weights. Raises ModelError if one holds anything but dense tensors by name."""
    return {tensor: shape for path in paths for tensor, shape in weight_shapes(path, ModelError).items()}


def digest(folder: Path, gguf: str | None = None) -> str:
    """Return SHA-256 over a folder's configuration and over headers and evenly spread pages of its weights. Raises OSError.

    This costs little compared with reading the weights, and it changes when they are trained further or replaced.
    """
    config = folder / "config.json"
    found = hashlib.sha256(config.read_bytes() if gguf is None else b"")
    weights = [folder / gguf] if gguf is not None else [*sorted(folder.glob("*.safetensors")), *pickles(folder.name, folder)]
    for path in weights:
        size = path.stat().st_size
        found.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for start in sorted({*(size * page // _PAGES for page in range(_PAGES)), max(0, size - _PAGE)}):
                file.seek(start)
                found.update(file.read(_PAGE))
    return found.hexdigest()


def files_of(name: str, folder: Path) -> list[Path]:
    """Return the files of weights that are read from a folder. Raises ModelError if one of several is missing."""
    first = _first(folder)
    if first is None:
        return []
    return _parts(name, folder / first) if first in (INDEX, PICKLE_INDEX) else [folder / first]


def _first(folder: Path) -> str | None:
    """Return the name of the file, or of the index of several, in which transformers finds a folder's weights; None if there is none."""
    return next((name for name in (SINGLE, INDEX, PICKLE, PICKLE_INDEX) if (folder / name).is_file()), None)


def _parts(name: str, index: Path) -> list[Path]:
    """Return the files that an index names. Raises ModelError if it names none, or if one is missing."""
    content = _index(name, index)
    files = sorted(set(content["weight_map"].values()))
    if not files:
        raise ModelError(f"{index.name} of {name} is no index of weights: it has no weight_map of names of files; download it again")
    if not isinstance(content.get("metadata"), dict):
        raise ModelError(f'{index.name} of {name} has no "metadata", which transformers needs; add "metadata": {{}} to it')
    for file in files:
        if not (index.parent / file).is_file():
            which = "the file" if len(files) == 1 else f"one of the {len(files)} files"
            raise ModelError(f"{name} lacks {file}, {which} that its {index.name} names; download that file too")
    return [index.parent / file for file in files]


def files_by_tensor(name: str, index: Path) -> dict[str, str]:
    """Return the file of each tensor by an index. All are names of files beside it, which need not be there. Raises ModelError."""
    found: dict[str, str] = _index(name, index)["weight_map"]
    return found


def _index(name: str, index: Path) -> dict[str, Any]:
    """Return the content of an index, whose `weight_map` leads from tensors to files beside it. Raises ModelError."""
    try:
        content = parsed_object(read_bytes(index, limit=_MAX_INDEX_BYTES, error=ModelError))
    except ValueError as error:
        raise damaged(name, index, f"its header is {error}") from error
    files = content.get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) and Path(file).name == file for file in files.values()):
        raise ModelError(f"{name}: {index.name} has no weight_map from tensors to files beside it; save or download the model again")
    return content


def damaged(name: str, path: Path, why: str) -> ModelError:
    """Return the error for a file of weights that cannot be what it says."""
    return ModelError(f"{name} cannot be loaded: {path.name} is damaged: {why}; save or download the model again")
