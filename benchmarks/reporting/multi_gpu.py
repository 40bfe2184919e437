"""Results of `benchmarks.multi_gpu`: a target that several GPUs hold, and profiles that they share."""

from typing import Any

from benchmarks.reporting.markdown import counted, device, origin, paragraph, parts, table
from benchmarks.reporting.run import Data, Kind, Run
from benchmarks.reporting.verdicts import Check, Goal, verdict

SHAPES = {"7b": "Llama-2-7B", "13b": "Llama-2-13B"}
PASS = "64"
"""The nodes of the pass that goals were set for."""
DIVIDED = {"7b": Goal(0.80, "x", shown="0.80"), "13b": Goal(0.70, "x", shown="0.70")}
"""The goals for this pass by two processes, over the same by one."""
SHARED = Goal(1.8, "x", at_most=False)
"""The goal for a profile of two processes, over one."""
SAME_PATH = Goal(1.02, "x")
"""The goal for a step of the part of a single process, over a step of the plain path."""
SHORT = ("shape", "what", "one GPU", "two GPUs", "x one")
"""The head of the table of docs/scaling.md."""
PARTS = {"token": "token", "tree": "step with a tree", "tuned": "step with the tuned tree"}


def _stage(data: Data, name: str) -> dict[str, Any]:
    """Return the figures of a stage that was finished; none for another one."""
    found: dict[str, Any] = data["stages"].get(name, {})
    return found if found.get("finished") else {}


def checks_of(data: Data) -> list[Check]:
    """Return all figures that have a goal."""
    found = []
    for name, goal in DIVIDED.items():
        stage = _stage(data, name)
        if stage and stage["processes"] == 2 and PASS in stage["one"]["passes_ms"]:
            ratio = stage["divided"]["passes_ms"][PASS] / stage["one"]["passes_ms"][PASS]
            found.append(Check(f"pass of {PASS} nodes on 2 GPUs over one, {SHAPES[name]}", ratio, goal))
    if stage := _stage(data, "one"):
        plain, part = stage["steps_ms"]["plain"], stage["steps_ms"]["tensor parallel 1"]
        found += [
            Check(f"{PARTS[step]}, part of a single process over the plain path", part[step] / plain[step], SAME_PATH, 3) for step in plain
        ]
    if (stage := _stage(data, "acceptance")) and stage["processes"] == 2:
        found.append(Check("profiling acceptance on 2 GPUs over one", stage["one_seconds"] / stage["shared_seconds"], SHARED))
    if stage := _stage(data, "parity"):
        equal = Goal(stage["prompts"], "texts", at_most=False)
        found += [
            Check(f"{rule} texts in fp32 that equal those of one process", count, equal, 0) for rule, count in stage["identical"].items()
        ]
    return found


def _check(data: Data, words: str) -> list[Check]:
    return [check for check in checks_of(data) if words in check.what]


def _shape(data: Data, name: str) -> str:
    """Return the section of a shape that one GPU can hold too."""
    stage = _stage(data, name)
    if not stage:
        return ""
    one, divided, predicted = stage["one"], stage["divided"], stage["predicted"]
    rows = []
    for size, ms in one["passes_ms"].items():
        goal = _check(data, SHAPES[name]) if size == PASS else []
        ratio = goal[0].figure if goal else f"{divided['passes_ms'][size] / ms:.2f}"
        rows.append(
            [
                f"pass, {counted(int(size), 'node')}",
                f"{ms:.3f}",
                f"{divided['passes_ms'][size]:.3f}",
                ratio,
                f"{predicted[size]:.3f}",
                verdict(goal),
            ]
        )
    for step, ms in one["steps_ms"].items():
        trees = [f"({', '.join(map(str, held['trees'][step]))})" for held in (one, divided) if step in held["trees"]]
        same = len(set(trees)) < 2
        label = f"{PARTS[step]} {' or '.join(dict.fromkeys(trees))}".rstrip()
        other = divided["steps_ms"].get(step)
        rows.append(
            [label, f"{ms:.3f}", "" if other is None else f"{other:.3f}", f"{other / ms:.2f}" if same and other is not None else "", "", ""]
        )
    return parts(
        f"#### {SHAPES[name]}",
        paragraph(
            f"{SHAPES[name]} shape: the columns give the milliseconds on one GPU, those on {stage['processes']}, how many times as long that is, and what the",
            "cost model said of passes.",
        ),
        table(("what", "one GPU, ms", f"{stage['processes']} GPUs, ms", "x one", "predicted, ms", "goal"), rows),
        _rates(name, stage),
    )


def _rates(name: str, stage: dict[str, Any]) -> str:
    """Return the sentences about texts that were decoded, and about floors."""
    said = []
    for label, held in (("one GPU", stage["one"]), (f"{stage['processes']} GPUs", stage["divided"])):
        runs = held["decoded"]
        said.append(f"On {label}, {runs['token']['tokens_per_second']:.0f} tokens/s without a tree")
        if "tuned" in runs:
            tuned = runs["tuned"]
            said[-1] += f", and {tuned['tokens_per_second']:.0f} with the tuned tree ({tuned['tokens_per_step']:.2f} per step)"
        said[-1] += f"; reading the weights that one GPU holds takes {held['floor_ms']:.3f} ms."
    counts = dict(zip(("without a tree", "with the tuned tree"), stage["identical"], strict=False))
    if steps := stage.get("collectives_steps_ms"):
        took = " and ".join(f"{ms:.3f} ms for a {PARTS[step]}" for step, ms in steps.items())
        said.append(f"With all-reduces of NCCL in place of the rows that GPUs read from one another, they take {took}.")
    same = " and ".join(f"{count} of {stage['prompts']} {label}" for label, count in counts.items())
    return paragraph(*said, f"Texts of the {SHAPES[name]} shape that equal those of one GPU, in half precision: {same}.")


def short_rows(data: Data) -> list[list[str]]:
    """Return the table of docs/scaling.md: for each shape, a token, a step with a tree, a pass, and texts on one GPU and on several."""
    rows = []
    for name, label in SHAPES.items():
        if not (stage := _stage(data, name)):
            continue
        one, divided = stage["one"], stage["divided"]
        pairs = [(PARTS["token"] + ", ms", one["steps_ms"]["token"], divided["steps_ms"]["token"])]
        pairs += [(f"pass of {size} nodes, ms", one["passes_ms"][size], divided["passes_ms"][size]) for size in (PASS, "256")]
        pairs.append(
            (f"{PARTS['tree']} ({', '.join(map(str, one['trees']['tree']))}), ms", one["steps_ms"]["tree"], divided["steps_ms"]["tree"])
        )
        rows += [[label, what, f"{ms:.3f}", f"{other:.3f}", f"{other / ms:.2f}"] for what, ms, other in pairs]
        rate, other = (held["decoded"]["tuned"]["tokens_per_second"] for held in (one, divided))
        rows.append([label, "tokens/s, each with its tuned tree", f"{rate:.0f}", f"{other:.0f}", f"{other / rate:.2f}"])
    if stage := _stage(data, "70b"):
        held = stage["divided"]
        tree = ", ".join(map(str, held["trees"]["tree"]))
        rows += [
            ["Llama-2-70B", "token, ms", "", f"{held['steps_ms']['token']:.2f}", ""],
            ["Llama-2-70B", f"{PARTS['tree']} ({tree}), ms", "", f"{held['steps_ms']['tree']:.2f}", ""],
        ]
    if stage := _stage(data, "acceptance"):
        one_seconds, seconds = stage["one_seconds"], stage["shared_seconds"]
        what = f"profile of {stage['prompts']} prompts, s"
        rows.append([SHAPES["7b"], what, f"{one_seconds:.2f}", f"{seconds:.2f}", f"{seconds / one_seconds:.2f}"])
    return rows


def below(data: Data) -> str:
    """Return the paragraph below that table: what its last column is, and why cells are empty."""
    said = ["`x one` is the figure of several GPUs over that of one."]
    if stage := _stage(data, "70b"):
        held = stage["bytes_held"] / 1e9
        said.append(
            f"Llama-2-70B has no figures of one GPU, since it ran on no single one: each of the {stage['processes']} GPUs held {held:.0f} GB of its "
            f"weights, {held * stage['processes']:.0f} GB in all."
        )
    return " ".join(said)


def _large(data: Data) -> str:
    """Return the section of the shape that no process holds whole."""
    stage = _stage(data, "70b")
    if not stage:
        return ""
    held = stage["divided"]
    floor = held["floor_ms"]
    rows = [(f"pass, {counted(int(size), 'node')}", ms) for size, ms in held["passes_ms"].items()]
    rows += [
        (f"{PARTS[step]} {'' if step == 'token' else '({}, {})'.format(*held['trees'][step])}".rstrip(), ms)
        for step, ms in held["steps_ms"].items()
    ]
    return parts(
        "#### Llama-2-70B, random weights",
        paragraph(
            f"No process held the whole of {stage['parameters'] / 1e9:.1f} billion weights: each had {stage['bytes_held'] / 1e9:.1f} GB of them,",
            f"made in {stage['making_seconds']:.0f} s. Reading those that a pass multiplies takes {floor:.2f} ms at the",
            f"{stage['bandwidth'] / 1e12:.2f} TB/s that were measured in this run. The columns give the milliseconds, and over that reading.",
        ),
        table(("what", f"{stage['processes']} GPUs, ms", "x reading"), [[what, f"{ms:.3f}", f"{ms / floor:.2f}"] for what, ms in rows]),
    )


def _one(data: Data) -> str:
    stage = _stage(data, "one")
    if not stage:
        return ""
    plain = stage["steps_ms"]["plain"]
    rows = []
    for way, steps in stage["steps_ms"].items():
        for step, ms in steps.items():
            goal = _check(data, f"{PARTS[step]}, part of a single process") if way == "tensor parallel 1" else []
            tree = "" if step == "token" else " ({}, {})".format(*stage["tree"])
            rows.append([way, f"{PARTS[step]}{tree}", f"{ms:.3f}", goal[0].figure if goal else f"{ms / plain[step]:.3f}", verdict(goal)])
    return parts(
        "#### One process",
        paragraph(
            "On one GPU, in turn: the plain path; the part that a single process holds of a divided target, which has nothing to join and takes the same",
            "path; and that part with the single launches that several processes need, without what they tell one another. The columns give the milliseconds",
            "of a step, and over those of the plain path.",
        ),
        table(("way", "what", "ms", "x plain", "goal"), rows, left=2),
    )


def _shared(data: Data) -> str:
    said = []
    if stage := _stage(data, "acceptance"):
        ratio, check = stage["one_seconds"] / stage["shared_seconds"], _check(data, "profiling acceptance")
        goal = f" ({verdict(check)})" if check else ""
        said += [
            f"Profiling acceptance on {counted(stage['prompts'], 'prompt')} in batches of {stage['batch_size']} took one GPU",
            f"{stage['one_seconds']:.1f} s and {stage['processes']} GPUs {stage['shared_seconds']:.1f} s,",
            f"{check[0].figure if check else f'{ratio:.2f}'} times as fast{goal}; loading ({stage['loading_seconds']:.0f} s) and compiling",
            f"({stage['warming_seconds']:.0f} s) came before. The two profiles are {'equal' if stage['same'] else 'not equal'}.",
        ]
    if stage := _stage(data, "parity"):
        counts = " and ".join(f"{count} of {stage['prompts']} {rule} texts" for rule, count in stage["identical"].items())
        goals = verdict(_check(data, "fp32"))
        said.append(f"In fp32, {counts} of the embedded pair on {stage['processes']} GPUs equal those of one, token for token ({goals}).")
    return paragraph(*said) if said else ""


def _body(run: Run) -> str:
    data = run.data
    if not data["stages"]:
        return paragraph("No stage was finished.")
    settings = ", ".join(f"`{name}={value}`" for name, value in data["environment"].items())
    missed = ", ".join(f"`{name}` ({why})" for name, why in data["failed"].items())
    return parts(
        origin(data["provenance"], run.command, run.file),
        paragraph(
            "The GPUs are those of one host." if (data["provenance"].get("processes") or 1) > 1 else "",
            f"NCCL was given {settings}." if settings else "",
            f"These stages failed: {missed}." if missed else "",
            "Targets of 7B and 13B are the embedded pair with the cost of these shapes. Passes and steps are captured. The cost model is that of",
            "`benchmarks/tensor_parallel.py`, with the passes of one GPU in this run.",
        ),
        *(_shape(data, name) for name in SHAPES),
        _large(data),
        _one(data),
        _shared(data),
    )


def _headlines(data: Data) -> list[str]:
    found = []
    for name, label in SHAPES.items():
        if stage := _stage(data, name):
            runs, alone = stage["divided"]["decoded"], stage["one"]["decoded"]
            best = max(run["tokens_per_second"] for run in runs.values())
            found.append(
                f"{label} shape on {stage['processes']} GPUs: {best:.0f} tokens/s, on one {max(r['tokens_per_second'] for r in alone.values()):.0f}"
            )
    if stage := _stage(data, "70b"):
        found.append(f"Llama-2-70B shape on {stage['processes']} GPUs: {stage['divided']['steps_ms']['token']:.2f} ms per token")
    return found or ["no target was held by several GPUs"]


MULTI_GPU = Kind(
    title=lambda data: f"A target held by several GPUs, on {device(data['provenance'])}",
    body=_body,
    headlines=_headlines,
    checks=checks_of,
    prompts=lambda data: next((int(stage["prompts"]) for name in SHAPES if (stage := _stage(data, name))), None),
)
"""What a file of `benchmarks.multi_gpu` says."""
