"""Finding a model's files in the embedded pair, a folder, a GGUF file or the hub, and explaining why if they are not there."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers.utils.hub import cached_file

from treespec import hub
from treespec.embedded import EMBEDDED, is_named_as_embedded
from treespec.errors import ModelError, TreeoptError, is_memory_full, is_panic, listed, reason_of
from treespec.files.kinds import HEAD, kind_of
from treespec.files.reading import user_path
from treespec.models import weights
from treespec.models.ngram import NGRAM

_PACKAGE = re.compile(r"pip install ([A-Za-z][\w-]*)")
"""The place where the libraries name a package that they lack."""
_SMALL = (".json", ".model", ".jinja", ".txt")
"""Endings of the files of a model that hold no weights."""
_UNKNOWN = re.compile(r"model type `?(.*?)`? but Transformers does not recognize")
"""The place where transformers names a family that it does not have."""
NO_CONFIG = "holds no config.json; give a folder written by save_pretrained"
"""The sentence for a folder or a hub id without a configuration."""


def folder_of(name: str) -> Path:
    """Return the folder or the GGUF file that a name means if it is not a hub id; it need not exist. Raises ModelError."""
    return EMBEDDED.get(name) or user_path(name, ModelError)


def weights_digest(name: str) -> str | None:
    """Return the digest of a local folder's or GGUF file's configuration and weights (see `weights.digest`); None for a hub id. Raises ModelError."""
    if not folder_of(name).exists():
        return None
    place = locate(name)
    with explained(name, place, None, "its weights or config.json"):
        return weights.digest(Path(place.path), place.gguf)


@dataclass(frozen=True)
class Place:
    """The place that a name means: a local folder, which may be one of the hub's cache, or a hub id that the hub can be asked for."""

    path: str
    """The folder or the hub id."""
    local: bool
    gguf: str | None = None
    """The name of the GGUF file in the folder that is the whole model; None if there is none."""
    commit: str | None = None
    """The commit whose files a folder of the hub's cache holds; None for any other place."""

    @property
    def options(self) -> dict[str, Any]:
        """Return the options with which transformers reads from here, code of a repository never."""
        return {"local_files_only": self.local, "trust_remote_code": False, **({} if self.gguf is None else {"gguf_file": self.gguf})}


def locate(name: str, revision: str | None = None, *, with_weights: bool = False) -> Place:
    """Find a name's files. Raises ModelError, before any library is asked, if there cannot be any.

    If the hub cannot be asked, a hub id means the folder of the local cache that holds its files.
    """
    if name and not isinstance(name, str | os.PathLike):
        raise ModelError(
            f"a model is named by a folder, a hub id or a GGUF file, but this is a {type(name).__name__}; for modules, use `pair` of treeopt"
        )
    if not name:
        raise ModelError(
            "the name of a model is empty; give a folder, a hub id (owner/name), a GGUF file, embedded-target, embedded-draft or embedded-eagle3"
        )
    path = folder_of(name)
    if path.is_dir():
        gguf = _only_gguf(name, path)
        if gguf is None and (with_weights or not weights.may_be_head(path)):  # a head is named by its reader
            _require_files(name, path, with_weights)
        return Place(str(path), local=True, gguf=gguf)
    if name == NGRAM:
        raise ModelError(
            f"{NGRAM} is a draft without a model, and can be no target and no model to train or convert; name a model, or its folder as ./{NGRAM}"
        )
    if name in EMBEDDED:
        raise ModelError(f"{name} is not in this installation; train it with: python -m treeopt.training.embedded_pair")
    if path.suffix.lower() == ".gguf" and path.is_file():
        return Place(str(path.parent), local=True, gguf=path.name)
    if path.exists():
        raise ModelError(f"{name} is a file; give the folder that holds config.json and the weights, or a .gguf file")
    if is_named_as_embedded(str(name)):
        raise ModelError(
            f"there is no model {name}; those that come with treeopt are {listed(tuple(EMBEDDED))}; check the name, or give a folder by its whole path"
        )
    if not hub.is_repository_id(name):
        what = "file" if path.suffix.lower() == ".gguf" else "folder"
        raise ModelError(f"there is no {what} {name}, and it is no hub id (owner/name) either; check the path")
    if hub.is_reachable():
        return Place(name, local=False)
    snapshot = hub.cached_snapshot(name, revision)
    if snapshot is None:
        raise ModelError(hub.cannot_help(name, revision))
    gguf = _only_gguf(name, snapshot)
    try:
        if gguf is None:
            _require_files(name, snapshot, with_weights)
    except ModelError as error:
        lack = str(error).partition("; ")[0]
        raise ModelError(
            f"{name} is in the local cache, but not as a whole ({lack}), and {hub.unreachable()}; download it where that can be reached, or give "
            "a local folder instead"
        ) from error
    return Place(str(snapshot), local=True, gguf=gguf, commit=snapshot.name)


def optional_file(place: Place, file: str, revision: str | None) -> Path | None:
    """Return a small file of a model, fetched if need be; None if it has no such file, or if the hub does not answer for it."""
    missing: Any = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    found = cached_file(place.path, file, revision=revision, local_files_only=place.local, **missing)
    return None if found is None else Path(found)


def _only_gguf(name: str, folder: Path) -> str | None:
    """Return the name of the GGUF file that is the model of a folder; None if the folder has weights of another kind or none."""
    found = weights.gguf_files(folder)
    if not found or weights.holds_torch_weights(folder):
        return None
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:3])
        raise ModelError(
            f"{name} holds {len(found)} GGUF files ({names}{' ...' if len(found) > 3 else ''}); give the path of one in {folder}"
        )
    return found[0].name


def _require_files(name: str, folder: Path, with_weights: bool) -> None:
    if not any((folder / file).is_file() for file in ("config.json", "adapter_config.json")):  # an adapter is named by its reader
        raise ModelError(f"folder {name} {NO_CONFIG}")
    if with_weights:
        weights.require_weights(name, folder)


@contextmanager
def explained(name: str, place: Place, revision: str | None, part: str) -> Iterator[None]:
    """Turn any error that the libraries raise for a `part` of a model into a ModelError of one plain sentence."""
    try:
        yield
    except TreeoptError:
        raise
    except BaseException as error:  # for damaged files: errors of their own, assertions, divisions by zero, bare Exceptions
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        causes = list(_chain(error))
        if any(is_memory_full(cause) for cause in causes):
            message = f"memory is full while {name} is loaded ({part}); use a smaller model or `dtype`, or a machine with more memory"
        elif type(error).__name__ == "OutOfMemoryError":  # torch's
            message = f"{name} does not fit into the memory of the GPU; use a smaller `dtype`, another `device` or a smaller model"
        elif any(isinstance(cause, GatedRepoError) for cause in causes):
            message = f"{name} is gated on the hub: accept its terms there and log in (hf auth login), or give a local folder"
        elif any(isinstance(cause, RevisionNotFoundError) for cause in causes):
            message = f"{name} has no revision {revision} on the hub; check `revision`"
        elif any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
            message = f"{name} is neither a local folder nor a model on the hub (or it is private: hf auth login); check the name"
        elif any(isinstance(cause, EntryNotFoundError) and not isinstance(cause, LocalEntryNotFoundError) for cause in causes):
            message = f"{name} lacks {part} on the hub; use another model, or download a GGUF file of this one and give its path"
        elif "trust_remote_code" in str(error):
            message = f"{name} needs code from its own repository, which is never run; use a family that transformers knows"
        elif (unknown := _UNKNOWN.search(str(error))) is not None:
            message = (
                f"{name} has the model_type {unknown[1]!r:.60}, which transformers {transformers.__version__} does not know; use a version that "
                "knows it, or another model"
            )
        elif isinstance(error, ImportError) and (package := _PACKAGE.search(str(error))) is not None:
            message = f"{name} cannot be loaded: {part} needs the package {package[1]}, which is not installed; pip install {package[1]}"
        elif place.local and (found := _stand_in(Path(place.path))) is not None:
            message = f"{name} cannot be loaded: {found}"
        else:
            message = f"{name} cannot be loaded: {part}: {reason_of(error)}; correct that, or save or download the model again"
        raise ModelError(message) from error


def _stand_in(folder: Path) -> str | None:
    """Return a sentence about a file in a model's folder that is empty, or a pointer or a web page in the place of the file; None without one."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.suffix in _SMALL and path.is_file():
            with path.open("rb") as file:
                found = kind_of(file.read(HEAD))
            if found is not None and ";" in found:
                return f"{path.name} {found}"
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
