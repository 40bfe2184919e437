"""Predict what a target gains that N GPUs hold together, and when its tree stops paying: a model on paper, to be refuted by measuring.

`python -m benchmarks.tensor_parallel --out FILE` takes the times of one GPU in a file of `benchmarks.engine`, and the chances of its draft. A pass of
one GPU over m tokens takes T(m) seconds. Of these, `fixed` are spent on what no division makes shorter (launches, waits, norms): what a pass of one
token takes beyond reading the weights. The rest is divided, and the processes join their results:

    T_N(m) = fixed + (T(m) - fixed) / N + 2 L A_N(m H 2 bytes) + G_N(m V 2 bytes)

L layers of width H have two all-reduces each, and the logits of V tokens are gathered once. A ring passes its parts on 2 (N - 1) times to reduce and N - 1
times to gather:

    A_N(b) = launch + 2 (N - 1) (hop + b / (N bandwidth))
    G_N(b) = launch + (N - 1) (hop + b / (N bandwidth))

`launch`, `hop` and `bandwidth` are assumed, not measured: those of NVLink 4 between eight H100 or H200 GPUs (450 GB/s in each direction, of which a
collective reaches some 80 %). The draft is whole in every process, so its passes cost what they cost on one GPU. B prompts per process, each
with a tree of n nodes, are taken as one pass over B n tokens, for which all contexts count as one: the longer they are, the less that is so.
"""

import argparse
import json
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from treeopt.optimizer.search import optimize
from treeopt.profiles.acceptance import AcceptanceProfile
from treeopt.profiles.latency import LatencyProfile
from treeopt.profiles.latency_model import LatencyModel
from treeopt.profiles.samples import LatencySample
from treespec.files.writing import write_json

MEASURED = Path(__file__).parent / "results" / "engine-h200.json"
PROCESSES, PROMPTS = (1, 2, 4, 8), (1, 4, 16, 64)
PAYS = 1.05
"""The least speed-up over decoding without a tree at which a tree counts as paying."""


@dataclass(frozen=True)
class Link:
    """The assumed times of what the processes say to one another."""

    launch_seconds: float = 4e-6
    """Time of a collective beside its hops."""
    hop_seconds: float = 1e-6
    """Time from one GPU to the next for a message without content."""
    bytes_per_second: float = 0.8 * 450e9

    def all_reduce(self, processes: int, size: float) -> float:
        """Return the seconds to add up `size` bytes of so many processes."""
        return self._rounds(2 * (processes - 1), processes, size)

    def gather(self, processes: int, size: float) -> float:
        """Return the seconds to put `size` bytes together, of which each process has its part."""
        return self._rounds(processes - 1, processes, size)

    def _rounds(self, hops: int, processes: int, size: float) -> float:
        return 0.0 if processes == 1 else self.launch_seconds + hops * (self.hop_seconds + size / processes / self.bytes_per_second)


@dataclass(frozen=True)
class Target:
    """The sizes of a target that decide what its processes exchange."""

    layers: int = 32
    width: int = 4096
    vocabulary: int = 32_000
    bytes_per_number: int = 2


def divided_seconds(tokens: int, one: LatencyModel, fixed: float, processes: int, target: Target, link: Link) -> float:
    """Return the predicted seconds of a pass over so many tokens. `one` are the times of one GPU; see the head of the file."""
    whole = one.target_seconds(tokens)
    own = fixed + (whole - fixed) / processes
    states, logits = (tokens * numbers * target.bytes_per_number for numbers in (target.width, target.vocabulary))
    return own + 2 * target.layers * link.all_reduce(processes, states) + link.gather(processes, logits)


def profile_of(one: LatencyModel, fixed: float, processes: int, prompts: int, target: Target, link: Link) -> LatencyProfile:
    """Return the predicted times of trees, of so many prompts at once, on so many processes."""
    most = one.largest_size // prompts
    sizes = [size for size, _ in one.target if size <= most] or [1]
    widths = [width for width, _ in one.draft if width * prompts <= one.largest_width] or [1]
    context = one.context

    def point(nodes: int, seconds: float) -> LatencySample:
        return LatencySample(nodes, context, (seconds,))

    return LatencyProfile(
        tuple(point(size, divided_seconds(size * prompts, one, fixed, processes, target, link)) for size in sizes),
        tuple(point(width, one.draft_seconds(min(width * prompts, one.largest_width))) for width in widths),
        (one.overhead_seconds,),
        autoregressive_overhead_seconds=(one.autoregressive_seconds() - one.target_seconds(1),),
    )


def predictions(one: LatencyModel, weights_seconds: float, chances: tuple[float, ...], target: Target, link: Link) -> list[dict[str, Any]]:
    """Return a row for each number of processes and of prompts: the pass of one token and the best tree. `weights_seconds`: to read the weights once."""
    fixed = max(0.0, one.target_seconds(1) - weights_seconds)
    acceptance = AcceptanceProfile("topk", 0.0, 1.0, chances, max(0.0, 1 - sum(chances)), (), 1000, 10)
    rows = []
    for prompts in PROMPTS:
        alone: float | None = None
        for processes in PROCESSES:
            profile = profile_of(one, fixed, processes, prompts, target, link)
            best, token = optimize(acceptance, latency=profile), profile.at_context().autoregressive_seconds()
            rate = token if best.tree.size == 1 else (best.predicted_seconds_per_step or token) / best.expected_tokens_per_step
            alone = rate if alone is None else alone
            rows.append(
                {
                    "processes": processes,
                    "prompts": prompts,
                    "token_seconds": token,
                    "joining_seconds": divided_seconds(prompts, one, fixed, processes, target, link)
                    - fixed
                    - (one.target_seconds(prompts) - fixed) / processes,
                    "size": best.tree.size,
                    "depth": best.tree.depth,
                    "tokens_per_step": best.expected_tokens_per_step,
                    "seconds_per_token": rate,
                    "speedup": token / rate,
                    "over_one_process": alone / rate,
                }
            )
    return rows


def measured(path: Path) -> tuple[LatencyModel, float, tuple[float, ...], dict[str, Any]]:
    """Return the times of one GPU, the seconds to read the weights, the draft's chances and the provenance of a file of `benchmarks.engine`."""
    data = json.loads(path.read_text(encoding="utf-8"))
    latency = data["latency"]

    def points(key: str, unit: str) -> tuple[tuple[int, float], ...]:
        return tuple((point[unit], statistics.median(point["seconds"])) for point in latency[key])

    model = LatencyModel(
        context=latency["target"][0]["context"],
        target=points("target", "size"),
        draft=points("draft", "width"),
        overhead_seconds=statistics.median(latency["overhead_seconds"]),
        autoregressive_overhead_seconds=statistics.median(latency["autoregressive_overhead_seconds"]),
    )
    token = next(row for row in data["rows"] if row["what"] == "autoregressive token")
    return model, token["floor_ms"] / 1e3, tuple(data["rank_probability"]), data["provenance"]


def table_of(rows: list[dict[str, Any]]) -> Table:
    """Return the rows as a table."""
    table = Table(title="predicted, not measured")
    for column in ("prompts", "N", "token, ms", "of it joining", "best tree", "tokens per step", "speed-up of the tree", "x one process"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            str(row["prompts"]),
            str(row["processes"]),
            f"{1e3 * row['token_seconds']:.2f}",
            f"{1e3 * row['joining_seconds']:.2f}",
            f"({row['size']}, {row['depth']})",
            f"{row['tokens_per_step']:.2f}",
            f"{row['speedup']:.2f}" + ("" if row["speedup"] >= PAYS else " (does not pay)"),
            f"{row['over_one_process']:.2f}",
        )
    return table


def main() -> None:
    """Predict, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", type=Path, default=MEASURED, help="file of benchmarks.engine")
    parser.add_argument("--launch", type=float, default=Link.launch_seconds, help="seconds of a collective beside its hops")
    parser.add_argument("--hop", type=float, default=Link.hop_seconds, help="seconds of a hop without content")
    parser.add_argument("--bandwidth", type=float, default=Link.bytes_per_second, help="bytes per second from one GPU to the next")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    link, target = Link(arguments.launch, arguments.hop, arguments.bandwidth), Target()
    one, weights_seconds, chances, made = measured(arguments.measured)
    rows = predictions(one, weights_seconds, chances, target, link)
    Console(width=130).print(table_of(rows))
    if arguments.out is not None:
        known = {"rows": rows, "link": asdict(link), "target": asdict(target), "weights_seconds": weights_seconds}
        write_json(arguments.out, known | {"file": arguments.measured.name, "provenance": made})
        print(f"wrote {arguments.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
