"""PyTorch `.pt` files as bytes: they are read without trusting them, and equal values are written as equal bytes."""

import io
import pickletools
import re
import zipfile
from collections.abc import Set
from typing import Any

from treespec.errors import TreeoptError, reason_of
from treespec.files.reading import StrPath, read_bytes

_PLAIN_GLOBAL = re.compile(r"collections OrderedDict|torch\._utils _rebuild_tensor(_v2)?|torch (\w+Storage)")
_OPCODES_THAT_BUILD = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD", "EXT1", "EXT2", "EXT4"}


def load_pt(path: StrPath, *, limit: int, error: type[TreeoptError]) -> Any:
    """Return the content of a file of `torch.save`: plain containers, numbers, strings and dense tensors, which arrive on the CPU.

    The file may have at most `limit` bytes, packed and unpacked. Its pickle is looked through before torch sees it, and
    torch then loads it with `weights_only=True`: nothing in a file is ever run. Raises `error` for anything else.
    """
    data = read_bytes(path, limit=limit, error=error)
    refuse_code(path, _pickle_of(path, data, limit, error), error)
    import torch

    try:
        return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as e:  # torch raises a dozen kinds of exception for damaged archives
        raise error(f"{path} is damaged: torch cannot load it ({reason_of(e)}); copy or make it again") from e


def dump_pt(value: Any) -> bytes:
    """Return the bytes of a `.pt` file. Equal values give equal bytes (for one version of torch)."""
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _pickle_of(path: StrPath, data: bytes, limit: int, error: type[TreeoptError]) -> bytes:
    """Return the one pickle in the archive, after a check that the archive is no larger unpacked than `limit`."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or sum(entry.file_size for entry in entries) > limit:
                raise error(f"{path} would unpack to more than it holds, which torch.save never writes; refused: make it again")
            return archive.read(pickle_member(path, archive, error))
    except TreeoptError:
        raise
    except Exception as e:  # zipfile, too, raises a dozen kinds for damaged archives
        raise error(
            f"{path} is not a .pt file: torch.save writes a zip archive, and this is none ({reason_of(e)}); copy or make it again"
        ) from e


def pickle_member(path: StrPath, archive: zipfile.ZipFile, error: type[TreeoptError]) -> zipfile.ZipInfo:
    """Return the one member of an archive that is its pickle. Raises `error` if there is none, or several."""
    pickles = [entry for entry in archive.infolist() if entry.filename.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise error(
            f"{path} is not a .pt file: {len(pickles)} members of the archive are named data.pkl instead of one; copy or make it again"
        )
    return pickles[0]


def refuse_code(
    path: StrPath, pickle: bytes, error: type[TreeoptError], *, allowed: re.Pattern[str] = _PLAIN_GLOBAL, building: Set[str] = frozenset()
) -> None:
    """Raise `error` unless the pickle names nothing but what dense tensors and plain containers need.

    `allowed`: the names that it may have. `building`: the opcodes that it may have although they build objects.
    """
    try:
        for opcode, argument, _ in pickletools.genops(pickle):
            if opcode.name == "GLOBAL" and allowed.fullmatch(str(argument)):
                continue
            if opcode.name == "GLOBAL":
                raise error(
                    f"{path} asks to run {str(argument).replace(' ', '.')} when loaded; refused: save plain tensors and containers instead"
                )
            if opcode.name in _OPCODES_THAT_BUILD - building:
                raise error(
                    f"{path} asks to build Python objects when loaded ({opcode.name}); refused: save plain tensors and containers instead"
                )
    except (ValueError, IndexError) as e:
        raise error(f"{path} is damaged: its pickle ends or breaks off ({reason_of(e)}); copy or make it again") from e
