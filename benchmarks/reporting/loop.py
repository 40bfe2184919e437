"""Results of `benchmarks.loop`: how long people wait for each command of the loop, and for all of it in one process."""

from typing import Any

from benchmarks.reporting.markdown import device, link, origin, paragraph, parts, table
from benchmarks.reporting.run import Data, Kind, Run
from benchmarks.reporting.verdicts import Check, Goal, verdict

ONE = "in one process"
GOALS = {
    "profile acceptance": Goal(25, "s"),
    "profile latency": Goal(40, "s"),
    "evaluate": Goal(18, "s"),
    ONE: Goal(75, "s"),
    "tune": Goal(90, "s"),
}
"""The goals that were set for the pair with the cost of Llama-2-7B and llama-68m on an H200, where Triton's cache is filled."""
FILLED = "filled cache"
SHARED = "The cache was empty before the first command alone, so each of the others found what those above it had left."
TITLE = "Seconds of whole commands"
HOW_TO_READ = {
    TITLE: paragraph(
        "Each row is a command as a process of its own, from its start to its end: imports, loading and writing are in it. The last command is the whole loop",
        "in one process, of fewer prompts, and the rows below it are its stages. The columns give the seconds, on a GPU once with an empty cache of compiled",
        "kernels and once with what that left in it, and the goal that was set for the latter. Python's cache of bytecode is filled in both.",
    ),
}
"""How to read the table that only these files have."""


def checks_of(data: Data) -> list[Check]:
    """Return all figures that have a goal."""
    found: dict[str, Any] = data["runs"].get(FILLED, {})
    return [Check(command, found[command]["seconds"], goal, digits=1) for command, goal in GOALS.items() if command in found]


def _body(run: Run) -> str:
    data, known = run.data, run.data["provenance"]
    states = list(data["runs"])
    checks = {check.what: check for check in checks_of(data)}
    rows = []
    for command in dict.fromkeys(command for state in states for command in data["runs"][state]):
        cells = [_seconds(data["runs"][state].get(command)) for state in states]
        if command in checks:
            cells[states.index(FILLED)] = checks[command].figure
        rows.append([command, *cells, verdict([checks[command]] if command in checks else [])])
        stages = [data["runs"][state].get(command, {}).get("stages", {}) for state in states]
        for stage in dict.fromkeys(stage for found in stages for stage in found):
            rows.append([f"- {stage}", *(f"{found[stage]:.1f}" if stage in found else "" for found in stages), ""])
    names = [f"{state}, s" if len(states) > 1 else "s" for state in states]
    return parts(
        origin(known, run.command, run.file),
        paragraph(
            f"{link(TITLE)}: acceptance of {data['prompts']} prompts, latency behind {data['context']} tokens, {data['evaluated']} prompts decoded, with",
            f"{data['gen_len']} tokens each; in one process, acceptance of {data['prompts_in_one_process']} prompts.",
            SHARED if FILLED in states and not data.get("own_caches") else "",
        ),
        table(("command", *names, "goal"), rows),
    )


def _seconds(found: Data | None) -> str:
    return "" if found is None else f"{found['seconds']:.1f}"


def _headlines(data: Data) -> list[str]:
    state = FILLED if FILLED in data["runs"] else next(iter(data["runs"]))
    found = data["runs"][state].get(ONE)
    return [] if found is None else [f"the whole loop in one process: {found['seconds']:.0f} s"]


LOOP = Kind(title=lambda data: f"The loop on {device(data['provenance'])}", body=_body, headlines=_headlines, checks=checks_of)
"""What a file of `benchmarks.loop` says."""
