"""Finding a model's files in the embedded pair, a folder or the hub, and explaining why if they are not there."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from treespec import hub
from treespec.embedded import EMBEDDED
from treespec.errors import ModelError, TreeoptError, reason_of
from treespec.files.reading import user_path

_PAGES, _PAGE = 256, 4096
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


def folder_of(name: str) -> Path:
    """Return the folder that a name means if it is not a hub id; the folder need not exist. Raises ModelError."""
    return EMBEDDED.get(name) or user_path(name, ModelError)


def weights_digest(name: str) -> str | None:
    """Return SHA-256 over a local folder's configuration and over headers and evenly spread pages of its weights; None for a hub id.

    This costs little compared with reading the weights, and it changes when they are trained further or replaced. Raises ModelError.
    """
    place = locate(name)
    if not place.local:
        return None
    with explained(name, place, None, "its weights or config.json"):
        digest = hashlib.sha256((Path(place.path) / "config.json").read_bytes())
        for path in sorted(Path(place.path).glob("*.safetensors")):
            size = path.stat().st_size
            digest.update(f"{path.name} {size}".encode())
            with path.open("rb") as file:
                for start in sorted({*(size * page // _PAGES for page in range(_PAGES)), max(0, size - _PAGE)}):
                    file.seek(start)
                    digest.update(file.read(_PAGE))
    return digest.hexdigest()


@dataclass(frozen=True)
class Place:
    """The place that a name means: a local folder, or a hub id together with whether only its cached files can be used."""

    path: str
    local: bool
    offline: bool


def locate(name: str, weights: bool = False) -> Place:
    """Find a name's files. Raises ModelError, before any library is asked, if there cannot be any."""
    if not name:
        raise ModelError("the name of a model is empty; give a folder, a hub id (owner/name), embedded-target or embedded-draft")
    folder = folder_of(name)
    if folder.is_dir():
        _require_files(name, folder, weights)
        return Place(str(folder), local=True, offline=True)
    if name in EMBEDDED:
        raise ModelError(f"{name} is not in this installation; train it with: python -m treeopt.training.embedded_pair")
    if folder.exists():
        raise ModelError(f"{name} is a file; give the folder that holds config.json and the .safetensors weights")
    if not hub.is_repository_id(name):
        raise ModelError(f"there is no folder {name}, and it is no hub id (owner/name) either; check the path")
    return Place(name, local=False, offline=not hub.is_reachable())


def _require_files(name: str, folder: Path, weights: bool) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(f"folder {name} holds no config.json; give a folder written by save_pretrained")
    if weights and not any(folder.glob("*.safetensors")):
        others = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        found = f" (only {others[0]}, a pickle, which could run code and is never read)" if others else ""
        raise ModelError(f"folder {name} holds no .safetensors weights{found}; save the model with save_pretrained")


@contextmanager
def explained(name: str, place: Place, revision: str | None, part: str) -> Iterator[None]:
    """Turn any error that the libraries raise for a `part` of a model into a ModelError of one plain sentence."""
    try:
        yield
    except (TreeoptError, MemoryError):
        raise
    except Exception as error:  # for damaged files: errors of their own, assertions, divisions by zero, bare Exceptions
        causes = list(_chain(error))
        if any(isinstance(cause, GatedRepoError) for cause in causes):
            message = f"{name} is gated on the hub: accept its terms there and log in (hf auth login), or give a local folder"
        elif any(isinstance(cause, RevisionNotFoundError) for cause in causes):
            message = f"{name} has no revision {revision} on the hub; check `revision`"
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
