"""The memory limits of the process: large libraries end the process, or never end, where they do not fit; so they are not loaded there."""

import importlib.machinery
import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

_LIMITS = (("RLIMIT_AS", "VmSize", "ulimit -v"), ("RLIMIT_DATA", "VmData", "ulimit -d"))
"""Limits of a process: the name of each in `resource`, that of what counts in /proc/self/status, and the command that sets it."""
_HEADROOM = {"numpy": (60, 20), "scipy": (60, 20), "torch": (160, 130), "transformers": (580, 300), "datasets": (170, 40)}
"""MiB that a library takes of each of these limits, beside its files of machine code and the threads of its BLAS."""
_LIBRARY = {"scipy.linalg": "scipy", "scipy.special": "scipy"} | {name: name for name in ("numpy", "torch", "transformers", "datasets")}
"""The modules before which there is a look at the limits. With those of numpy and scipy a BLAS is loaded: where it finds no memory it tries
for ever, and Ctrl-C does not reach Python."""
_BLAS_THREAD = 40
"""MiB that a BLAS takes for each of its threads."""
_MOST_BLAS_THREADS = 64


class _Watch:
    """A finder that finds nothing: it looks at the memory limits before a large library is loaded for the first time."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name in _LIBRARY:
            require_memory(_LIBRARY[name])
        return None


def watch_imports() -> None:
    """Have imports of large libraries raise MemoryError, with the reason, where a memory limit leaves no room for them."""
    sys.meta_path.insert(0, _Watch())


@dataclass(frozen=True)
class _Limit:
    """A limit of the process's memory and how much of it is used, in bytes."""

    bytes: int
    used: int
    command: str

    def __str__(self) -> str:
        return f"memory is full: this process may use {round(self.bytes / 1e6)} MB (`{self.command}`)"


def require_memory(library: str) -> None:
    """Raise MemoryError if a limit of the process's memory (`ulimit -v`, `ulimit -d`) leaves no room for a library."""
    for headroom, limit in zip(_HEADROOM[library], _limits(), strict=True):
        if limit is None:
            continue
        needed = limit.used + ((headroom + _blas_threads(library) * _BLAS_THREAD) << 20)
        if limit.command == "ulimit -v":
            needed += _code_bytes(library)
        if limit.bytes < needed:
            raise MemoryError(f"{limit}, and with {library} it needs {round(needed / 1e6)} MB or more; raise that limit")


def memory_is_full() -> str:
    """Return a sentence for a person whose memory is full, which names the limit if the process has one."""
    tightest = min(filter(None, _limits()), key=lambda limit: limit.bytes - limit.used, default=None)
    smaller = "use a smaller batch, tree, context or model"
    return f"memory is full; {smaller}" if tightest is None else f"{tightest}; raise that limit, or {smaller}"


def _limits() -> list[_Limit | None]:
    """Return each of the limits, or None where there is none."""
    try:
        import resource
    except ImportError:  # Windows
        return [None for _ in _LIMITS]
    softs = [resource.getrlimit(getattr(resource, name))[0] for name, _, _ in _LIMITS]
    return [
        None if soft == resource.RLIM_INFINITY else _Limit(soft, _used(counted), command)
        for soft, (_, counted, command) in zip(softs, _LIMITS, strict=True)
    ]


def _used(counted: str) -> int:
    """Return the memory in use in bytes, as Linux counts it; 0 elsewhere."""
    try:
        found = re.search(rf"^{counted}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii", errors="replace"), re.MULTILINE)
    except OSError:
        return 0
    return int(found.group(1)) << 10 if found else 0


def _code_bytes(library: str) -> int:
    """Return the size of a library's files of machine code, which are loaded with it."""
    spec = None if library != "torch" else importlib.machinery.PathFinder.find_spec(library)
    folder = Path(spec.origin).parent / "lib" if spec is not None and spec.origin else None
    return 0 if folder is None else sum(path.stat().st_size for path in folder.glob("*.so*"))


def _blas_threads(library: str) -> int:
    """Return the number of threads of the BLAS that a library loads."""
    if library not in ("numpy", "scipy"):
        return 0
    wished = next((os.environ[name] for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS") if os.environ.get(name, "").isdecimal()), "")
    cores = os.cpu_count() or 1
    return min(int(wished[:9] or 0) or cores, cores, _MOST_BLAS_THREADS)
