"""Provenance: where, with which software and from which inputs a number was measured."""

import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from treespec.errors import counted
from treespec.files.fields import amount, checked_object, count, flag, natural, number, text, texts
from treespec.files.load import load_average, threads

TIMED_ON = ("gpu", "driver", "cpu", "threads", "cores", "load_average", "tensor_parallel", "processes", "hosts", "backend")
"""The fields that say what times were measured on."""

_HEX = re.compile(r"[0-9a-f]{7,64}")


@dataclass(frozen=True)
class Provenance:
    """The facts that are needed to measure a number again. A field that does not apply, or is not known, is None.

    It holds no user name, no host name and no path: a model or data set given by path keeps its last folder name.
    """

    treeopt: str | None = None
    python: str | None = None
    torch: str | None = None
    transformers: str | None = None
    gpu: str | None = None
    driver: str | None = None
    cpu: str | None = None
    threads: int | None = None
    """Threads that torch computes with on the CPU."""
    cores: int | None = None
    """Cores of the machine, of which this process may have been given fewer: `cpu` says how many."""
    load_average: float | None = None
    """Threads of all programs, this one included, that ran or waited to run, on average over the minute before the record was made."""
    models: Mapping[str, str] = field(default_factory=dict)
    """Hub ids by role ("target", "draft"), each followed by @revision if that is known."""
    draft_kind: str | None = None
    """The kind of a draft that is no model of its own, such as "eagle3" or "ngram"; None for a model, and without a draft."""
    quantization: Mapping[str, str] = field(default_factory=dict)
    """The form in which a role's weights were stored, such as "Q4_1, dequantised"; roles with plain numbers are left out."""
    dtype: str | None = None
    offloaded: bool | None = None
    """True if every pass of the target copied its weights from host memory."""
    tensor_parallel: int | None = None
    """Processes that hold the target together; None if one holds it whole."""
    processes: int | None = None
    """Processes of the run; None for one alone. They hold the target together, or share the work with models of their own each: then the other
    fields are those of the first."""
    hosts: int | None = None
    """Machines that these processes are on."""
    backend: str | None = None
    """The library that carries data between processes: nccl or gloo."""
    temperature: float | None = None
    top_p: float | None = None
    dataset: str | None = None
    """Name of the data set, or the last part of its path, with the rows taken: "cnn[0:200]"."""
    seed: int | None = None
    git_commit: str | None = None
    """Commit of the treeopt checkout that measured, with "+" if its files had been changed; None if installed."""
    utc: str | None = None
    """Time in ISO 8601, to the second."""

    @classmethod
    def collect(cls, **known: Any) -> "Provenance":
        """Return the provenance of here and now; `known` fields complete and overrule it.

        In `known`, `models` maps a role to a hub id or a path, and `dataset` is a name or a path; paths are shortened.
        Versions come from package metadata, so that nothing heavy is imported; the GPU and the threads are named if torch is loaded.
        """
        gpu, driver = _gpu()
        found: dict[str, Any] = {
            "treeopt": version_of("treeopt"),
            "python": platform.python_version(),
            "torch": version_of("torch"),
            "transformers": version_of("transformers"),
            "gpu": gpu,
            "driver": driver,
            "cpu": processor(),
            "threads": threads(),
            "cores": os.cpu_count(),
            "load_average": load_average(),
            "git_commit": _git_commit(),
            "utc": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        found |= known
        found["models"] = {role: public_name(name) for role, name in dict(found.get("models") or {}).items()}
        if found.get("dataset") is not None:
            found["dataset"] = public_name(found["dataset"])
        return cls(**found)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON, in which fields that are not known are null."""
        return asdict(self) | {"models": dict(self.models), "quantization": dict(self.quantization)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | None) -> "Provenance":
        """Return the provenance of `to_json`'s result. Keys of later versions are ignored, and missing ones are None.

        Raises TypeError or ValueError for values that no provenance has.
        """
        known = provenance_fields({} if data is None else data)
        return cls(**{key: value for key, value in known.items() if key in _NAMES and value is not None})


_NAMES = [f.name for f in fields(Provenance)]
_READERS = {
    "models": texts,
    "quantization": texts,
    "offloaded": flag,
    "tensor_parallel": natural,
    "processes": natural,
    "hosts": natural,
    "temperature": number,
    "top_p": number,
    "seed": count,
    "threads": natural,
    "cores": natural,
    "load_average": amount,
}

provenance_fields = checked_object({name: _READERS.get(name, text) for name in _NAMES})
"""The reader of a provenance as it is, with keys that `Provenance` does not have."""


def public_name(name: str | os.PathLike[str]) -> str:
    """Return a hub id as it is, and only the last part of a path.

    >>> public_name("JackFram/llama-68m"), public_name("/home/someone/models/draft/")
    ('JackFram/llama-68m', 'draft')
    """
    text = os.fspath(name)
    is_path = not isinstance(name, str) or os.path.isabs(text) or text.startswith((".", "~")) or text.count("/") > 1 or "\\" in text
    if not is_path and not os.path.exists(text):
        return text
    return Path(text).expanduser().resolve().name or "/"


def version_of(package: str) -> str | None:
    """Return the version of an installed package, or None if it is not installed."""
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """Return the name of the processor, from Linux or else from `platform`; it is empty if neither knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def processor() -> str | None:
    """Return the processor's name and, on Linux, the number of cores that this process may use."""
    cores = f", {counted(len(os.sched_getaffinity(0)), 'core')}" if hasattr(os, "sched_getaffinity") else ""
    return cpu_name() + cores or None


def _gpu() -> tuple[str | None, str | None]:
    """Return the names of the GPU in use and of its driver. Nothing is started for it: if torch is not loaded, no GPU is in use."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None, None
    return str(torch.cuda.get_device_name()), _first_output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])


def _git_commit() -> str | None:
    """Return the commit of the folder that treespec was imported from, if that is a checkout of this project."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    commit = _first_output(["git", "-C", str(root), "rev-parse", "HEAD"])
    if commit is None or not _HEX.fullmatch(commit):
        return None
    changed = _first_output(["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"])
    return commit + ("+" if changed else "")


def _first_output(command: list[str]) -> str | None:
    """Return the first line that a command prints, or None if it cannot be run or prints none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0].strip() if lines else None
