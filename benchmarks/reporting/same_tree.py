"""Results of `benchmarks.same_tree`: rules and verifiers on one tree and the same contexts."""

from typing import Any

from benchmarks.reporting.markdown import device, origin, paragraph, section, table, temperature


def same_tree(data: dict[str, Any], command: str, file: str) -> str:
    """Return the section of one file of `benchmarks.same_tree`."""
    rows = data["rows"]
    ways = list(rows[0]["tokens_per_step"])
    compared = [(found["of"], found["from"]) for found in rows[0]["differences"]]
    size, depth = len(rows[0]["parents"]), depth_of(rows[0]["parents"])
    return section(
        f"Drafting rules and verifiers on one tree, on {device(data['provenance'])}",
        origin(data["provenance"], command, file),
        paragraph(
            f"Each row is a temperature, with one tree of {size} nodes and depth {depth} on the same contexts of",
            f"{len(rows[0]['by_text'])} texts: the columns give the expected tokens per step of each rule and verifier, exactly given what was drafted.",
        ),
        table(
            ("temperature", *(way_name(way) for way in ways)),
            [[temperature(row["temperature"]), *(f"{row['tokens_per_step'][way]:.3f}" for way in ways)] for row in rows],
        ),
        paragraph("The columns give paired differences of these, with their standard errors over texts."),
        table(
            ("temperature", *(f"{way_name(of)} - {way_name(start)}" for of, start in compared)),
            [
                [temperature(row["temperature"]), *(f"{one['mean']:+z.3f} ± {one['standard_error']:.3f}" for one in row["differences"])]
                for row in rows
            ],
        ),
    )


def way_name(way: str) -> str:
    """Return what a column calls a rule and verifier: "swor traversal" is "`swor`, traversal"."""
    rule, verifier = way.split()
    return f"`{rule}`, {verifier}"


def depth_of(parents: list[int]) -> int:
    """Return the depth of a tree in edges.

    >>> depth_of([-1, 0, 0, 1])
    2
    """
    depths: list[int] = []
    for parent in parents:
        depths.append(0 if parent < 0 else depths[parent] + 1)
    return max(depths)
