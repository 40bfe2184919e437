"""Planted mistakes, which tests of the right code's claims must notice: the residual chain with one, and whole modules with one."""

import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from treespec.decoding.verifiers import residual

EVERY = [(replacement, verifier) for replacement in (False, True) for verifier in ("sequential", "traversal")]
MUTATIONS = {
    "residual not renormalised": ("above[:rows] = remaining.where(goes_on, above[:rows])", "pass", EVERY),
    "rejected token not removed from the draft": ("_mass_left(q, drafted, tokens, active)", "q.sum(-1, keepdim=True)", EVERY[:2]),
    "token removed although drawn with replacement": ("if replacement else", "if False else", EVERY[2:]),
    "next token drawn from p": ("cut[:rows] = further.where(goes_on, cut[:rows])", "pass", EVERY),
    "accepts too eagerly": (".clamp(0, 1)", ".clamp(0, 1).sqrt()", EVERY),
    "weight of a rejected subtree not renormalised": ("(surplus / whole).where(", "surplus.where(", EVERY[1::2]),
}
"""Name -> (the right code, the wrong code, for which (replacement, verifier) it is wrong)."""
MISTAKES = [(name, replacement, verifier) for name, (_, _, where) in MUTATIONS.items() for replacement, verifier in where]
ONE_OF_EACH = [(name, *where[turn % len(where)]) for turn, (name, (_, _, where)) in enumerate(MUTATIONS.items())]
"""Each mutation once, and every rule and verifier among them: for tests that take long."""


def mutant(name: str) -> Callable[..., Any]:
    """`residual_chain` with the mistake `name`. Fails when the line to change is gone: then the table above must follow."""
    source = inspect.getsource(residual.residual_chain)
    right, wrong, _ = MUTATIONS[name]
    assert source.count(right) == 1, f"residual_chain no longer has {right!r}"
    space = dict(vars(residual))
    exec(source.replace(right, wrong), space)
    changed: Callable[..., Any] = space["residual_chain"]
    return changed


def changed_module(module: ModuleType, right: str, wrong: str, folder: Path) -> ModuleType:
    """A copy of a module of kernels with some code changed. Fails when the code to change is gone: then the test's table must follow."""
    source = inspect.getsource(module)
    assert right in source, f"{module.__name__} no longer has {right!r}"
    path = folder / "mutant.py"
    path.write_text(source.replace(right, wrong))
    spec = importlib.util.spec_from_file_location("mutant", path)
    assert spec is not None
    assert spec.loader is not None
    changed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(changed)
    return changed
