"""Results of `benchmarks.same_tree`: rules and verifiers on one tree and the same contexts."""

from benchmarks.reporting.markdown import counted, device, origin, paragraph, parts, table, temperature
from benchmarks.reporting.run import Data, Kind, Run
from benchmarks.reporting.ways import MATCHING, verifier_of, way_name
from treespec.errors import listed


def _headlines(data: Data) -> list[str]:
    hottest = max(data["rows"], key=lambda row: float(row["temperature"]))
    found = hottest["tokens_per_step"]
    values = [row["temperature"] for row in data["rows"]]
    most, least = (f"{found[way]:.2f} for {way_name(way, values)}" for way in (max(found, key=found.get), min(found, key=found.get)))
    return [f"expected tokens per step at temperature {temperature(hottest['temperature'])}: {most}, {least}"]


def _matched(data: Data) -> str:
    """Return the sentence on columns that name another verifier although, at some temperatures, nothing was sampled and matching decided."""
    values = [row["temperature"] for row in data["rows"]]
    matched: dict[str, list[str]] = {}
    for way in data["rows"][0]["tokens_per_step"]:
        rule, verifier = way.split()
        at = [temperature(value) for value in values if verifier_of(rule, verifier, value) == MATCHING]
        if at and len(at) < len(values):
            matched[f"`{rule}`"] = at
    return " ".join(f"At temperature {listed(at)}, {rule} samples nothing, and matching verifies it too." for rule, at in matched.items())


def _body(run: Run) -> str:
    data = run.data
    rows = data["rows"]
    ways, values = list(rows[0]["tokens_per_step"]), [row["temperature"] for row in rows]
    compared = [(found["of"], found["from"]) for found in rows[0]["differences"]]
    size, depth = len(rows[0]["parents"]), depth_of(rows[0]["parents"])
    return parts(
        origin(data["provenance"], run.command, run.file),
        paragraph(
            f"Each row is a temperature, with one tree of {counted(size, 'node')} and depth {depth} on the same contexts of",
            f"{counted(len(rows[0]['by_text']), 'text')}. The columns give the expected tokens per step of each rule and verifier, computed exactly from",
            "what was drafted; no time is measured.",
            _matched(data),
        ),
        table(
            ("temperature", *(way_name(way, values) for way in ways)),
            [[temperature(row["temperature"]), *(f"{row['tokens_per_step'][way]:.3f}" for way in ways)] for row in rows],
        ),
        paragraph("The columns give paired differences of these, with their standard errors over texts."),
        table(
            ("temperature", *(f"{way_name(of, values)} - {way_name(start, values)}" for of, start in compared)),
            [
                [temperature(row["temperature"]), *(f"{one['mean']:+z.3f} ± {one['standard_error']:.3f}" for one in row["differences"])]
                for row in rows
            ],
        ),
    )


def depth_of(parents: list[int]) -> int:
    """Return the depth of a tree in edges.

    >>> depth_of([-1, 0, 0, 1])
    2
    """
    depths: list[int] = []
    for parent in parents:
        depths.append(0 if parent < 0 else depths[parent] + 1)
    return max(depths)


SAME_TREE = Kind(
    title=lambda data: f"Drafting rules and verifiers on one tree, on {device(data['provenance'])}",
    body=_body,
    headlines=_headlines,
    prompts=lambda data: len(data["rows"][0]["by_text"]),
)
"""What a file of `benchmarks.same_tree` says."""
