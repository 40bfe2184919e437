"""PyTorch `.pt` files as bytes: they are read without trusting them, and equal values are written as equal bytes."""

import io
import pickletools
import re
import zipfile
from collections.abc import Set
from typing import Any

from treespec.errors import TreeoptError, reason_of
from treespec.files.kinds import other_kind
from treespec.files.reading import StrPath, read_bytes

_PLAIN_GLOBAL = re.compile(r"collections OrderedDict|torch\._utils _rebuild_tensor(_v2)?|torch (\w+Storage)")
_OPCODES_THAT_BUILD = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD", "EXT1", "EXT2", "EXT4"}
_MOST_ITEMS = 1_500_000
"""Most operations of a pickle, and most items of what it holds if lists that are used twice are counted twice."""
_MOST_BITS = 63
"""Most bits of a whole number: with longer ones, it would take minutes to put many that are chosen for it into a dict."""
MAGIC = 0x1950A86A20F9469CFC6C
"""The number at the beginning of files of torch before 1.6, which are no zip archives."""
_MOST_DEPTH = 1_000
"""Most lists or tuples of a pickle that may lie in one another."""
_MOST_USES = 100_000
"""Most uses of lists, tuples and dicts of a pickle beside their first ones. Those that share nothing have none, and torch takes seconds for a million."""
_VAST = f"holds lists that are used again and again, as more than {_MOST_ITEMS:,} items"
_ATOM, _EMPTY = (1, -1), (1, 0)
"""The number of items in what holds no others and in an empty list, and how deep lists lie in one another there."""
_MOST_MEMBERS = 20_000


def load_pt(path: StrPath, *, limit: int, error: type[TreeoptError], remedy: str = "pass one") -> Any:
    """Return the content of a file of `torch.save`: plain containers, numbers, strings and dense tensors, which arrive on the CPU.

    The file may have at most `limit` bytes, packed and unpacked. Its pickle is looked through before torch sees it, and
    torch then loads it with `weights_only=True`: nothing in a file is ever run. Raises `error` for anything else; `remedy` is what to do about a file of
    another kind.
    """
    data = read_bytes(path, limit=limit, error=error)
    found = other_kind(path, data, "a .pt file of torch.save", remedy, json=True)
    if found is not None and not data.startswith(b"PK"):
        raise error(found)
    refuse_code(path, _pickle_of(path, data, limit, error), error)
    import torch

    try:
        content = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except MemoryError:
        raise
    except Exception as e:  # torch raises a dozen kinds of exception for damaged archives
        said = re.search(r"WeightsUnpickler error: ([^\n]*)", str(e))  # around it stands advice to load the file unsafely
        reason = said.group(1).strip() if said else reason_of(e)
        raise error(f"{path} is damaged: torch cannot load it ({reason}); copy or make it again") from e
    _refuse_vast(path, content, error)
    return content


def dump_pt(value: Any) -> bytes:
    """Return the bytes of a `.pt` file. Equal values give equal bytes (for one version of torch)."""
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _pickle_of(path: StrPath, data: bytes, limit: int, error: type[TreeoptError]) -> bytes:
    """Return the one pickle in the archive, after a check that the archive is no larger unpacked than `limit`."""
    if data.count(b"PK\x01\x02") > _MOST_MEMBERS:
        raise error(f"{path} is an archive of more than {_MOST_MEMBERS} members, which torch.save never writes; refused: make it again")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or sum(entry.file_size for entry in entries) > limit:
                raise error(f"{path} would unpack to more than it holds, which torch.save never writes; refused: make it again")
            return archive.read(pickle_member(path, archive, error))
    except (TreeoptError, MemoryError):
        raise
    except Exception as e:  # zipfile, too, raises a dozen kinds for damaged archives
        what = (
            "is damaged, or was cut off: its zip archive cannot be read"
            if data.startswith(b"PK")
            else ("is not a .pt file: torch.save writes a zip archive, and this is none")
        )
        raise error(f"{path} {what} ({reason_of(e)}); copy or make it again") from e


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
    unfolded, refused = _Unfolded(), _OPCODES_THAT_BUILD - building
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(pickle)):
            if count > _MOST_ITEMS:
                raise error(f"{path} holds more than {_MOST_ITEMS:,} items; refused: save less in one file")
            if (vast := unfolded.vast_after(opcode, argument)) is not None:
                raise error(f"{path} {vast}; refused: save less")
            if isinstance(argument, int) and argument.bit_length() > _MOST_BITS and argument != MAGIC:
                raise error(f"{path} holds a whole number of {argument.bit_length()} bits, but {_MOST_BITS} are the limit; make it again")
            if opcode.name == "GLOBAL" and allowed.fullmatch(str(argument)):
                continue
            if opcode.name == "GLOBAL":
                raise error(
                    f"{path} asks to run {str(argument).replace(' ', '.')} when loaded; refused: save plain tensors and containers instead"
                )
            if opcode.name in refused:
                raise error(
                    f"{path} asks to build Python objects when loaded ({opcode.name}); refused: save plain tensors and containers instead"
                )
    except (ValueError, IndexError) as e:
        raise error(f"{path} is damaged: its pickle ends or breaks off ({reason_of(e)}); copy or make it again") from e


class _Unfolded:
    """The number of items in each thing on the stack of a pickle, with shared ones as often as they are met, and how deep it is nested.

    Tuples must be counted before they are loaded: hashing one, as a key of a dict, never ends if it shares others 60 times, and ends the
    process if it is nested very deep. What is put into a list or a dict after that was kept for later does not count here, so these are
    counted again in what was loaded (`_refuse_vast`). How often anything that was kept is used does count here: torch takes long for many uses.
    """

    def __init__(self) -> None:
        self._stack: list[tuple[int, int]] = []
        self._marks: list[int] = []
        self._kept: dict[Any, tuple[int, int]] = {}
        self._uses = 0

    def vast_after(self, opcode: pickletools.OpcodeInfo, argument: Any) -> str | None:
        """Return what is vast after the next operation, if something is. Raises IndexError for one that takes what is not there."""
        stack, takes = self._stack, opcode.stack_before
        if not takes:
            if "PUT" in opcode.name:
                self._kept[argument] = stack[-1]
            elif opcode.name == "MARK":
                self._marks.append(len(stack))
            elif opcode.stack_after:
                stack.append(self._kept_as(argument) if "GET" in opcode.name else _EMPTY if "EMPTY" in opcode.name else _ATOM)
            return None if self._uses <= _MOST_USES else f"holds lists that are used again and again, more than {_MOST_USES:,} times"
        is_marked = pickletools.markobject in takes
        start = self._marks.pop() - takes.index(pickletools.markobject) if is_marked else len(stack) - len(takes)
        if start < 0:
            raise IndexError("it takes what is not there")
        inside = stack[start:]
        if opcode.name.rstrip("123") in ("TUPLE", "LIST", "DICT"):
            inside.insert(0, _EMPTY)
        del stack[start:]
        if not inside or not opcode.stack_after:
            return None
        found = sum(items for items, _ in inside), max(inside[0][1], *(1 + depth for _, depth in inside[1:]), 0)
        stack.extend(found for _ in opcode.stack_after)
        if found[0] > _MOST_ITEMS:
            return _VAST
        return None if found[1] <= _MOST_DEPTH else f"holds lists that lie more than {_MOST_DEPTH:,} within one another"

    def _kept_as(self, place: Any) -> tuple[int, int]:
        """Return what was kept in a place, and count its use if it can hold others."""
        found = self._kept.get(place, _ATOM)
        self._uses += found != _ATOM
        return found


def _refuse_vast(path: StrPath, content: Any, error: type[TreeoptError]) -> None:
    """Raise `error` for content that is small on the disk, but vast for those who walk through it.

    Such are containers that share others again and again or hold themselves, and tensors that repeat one stored number.
    """
    items: dict[int, int] = {}  # by the identity of a container: all items in it, shared ones as often as they are met
    around: set[int] = set()
    todo = [(content, False)]
    while todo:
        value, is_done = todo.pop()
        if not is_done and id(value) in items:
            continue
        inside = _items(value)
        if is_done:
            around.discard(id(value))
            items[id(value)] = len(inside) + sum(items.get(id(item), 0) for item in inside)
            if items[id(value)] > _MOST_ITEMS:
                raise error(f"{path} {_VAST}; refused: save less")
        elif id(value) in around:
            raise error(f"{path} holds a list that is in itself; refused: make it again")
        else:
            different = {id(item): item for item in inside}.values()
            for item in different or [value]:
                _refuse_item(path, item, error)
            around.add(id(value))
            todo.append((value, True))
            todo += [(item, False) for item in different if isinstance(item, dict | list | tuple)]


def _refuse_item(path: StrPath, item: Any, error: type[TreeoptError]) -> None:
    if type(item).__name__ == "Tensor" and item.numel() * item.element_size() > item.untyped_storage().nbytes():
        raise error(
            f"{path} holds a tensor of the shape {list(item.shape)} that stores fewer numbers than that; save what its .contiguous() returns"
        )


def _items(value: Any) -> list[Any]:
    """Return what is directly in a list, a tuple or a dict."""
    if isinstance(value, dict):
        return [*value, *value.values()]
    return list(value) if isinstance(value, list | tuple) else []
