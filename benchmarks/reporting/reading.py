"""How to read docs/results.md: what is explained once for the whole page, and the tables that stand in more than one section."""

from benchmarks.reporting import audit, engine, loop, predictions, rules, sampling, side_by_side
from benchmarks.reporting.markdown import bullets, parts
from benchmarks.reporting.verdicts import MARK

TITLE = "How to read the tables"

WORDS = (
    "The [glossary](glossary.md) explains the terms.",
    "A figure is *measured* unless its column or sentence says *predicted* or *expected*. A predicted figure was computed from the"
    " profiles before anything was decoded. In the [summary](#summary), it stands in brackets.",
    f"{MARK}stands before a figure that misses its goal, and before a speed-up below 1; the words beside it or below the table say what was missed."
    " Figures are compared with their goals before they are rounded. [benchmarks/log/goals.md](../benchmarks/log/goals.md) says why goals were missed.",
    '"2 x" something is twice its rate or speed; below 1 x is slower. "4.46 [3.11, 6.77]" is a figure with its 95 % interval over prompts,'
    ' and "0.674 ± 0.021" one with its standard error. A tree "(64, 8)" has 64 nodes and depth 8. "128 + 128 tokens" are those of the prompt and those'
    " that were generated. An empty cell: nothing was measured, predicted or set there.",
    "No run had the weights of a large model. `embedded-target` and `embedded-draft` are the [tiny pair](embedded-pair.md) that comes with treeopt."
    " A name that begins with `inflated-` is one of these two inside the matrices of a large model, by default Llama-2-7B and llama-68m: it writes what"
    " the tiny one writes, at the cost of the large one. Models with random weights show what a pass costs and nothing else.",
    "The prompts `stdlib[34:48]` are from rows 34 to 47 of the data set [`stdlib`](commands.md#data-sets), the source text of Python's own library. Rows"
    " that are too short give no prompt.",
    "Where the code of a run had changes that were not committed, its commit alone does not give that code.",
)
"""What holds for the whole page."""

TABLES = {
    side_by_side.TITLE: side_by_side.HOW_TO_READ,
    **engine.HOW_TO_READ,
    **rules.HOW_TO_READ,
    **predictions.HOW_TO_READ,
    **sampling.HOW_TO_READ,
    **loop.HOW_TO_READ,
    **audit.HOW_TO_READ,
}
"""What the columns of a table are, by the title of the table; each is explained here and nowhere else."""


def reading() -> str:
    """Return the section."""
    tables = [f"### {title}\n\n{text}" for title, text in TABLES.items()]
    return parts(f"## {TITLE}", bullets(WORDS), *tables)
