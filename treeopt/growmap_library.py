"""The growmaps that come with treeopt: their catalogue, their files, and how each is derived from recorded profiles.

`python -m treeopt.growmap_library --out growmaps` (`make growmaps`) derives all of them anew. The profiles are in
`growmaps/profiles/`; each says where its numbers are from.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from treeopt.growmap_making import Limits, generate
from treeopt.profiles.acceptance import read_acceptance
from treeopt.profiles.latency import read_latency
from treespec.decoding.step_rule import GREEDY
from treespec.errors import GrowMapError, TreeoptError, nearest
from treespec.files.provenance import Provenance
from treespec.files.reading import StrPath
from treespec.files.writing import make_folder, write_bytes
from treespec.trees.growmap import GrowMap, read_sidecar
from treespec.trees.library import PACKAGE

SIZES = (16, 32, 64, 128, 256, 512)
"""Tree sizes of the growmaps of every pair and temperature."""

UNTIMED_DEPTHS: Mapping[str, Mapping[int, int]] = {
    "68m_7b": {256: 10, 512: 12},
    "68m_7b-T0.2": {256: 9, 512: 11},
    "68m_7b-T0.6": {256: 8, 512: 8},
    "68m_7b-T1.0": {256: 6, 512: 6},
    "68m_13b-T0.6": {16: 5, 32: 6, 64: 6, 128: 7, 256: 7, 512: 8},
}
"""Depth bounds by acceptance profile and size, for sizes whose target pass has no published time.

They are the depths of least time per token if that pass took as long as the 7B's over 128 nodes, the largest published one. It
takes longer, and the longer a target pass, the more drafted levels pay: these trees are too shallow rather than too deep.
"""


@dataclass(frozen=True)
class Entry:
    """A growmap of the library and the question that it answers.

    `acceptance` and `latency` name profiles: `profiles/NAME.acceptance.json`, `profiles/NAME.latency.json`. The tree has
    exactly `size` nodes, or the fastest number of nodes if `size` is None, and at most `max_depth` edges from the root. Among
    those depths, the fastest is taken if there is a latency, else the one with the most expected tokens per step.
    """

    name: str
    acceptance: str
    latency: str | None = None
    size: int | None = None
    max_depth: int | None = None


def _entries(acceptance: str, latency: str | None) -> Iterator[Entry]:
    """Yield an entry for every size of a pair at a temperature, then one for the fastest size if there are times."""
    untimed = UNTIMED_DEPTHS.get(acceptance, {})
    for size in SIZES:
        yield Entry(f"{acceptance}-{size}", acceptance, None if size in untimed else latency, size, untimed.get(size))
    if latency is not None:
        gpu = latency.rpartition("-")[2]
        yield Entry(acceptance if acceptance.endswith(f"-{gpu}") else f"{acceptance}-{gpu}", acceptance, latency)


CATALOGUE: Mapping[str, Entry] = {
    entry.name: entry
    for acceptance, latency in (
        ("68m_7b", "68m_7b-l40"),
        ("68m_7b-T0.2", "68m_7b-l40"),
        ("68m_7b-T0.6", "68m_7b-l40"),
        ("68m_7b-T1.0", "68m_7b-l40"),
        ("68m_13b-T0.6", None),
        ("embedded-h200", "embedded-h200"),
    )
    for entry in _entries(acceptance, latency)
}
"""Entries by name. `PAIR-SIZE` is for temperature 0, `PAIR-T0.6-SIZE` for 0.6; `PAIR-GPU` has the size that is fastest on that GPU."""


def folder() -> Path:
    """Return the folder of the growmaps: the installed package `treeopt.growmaps`."""
    return Path(str(files(PACKAGE)))


def find(name: str) -> Path:
    """Return the file of a growmap by its name. Raises GrowMapError for a name that is not in the catalogue."""
    if name not in CATALOGUE:
        near = nearest(name.removesuffix(".pt"), CATALOGUE, 3)
        remedy = f"did you mean {' or '.join(near)}? " if near else "check the path; "
        raise GrowMapError(
            f"there is no file {name}, and no growmap of that name comes with treeopt; {remedy}`treeopt inspect --list` lists them"
        )
    return folder() / f"{name}.pt"


def shipped() -> dict[str, GrowMap]:
    """Return every growmap of the catalogue by its name, from its sidecar. Raises GrowMapError if one cannot be read."""
    return {name: read_sidecar(find(name)) for name in CATALOGUE}


def derive(entry: Entry, profiles: Path | None = None) -> GrowMap:
    """Return the growmap of an entry, made from its profiles in a folder (by default those that come with treeopt).

    The times are those of greedy steps, at all temperatures: only these were published. It is the same wherever it is derived: its metadata
    say where the profiles are from, its provenance has what is known of the models and the measured rows, and nothing of the machine that
    derived it. Raises ProfileError, OptimizerError.
    """
    home = folder() / "profiles" if profiles is None else profiles
    acceptance = home / f"{entry.acceptance}.acceptance.json"
    latency = None if entry.latency is None else home / f"{entry.latency}.latency.json"
    made = generate(acceptance, latency=latency, limits=Limits(size=entry.size, max_depth=entry.max_depth), rule=GREEDY).growmap
    profile, times = read_acceptance(acceptance), None if latency is None else read_latency(latency)
    metadata = {
        "name": entry.name,
        **made.metadata,
        "max_depth": entry.max_depth,
        "source": _source(profile.provenance),
        "latency_source": None if times is None else _source(times.provenance),
    }
    known = {key: getattr(made.provenance, key) for key in ("models", "dtype", "temperature", "top_p", "dataset", "seed")}
    gpu = None if times is None else (times.provenance or {}).get("gpu")
    return replace(made, metadata=metadata, provenance=Provenance(gpu=gpu, **known))


def _source(provenance: Mapping[str, Any] | None) -> str:
    """Return who measured a profile: its own source, else treeopt on the hardware that it names."""
    known = provenance or {}
    return str(known.get("source") or f"treeopt on {known.get('gpu') or known.get('cpu') or 'unknown hardware'}")


def build(out: StrPath, progress: Callable[[str], None] = lambda line: None) -> None:
    """Derive every growmap and write it into a folder, with a README.md that lists them. Each file is written whole or not at all.

    Raises ProfileError, OptimizerError, OutputError.
    """
    home = make_folder(out)
    made: dict[str, GrowMap] = {}
    for number, entry in enumerate(CATALOGUE.values(), 1):
        made[entry.name] = derive(entry)
        made[entry.name].write(home / f"{entry.name}.pt")
        progress(f"{number}/{len(CATALOGUE)} {entry.name}")
    write_bytes(home / "README.md", readme(made).encode())


def readme(growmaps: Mapping[str, GrowMap]) -> str:
    """Return the README.md of a folder of growmaps: an introduction, a row for each growmap, and the sources of their numbers."""
    rows = []
    for name, growmap in growmaps.items():
        data, tree = growmap.metadata, growmap.tree
        seconds, speedup = data["predicted_seconds_per_step"], data["predicted_speedup"]
        cells = (
            f"`{name}`",
            f"{data['drafting']}, {data['temperature']:g}",
            tree.size,
            tree.depth,
            f"{data['expected_tokens_per_step']:.4f}",
            "-" if seconds is None else f"{1e3 * seconds:.2f}",
            "-" if speedup is None else f"{speedup:.2f} x",
            data["source"].rpartition(", ")[2],
        )
        rows.append(f"| {' | '.join(map(str, cells))} |")
    sources = sorted({data[key] for data in (g.metadata for g in growmaps.values()) for key in ("source", "latency_source") if data[key]})
    return _README.format(rows="\n".join(rows), sources="\n".join(f"- {source}" for source in sources))


_README = """# Growmaps that come with treeopt

`treeopt evaluate --growmap NAME` and `treeopt inspect NAME` take them by name; `treeopt inspect --list` prints this table.
All were derived by treeopt from the profiles in `profiles/`. `make growmaps` derives them anew and writes this file; a test holds
every one against its profile.

- `68m_7b` is JackFram/llama-68m for Llama-2-7B, `68m_13b` the same for Llama-2-13B: others measured the acceptance and the times,
  and published them. `-T0.6` is the temperature; names without one are for greedy decoding.
- `embedded-h200` is the embedded pair grown to the shapes of Llama-2-7B and llama-68m (`benchmarks/inflate.py`), measured by treeopt.
- A number at the end is the exact size. Its depth is the one of least predicted time per token. Where no time of such a target
  pass is published (256 and 512 nodes, and the 13B), that of the 7B over 128 nodes stands in for choosing the depth, and no time
  is predicted: a longer pass would pay for a little more depth.
- Without a number the size is the fastest among those measured too: on an NVIDIA H200 for `embedded-h200`, on a GPU of the L40's
  class for `-l40`. Published times end at 128 nodes, which is what they choose.

Predictions are of the machines that were measured, and the published ones leave out what a step does beside its passes. Measure
your own: `treeopt profile`, then `treeopt grow`.

| name | drafting, temperature | size | depth | expected tokens per step | predicted ms per step | predicted speed-up | source |
|---|---|---|---|---|---|---|---|
{rows}

Measured by:

{sources}
"""


def main() -> None:
    """Build the library of growmaps."""
    parser = argparse.ArgumentParser(prog="python -m treeopt.growmap_library", description="Derive every growmap that comes with treeopt.")
    parser.add_argument("--out", type=Path, default=folder(), help="folder to write to (default: the installed one)")
    try:
        build(parser.parse_args().out, lambda line: print(line, file=sys.stderr, flush=True))
    except TreeoptError as e:
        sys.exit(f"error: {e}")


if __name__ == "__main__":
    main()
