"""Results of `benchmarks.decoding`: four decoders side by side."""

from typing import Any

from benchmarks.reporting.markdown import day, device, origin, paragraph, section
from benchmarks.reporting.side_by_side import side_by_side


def decoding(data: dict[str, Any], command: str, file: str) -> str:
    """Return the section of one file of `benchmarks.decoding`."""
    tree, predicted = data["tree"], data["predicted"]
    names = {
        "treeopt autoregressive": "treeopt, autoregressive",
        "treeopt tree": f"treeopt, the tree it chose, {tree['size']} nodes, depth {tree['depth']}",
    }
    return section(
        f"Four decoders on {device(data['provenance'])}, {day(data['provenance'])}",
        origin(data["provenance"], command, file),
        side_by_side(data["systems"], "treeopt autoregressive", names.__getitem__),
        paragraph(
            f"For the tree that it chose, treeopt had predicted {predicted['tokens_per_step']:.2f} tokens per step,",
            f"{1e3 * predicted['seconds_per_step']:.2f} ms per step and {predicted['speedup']:.2f} x autoregressive decoding.",
        ),
    )
