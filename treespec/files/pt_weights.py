"""PyTorch files of weights (`pytorch_model.bin`): looked through before torch sees them, and never trusted."""

import io
import pickletools
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from treespec.errors import TreeoptError, reason_of
from treespec.files.pt import MAGIC, pickle_member, refuse_code

if TYPE_CHECKING:
    from torch import Tensor

_MAX_PICKLE_BYTES = 4 << 20
"""Largest pickle of names and shapes; the weights themselves are not in it. 10,000 tensors take about 2 MiB."""
_OLD_PICKLES = 5
"""Files of torch before 1.6 begin with so many pickles: the magic number, the version, the system, the weights, the names of storages."""
_WEIGHTS_GLOBAL = re.compile(r"collections OrderedDict|torch\._utils _rebuild_(tensor|tensor_v2|parameter)|torch (\w+Storage)")
_SAID_KEYS = 3


def weight_shapes(path: Path, error: type[TreeoptError]) -> dict[str, tuple[int, ...]]:
    """Return name to shape of the tensors in a file of weights, which `load_weights` checks. Raises `error`."""
    return {name: tuple(tensor.shape) for name, tensor in load_weights(path, error).items()}


def load_weights(path: Path, error: type[TreeoptError]) -> "dict[str, Tensor]":
    """Return name to tensor of a file of weights, on the CPU, after a look through its pickle and at its sizes.

    The file then holds a dict of dense tensors and nothing else, none of them larger than what is stored for it. Zip archives are mapped
    and not read; files of torch before 1.6 are read once. Nothing in a file is ever run. Raises `error` for anything else.
    """
    packed = _is_zip(path)
    for pickle in _pickles(path, packed, error):
        refuse_code(path, pickle, error, allowed=_WEIGHTS_GLOBAL, building={"BUILD"})
        _require_claims(path, pickle, error)
    import torch

    try:
        found = torch.load(path, weights_only=True, map_location="cpu", mmap=packed)
    except MemoryError:
        raise
    except Exception as e:  # torch raises a dozen kinds of exception for damaged files
        raise error(f"{path} is damaged: torch cannot load it ({reason_of(e)}); download or make it again") from e
    return dict(_tensors(path, found, error))


def texts_in(path: Path, error: type[TreeoptError]) -> set[str]:
    """Return the texts in a file of weights, the names of its tensors among them. Nothing is unpickled. Raises `error` for what is no such file."""
    try:
        found = [argument for pickle in _pickles(path, _is_zip(path), error) for _, argument, _ in pickletools.genops(pickle)]
    except (ValueError, IndexError) as e:
        raise error(f"{path} is damaged: its pickle ends or breaks off ({reason_of(e)}); download or make it again") from e
    return {argument for argument in found if isinstance(argument, str)}


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _pickles(path: Path, packed: bool, error: type[TreeoptError]) -> list[bytes]:
    """Return the pickles in a file: one in a zip archive, five at the beginning of a file of torch before 1.6."""
    if packed:
        return [_packed_pickle(path, error)]
    with path.open("rb") as file:
        head = io.BytesIO(file.read(_MAX_PICKLE_BYTES))
    try:
        found = [_next_pickle(head) for _ in range(_OLD_PICKLES)]
    except (ValueError, IndexError) as e:
        raise error(f"{path} is no file of torch.save, or it is damaged ({reason_of(e)}); download or make it again") from e
    numbers = [argument for opcode, argument, _ in pickletools.genops(found[0]) if opcode.name == "LONG1"]
    if numbers != [MAGIC]:
        raise error(f"{path} is no file of torch.save: it begins with neither a zip archive nor torch's number; download or make it again")
    return found


def _packed_pickle(path: Path, error: type[TreeoptError]) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise error(f"{path} is compressed, which torch.save never does; refused: download or make it again")
            member = pickle_member(path, archive, error)
            if member.file_size > _MAX_PICKLE_BYTES:
                raise error(f"{path} names its weights in {member.file_size} bytes, but the limit is {_MAX_PICKLE_BYTES}; save it in parts")
            return archive.read(member)
    except TreeoptError:
        raise
    except Exception as e:  # zipfile, too, raises a dozen kinds for damaged archives
        raise error(f"{path} is damaged: it begins as a zip archive and is none ({reason_of(e)}); download or make it again") from e


def _next_pickle(stream: IO[bytes]) -> bytes:
    start = stream.tell()
    for _ in pickletools.genops(stream):
        pass
    end = stream.tell()
    stream.seek(start)
    return stream.read(end - start)


def _require_claims(path: Path, pickle: bytes, error: type[TreeoptError]) -> None:
    """Raise `error` if a storage claims more numbers than the file has bytes: torch would take the memory before it looked."""
    limit, number = path.stat().st_size, 0
    for opcode, argument, _ in pickletools.genops(pickle):
        if isinstance(argument, int) and "PUT" not in opcode.name and "GET" not in opcode.name:
            number = argument
        elif opcode.name == "BINPERSID" and number > limit:
            raise error(f"{path} claims a storage of {number} numbers, but has {limit} bytes; download or make it again")


def _tensors(path: Path, found: Any, error: type[TreeoptError]) -> "Mapping[str, Tensor]":
    """Return the content if it is a dict of dense tensors, each no larger than its storage. Raises `error`."""
    import torch

    if not isinstance(found, Mapping):
        raise error(f"{path} holds a {type(found).__name__} instead of weights by name; save the model with save_pretrained")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            odd = [str(key) for key, value in found.items() if not isinstance(key, str) or not isinstance(value, torch.Tensor)]
            raise error(
                f"{path} holds {', '.join(odd[:_SAID_KEYS])} and is no file of weights alone, as after training; "
                "load that into the model and save it with save_pretrained"
            )
        if value.layout is not torch.strided or value.is_quantized:
            raise error(f"{path} holds {name} in the layout {value.layout}; save dense weights")
        if value.numel() * value.itemsize > value.untyped_storage().nbytes():
            raise error(
                f"{path} holds {value.untyped_storage().nbytes()} bytes for {name}, which would unfold to {value.numel()} numbers; refused"
            )
    return found
