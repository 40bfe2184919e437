"""The memory limit of the process: large libraries end the process, or never end, where they do not fit; so they are not loaded there."""

import importlib.machinery
import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

_HEADROOM_BYTES = {"torch": 160 << 20, "transformers": 512 << 20}
"""Address space that a library takes beside its files of machine code."""


class _Watch:
    """A finder that finds nothing: it looks at the memory limit before a large library is loaded for the first time."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name in _HEADROOM_BYTES:
            require_memory(name)
        return None


def watch_imports() -> None:
    """Have imports of large libraries raise MemoryError, with the reason, where the memory limit leaves no room for them."""
    sys.meta_path.insert(0, _Watch())


def require_memory(library: str) -> None:
    """Raise MemoryError if the limit of the process's address space (`ulimit -v`) leaves no room for a library."""
    limit = _limit()
    if limit is None:
        return
    needed = _used() + _HEADROOM_BYTES[library] + _code_bytes(library)
    if limit < needed:
        raise MemoryError(
            f"memory is full: this process may use {_mb(limit)} MB (`ulimit -v`), and with {library} it needs {_mb(needed)} MB or more; raise that limit"
        )


def _limit() -> int | None:
    """Return the limit of the address space in bytes, or None if there is none."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def _used() -> int:
    """Return the address space in use in bytes, as Linux counts it; 0 elsewhere."""
    try:
        found = re.search(r"^VmSize:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii", errors="replace"), re.MULTILINE)
    except OSError:
        return 0
    return int(found.group(1)) << 10 if found else 0


def _code_bytes(library: str) -> int:
    """Return the size of a library's files of machine code, which are loaded with it."""
    spec = None if library != "torch" else importlib.machinery.PathFinder.find_spec(library)
    folder = Path(spec.origin).parent / "lib" if spec is not None and spec.origin else None
    return 0 if folder is None else sum(path.stat().st_size for path in folder.glob("*.so*"))


def _mb(size: int) -> int:
    return round(size / 1e6)
