"""The picture of an audit: what was predicted beside what was measured, and how fast each tree is beside the picked one.

`python -m benchmarks.audit_picture AUDIT.json PICTURE.svg` draws what `benchmarks.audit` wrote; a name that ends in `.png` gives a PNG.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treeopt.pictures.canvas import INK, LINES, MARKERS, MUTED, SERIES, Canvas
from treespec.files.writing import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = {
    "best": "best of a size",
    "grid": "best of a size and a depth",
    "chain": "chain",
    "k-ary": "k-ary",
    "published": "published growmap",
    "picked": "the picked tree",
}
"""The kinds of trees, in the order of the legend, and their names there."""
Row = dict[str, Any]


def picture(data: dict[str, Any]) -> Canvas:
    """Return the picture of an audit's file."""

    def draw(figure: "Figure") -> None:
        left, right = figure.subplots(1, 2)
        _predictions(left, [row for row in data["rows"] if row["audited"]])
        _speeds(right, data["rows"])

    audited = sum(row["audited"] for row in data["rows"])
    return Canvas(11, 4.6, draw, f"Predicted and measured tokens per step of {audited} trees, and the speed of {len(data['rows'])} trees")


def _style(kind: str) -> dict[str, Any]:
    place = list(KINDS).index(kind)
    return {"color": SERIES[place], "marker": MARKERS[place], "linestyle": "none", "label": KINDS[kind], "markersize": 6}


def _predictions(axes: "Axes", rows: list[Row]) -> None:
    """Draw measured tokens per step over predicted ones, both with their intervals; on the line they are equal."""
    for kind in KINDS:
        own = [row for row in rows if row["kind"] == kind]
        if not own:
            continue
        told = [row["predicted"]["tokens_per_step"] for row in own]
        found = [row["measured"]["tokens_per_step"] for row in own]
        across = [row["predicted"]["tokens_interval_95"] for row in own]
        up = [row["measured"]["tokens_per_step_interval_95"] or [value] * 2 for row, value in zip(own, found, strict=True)]
        axes.errorbar(told, found, xerr=_errors(told, across), yerr=_errors(found, up), elinewidth=0.8, **_style(kind))
    ends = [end for row in rows for end in row["predicted"]["tokens_interval_95"]]
    axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color=MUTED, linestyle=LINES[1], linewidth=1)
    axes.set(title="Tokens per step", xlabel="predicted from other prompts, with 95 % intervals", ylabel="measured, with 95 % intervals")
    axes.legend(loc="upper left")


def _speeds(axes: "Axes", rows: list[Row]) -> None:
    """Draw the tokens per second of every tree, in those of the picked one, over its size."""
    for kind in KINDS:
        own = [row for row in rows if row["kind"] == kind]
        if own:
            axes.plot([row["size"] for row in own], [row["measured"]["over_picked"] for row in own], **_style(kind))
    axes.axhline(1, color=INK, linestyle=LINES[1], linewidth=1)
    sizes = sorted({row["size"] for row in rows})
    axes.set_xscale("log", base=2)
    ticks = [2**power for power in range(1, 12) if sizes[0] <= 2**power <= sizes[-1]]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set(title="Speed beside the picked tree", xlabel="nodes", ylabel="tokens per second, in those of the picked tree")
    axes.legend(loc="best")


def _errors(values: list[float], ends: list[list[float]]) -> list[list[float]]:
    """Return the distances of values from the lower and the upper ends of their intervals."""
    pairs = list(zip(values, ends, strict=True))
    return [[max(0.0, value - low) for value, (low, _) in pairs], [max(0.0, high - value) for value, (_, high) in pairs]]


def main() -> None:
    """Read an audit, write its picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audit", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    drawn = picture(json.loads(options.audit.read_text()))
    write_bytes(options.picture, drawn.png() if options.picture.suffix == ".png" else drawn.svg())


if __name__ == "__main__":
    main()
