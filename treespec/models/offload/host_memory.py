"""Host memory: its available size, and blocks of it that a GPU copies from at full speed."""

import mmap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from treespec.errors import ModelError


def gib(count: int) -> str:
    """Format a number of bytes in GiB.

    >>> gib(26 << 30)
    '26.0 GiB'
    """
    return f"{count / 2**30:.1f} GiB"


def available_bytes(root: Path = Path("/")) -> int | None:
    """Return the bytes that can be used without swapping, by machine and by the process's control group; None if unknown (not Linux)."""
    limits = []
    meminfo = root / "proc/meminfo"
    if meminfo.exists():
        fields = dict(line.split(":") for line in meminfo.read_text(encoding="ascii").splitlines())
        limits += [int(fields["MemAvailable"].split()[0]) << 10] if "MemAvailable" in fields else []
    group = root / "sys/fs/cgroup"
    if (group / "memory.max").exists() and (most := (group / "memory.max").read_text(encoding="ascii").strip()) != "max":
        fields = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        cached = sum(int(fields.get(name, 0)) for name in ("inactive_file", "active_file"))  # given back when it is needed
        limits.append(max(0, int(most) - int((group / "memory.current").read_text(encoding="ascii")) + cached))
    return min(limits, default=None)


def require(needed: int, name: str) -> None:
    """Raise ModelError if the host does not have `needed` bytes for the weights of `name`."""
    available = available_bytes()
    if available is not None and needed > available:
        raise ModelError(
            f"{name}: its weights need {gib(needed)} of host memory to be streamed from, but {gib(available)} are available; use a smaller "
            "`dtype` or model (weights that exceed host memory would have to come from disk, which is not supported)"
        )


def block(count: int) -> Tensor:
    """Return uint8 [count] on memory pages of its own."""
    return torch.frombuffer(mmap.mmap(-1, max(count, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=torch.uint8)[:count]


def pin(memory: Tensor) -> None:
    """Lock the pages of a block, and no more: torch's own pinned tensors take the next power of two. Raises ModelError."""
    failed = int(_cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, 0))
    if failed:
        available = available_bytes()
        known = "" if available is None else f" ({gib(available)} are available)"
        raise ModelError(
            f"{gib(memory.nbytes)} of host memory cannot be pinned{known}: CUDA error {failed}; free host memory, or use a smaller `dtype` or model"
        )


def unpin(memory: Tensor) -> None:
    """Undo `pin`. Rule: call it before the block is freed. Raises RuntimeError."""
    failed = int(_cudart().cudaHostUnregister(memory.data_ptr()))
    if failed:
        raise RuntimeError(f"{gib(memory.nbytes)} of host memory cannot be unpinned: CUDA error {failed}")


def _cudart() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
