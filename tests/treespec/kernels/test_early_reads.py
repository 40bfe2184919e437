"""Before `wait_for_inputs`, kernels read only what is older than their pass: each such read stands in EARLY, with the reason.

A kernel that reads too early is right on every CPU and in every interpreter, and wrong now and then on a GPU. So this test reads the source.
"""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import treespec.kernels
from tests.reference.early_reads import Kernel, kernels, launched, sources

WEIGHTS = "weights of the model, which no pass writes"
LENGTH = "the number of committed tokens, which the step before wrote"
PLACEMENT = "where the pass's tokens stand, which was written before the pass began"
ROTARY = "rotary tables, which are made with the cache"
TREE = "the shape of the tree, which was written before the pass began"
COMMITTED = "keys and values of committed tokens; they are only prefetched into L2, and loaded after the wait"
REASONS = {WEIGHTS, LENGTH, PLACEMENT, ROTARY, TREE, COMMITTED}

EARLY: dict[str, dict[str, str]] = {
    "ancestors._pack_kernel": {},
    "attention_kernel.attention_kernel": {"load length": LENGTH, "prefetch keys": COMMITTED, "prefetch values": COMMITTED},
    "attention_kernel.combine_kernel": {"load length": LENGTH},
    "beside._beside_kernel": {"load feature_norm": WEIGHTS, "load token_norm": WEIGHTS},
    "distribution._nucleus_kernel": {},
    "distribution._softmax_kernel": {},
    "distribution._sums_kernel": {},
    "growing._best_kernel": {},
    "growing._children_kernel": {},
    "growing._keep_kernel": {},
    "inverse._inverse_kernel": {"load children": TREE, "load first": TREE},
    "linear._linear_kernel": {"load bias": WEIGHTS, "load norm": WEIGHTS, "prefetch weight": WEIGHTS},
    "linear._start_kernel": {"load norm": WEIGHTS},
    "peers._peers_kernel": {"load weight": WEIGHTS},
    "pointwise._add_norm_kernel": {"load weight": WEIGHTS},
    "pointwise._gate_kernel": {},
    "pointwise._move_kernel": {"load length": LENGTH},
    "qkv._project_kernel": {
        "load cos": ROTARY,
        "load depths": PLACEMENT,
        "load length": LENGTH,
        "load offsets": PLACEMENT,
        "load sin": ROTARY,
        "prefetch weight": WEIGHTS,
    },
    "racing._race_kernel": {},
    "racing._winners_kernel": {"load children": TREE, "load first": TREE},
    "residual._chain_kernel": {},
    "rotary._rotate_kernel": {
        "load cos": ROTARY,
        "load depths": PLACEMENT,
        "load k_norm": WEIGHTS,
        "load length": LENGTH,
        "load offsets": PLACEMENT,
        "load q_norm": WEIGHTS,
        "load sin": ROTARY,
    },
    "settling_sampled._draw_kernel": {"load depths": TREE, "load order": TREE, "load parents": TREE},
    "settling_sampled._drawn_kernel": {"load depths": TREE, "load length": LENGTH, "load ranks": TREE},
    "settling._match_kernel": {"load depths": TREE, "load length": LENGTH, "load parents": TREE, "load ranks": TREE},
    "vocabulary._maxima_kernel": {},
    "vocabulary._select_kernel": {"load children": TREE, "load first": TREE},
}
"""Kernel -> what it reads before it waits (`load` or `prefetch`, and the pointer without its `_ptr`) -> why that is older than the pass."""

MODULES = sources(treespec.kernels)
PAGE = Path(__file__).parents[3] / "docs" / "kernels.md"
NAME = re.compile(r"`(\w+)`")


def complaints(modules: dict[str, str], listed: dict[str, dict[str, str]]) -> list[str]:
    """One sentence for everything that is wrong with the kernels or with the list."""
    found = {kernel.name: kernel for kernel in kernels(modules)}
    said = [f"{name} is in EARLY and is no kernel any more; take it out" for name in sorted(listed.keys() - found.keys())]
    for name, kernel in sorted(found.items()):
        said += [*kernel.faults, *descriptions(kernel)]
        if name in listed:
            said += [
                f"{name} does `{read}` before its wait, which EARLY does not allow: an earlier kernel of the pass may still be writing it; "
                "move it below the wait, or list it with the reason why it is older than the pass"
                for read in kernel.early
                if read not in listed[name]
            ]
            said += [
                f"{name} no longer does `{read}` before its wait; take it out of EARLY" for read in listed[name] if read not in kernel.early
            ]
        else:
            entry = ", ".join(f'"{read}": REASON' for read in kernel.early)
            said.append(
                f"{name} is new: enter it in EARLY of tests/treespec/kernels/test_early_reads.py as {{{entry}}}, "
                "with the reason why each is older than the pass, and in the table of docs/kernels.md"
            )
    return said


def descriptions(kernel: Kernel) -> list[str]:
    """What is missing where the kernel itself says what it reads early."""
    said = [
        f"{kernel.name}: write a comment above line {line}, `# Above: only what is older than the pass: ...`, or `# Above: nothing is read.`"
        for line in kernel.uncommented
    ]
    promise = kernel.docstring.partition("Reads early: ")[2]
    if not promise or promise.startswith("nothing") != (not kernel.early):
        said.append(f"{kernel.name}: end its docstring with `Reads early: ...`, and what it reads before its wait, or `nothing`")
    return said


def test_no_kernel_reads_early_what_its_pass_writes() -> None:
    assert complaints(MODULES, EARLY) == []


def test_every_kernel_that_is_launched_is_looked_at() -> None:
    assert {kernel.name for kernel in kernels(MODULES)} == set(launched(MODULES))


def test_committed_rows_are_prefetched_at_most() -> None:
    reads = [(read, reason) for early in EARLY.values() for read, reason in early.items()]
    assert {reason for _, reason in reads} <= REASONS
    assert all(read.startswith("prefetch ") for read, reason in reads if reason == COMMITTED)


# -- the page -----------------------------------------------------------------------------------------------------------


def table(page: str) -> dict[str, list[str]]:
    """Kernel -> the cells of its line in docs/kernels.md. Fails where a kernel has two."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| `")]
    assert len({cells[0] for cells in lines}) == len(lines)
    return {cells[0].strip("`"): cells[1:] for cells in lines}


def test_the_page_has_every_kernel_that_is_launched_and_what_it_reads_early() -> None:
    lines = table(PAGE.read_text())
    assert lines.keys() == set(launched(MODULES)), "one line per kernel, named `module.function`, in the table of docs/kernels.md"
    for name, (fuses, runs, reads) in lines.items():
        assert fuses and runs, name
        loads, _, prefetches = reads.partition("prefetches ")
        said = {f"load {pointer}" for pointer in NAME.findall(loads)} | {f"prefetch {pointer}" for pointer in NAME.findall(prefetches)}
        assert said == EARLY[name].keys(), f"docs/kernels.md: what {name} reads early is not what EARLY lists"
        assert said or reads == "nothing", name


# -- planted mistakes ---------------------------------------------------------------------------------------------------

WAIT = "    wait_for_inputs(OVERLAP)\n"
LOAD = "    token = tl.load(tokens_ptr + row)\n"
NEW = '''

@triton.jit
def _new_kernel(x_ptr: "Any", out_ptr: "Any", OVERLAP: tl.constexpr) -> None:
    """Copy. Reads early: x."""
    x = tl.load(x_ptr)
    # Above: x.
    wait_for_inputs(OVERLAP)
    tl.store(out_ptr, x)
'''


def new_complaints(modules: dict[str, str], listed: dict[str, dict[str, str]] = EARLY) -> list[str]:
    """What a change of the sources or of the list adds to the complaints; it should be none before."""
    before = complaints(MODULES, EARLY)
    return [sentence for sentence in complaints(MODULES | modules, listed) if sentence not in before]


def with_start(change: Callable[[str], str]) -> list[str]:
    """The complaints after a change of `linear.start`'s kernel."""
    before, found, rest = MODULES["linear"].partition("def _start_kernel")
    kernel, after, end = rest.partition("@triton.jit")
    changed = change(kernel)
    assert found and after and changed != kernel, "linear._start_kernel is not what it was: this mistake must follow"
    return new_complaints({"linear": before + found + changed + after + end})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda text: text.replace(LOAD, "").replace(WAIT, LOAD + WAIT), "does `load tokens` before its wait"),
        (lambda text: text.replace(WAIT, "    tl.store(squares_ptr + row, 0.0)\n" + WAIT), "it stores to squares_ptr before the wait"),
        (lambda text: text.replace(WAIT, "    tl.atomic_add(squares_ptr + row, 0.0)\n" + WAIT), "it stores to squares_ptr before the wait"),
        (lambda text: text.replace(WAIT, "    at = tokens_ptr\n    at += row\n    hidden = tl.load(at)\n" + WAIT), "`load tokens`"),
        (lambda text: text.replace(WAIT, "    tl.load(tl.where(row > 0, tokens_ptr, norm_ptr))\n" + WAIT), "`load tokens`"),
        (lambda text: text.replace(WAIT, "    load_squares(squares_ptr, 1, 1, 16, 1)\n" + WAIT), "`load squares`"),
        (lambda text: text.replace(WAIT, "    if row > 0:\n        tl.load(tokens_ptr)\n" + WAIT), "`load tokens`"),
        (
            lambda text: text.replace(
                WAIT, "    at = norm_ptr\n    for _ in range(2):\n        tl.load(at)\n        at = tokens_ptr\n" + WAIT
            ),
            "`load tokens`",
        ),
        (lambda text: text.replace(WAIT, "    if row > 0:\n    " + WAIT), "the wait stands inside a branch"),
        (lambda text: text.replace(WAIT, ""), "never calls wait_for_inputs"),
        (lambda text: text.replace(WAIT, "    elsewhere(tokens_ptr)\n" + WAIT), "it calls elsewhere before the wait"),
        (lambda text: text.replace(WAIT, "    if row > 5:\n        return\n" + WAIT), "it returns before the wait"),
        (lambda text: text.replace("# Above", "# Before"), "write a comment above line"),
        (lambda text: text.replace("Reads early: norm", "Reads the norm"), "end its docstring with"),
        (
            lambda text: text.replace("tl.load(norm_ptr + column", "tl.zeros((1,), tl.float32) + tl.sum(column"),
            "no longer does `load norm`",
        ),
    ],
)
def test_mistakes_are_found(change: Callable[[str], str], sentence: str) -> None:
    assert any("linear._start_kernel" in said and sentence in said for said in with_start(change)), with_start(change)


def test_a_prefetch_does_not_allow_a_load() -> None:
    text = MODULES["qkv"].replace("    committed = tl.load(positions", "    tl.load(inputs.weight_ptr)\n    committed = tl.load(positions")
    assert text != MODULES["qkv"]
    assert any("qkv._project_kernel does `load weight` before its wait" in said for said in new_complaints({"qkv": text}))


def test_a_new_kernel_is_told_what_to_do() -> None:
    (said,) = new_complaints({"linear": MODULES["linear"] + NEW})
    assert said.startswith("linear._new_kernel is new: enter it in EARLY of tests/treespec/kernels/test_early_reads.py")
    assert '{"load x": REASON}' in said


def test_entries_of_kernels_that_are_gone_are_named() -> None:
    gone = new_complaints({}, EARLY | {"linear._gone_kernel": {}})
    assert gone == ["linear._gone_kernel is in EARLY and is no kernel any more; take it out"]
    missing = new_complaints({}, {name: reads for name, reads in EARLY.items() if name != "linear._start_kernel"})
    assert ["linear._start_kernel is new" in said for said in missing] == [True]
