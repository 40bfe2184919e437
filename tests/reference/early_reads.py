"""What each kernel reads before `wait_for_inputs`, found in the source: the calls are followed in order, into helpers too.

No twin and no interpreter can find an early read that must not be: it is a race between two kernels of a GPU. So the source is read instead.
Each name stands for the pointers it is made of: the kernel's own parameters, or the fields of its NamedTuples. Sums of a pointer and offsets
keep it, and so do `tl.where` and methods such as `.to`; products, comparisons and loaded values are no pointers.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

WAIT = "wait_for_inputs"
FOLLOWED = ("range", "min", "max", "len", "tuple", "isinstance")
"""Functions of Python that read no memory."""
STORES = ("store", "atomic_add", "atomic_and", "atomic_cas", "atomic_max", "atomic_min", "atomic_or", "atomic_xchg", "atomic_xor")
NO_POINTER = ("dtype", "shape", "type")

Origins = frozenset[str]
Value = Any
"""Origins, or a tuple of values."""
NOTHING: Origins = frozenset()


@dataclass(frozen=True)
class Kernel:
    """A kernel, and what it does before it waits."""

    name: str
    """`module._function`."""
    early: tuple[str, ...]
    """`load NAME` and `prefetch NAME`, sorted, each once; names without `_ptr`."""
    faults: tuple[str, ...]
    """What no list can allow: one sentence each."""
    docstring: str
    uncommented: tuple[int, ...]
    """Lines with a call of `wait_for_inputs` without a comment above it that says what is read before."""


def sources(package: ModuleType) -> dict[str, str]:
    """Module -> source, for every module of a package."""
    return {path.stem: path.read_text() for path in sorted(Path(package.__path__[0]).rglob("*.py"))}


def kernels(modules: dict[str, str]) -> list[Kernel]:
    """Every kernel of the package: the functions of `triton.jit` that no other one calls."""
    index = {(module, node.name): node for module, text in modules.items() for node in _parsed(text).body if is_jit(node)}
    called = {
        (owner, name)
        for (module, _), node in index.items()
        for call in ast.walk(node)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
        for owner, name in [_owner(modules, module, call.func.id)]
    }
    return [_kernel(modules, index, key) for key in sorted(index) if key not in called]


@cache
def _parsed(text: str) -> ast.Module:
    return ast.parse(text)


def is_jit(node: ast.stmt) -> bool:
    """Whether a statement defines a function with the decorator `triton.jit`, however it is written."""
    if not isinstance(node, ast.FunctionDef):
        return False
    heads = [each.func if isinstance(each, ast.Call) else each for each in node.decorator_list]
    return any(ast.unparse(head) in ("triton.jit", "jit") for head in heads)


def _owner(modules: dict[str, str], module: str, name: str) -> tuple[str, str]:
    """The module that defines what `module` calls `name`, and its name there."""
    for node in _parsed(modules[module]).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return node.module.rpartition(".")[2], alias.name
    return module, name


def _kernel(modules: dict[str, str], index: dict[tuple[str, str], ast.FunctionDef], key: tuple[str, str]) -> Kernel:
    module, name = key
    node = index[key]
    walk = _Walk(modules, index)
    walk.function(key, {argument: frozenset([argument]) for argument in _parameters(node)})
    if not walk.waited:
        walk.faults.append(f"{module}.{name} never calls {WAIT}; call it before the kernel uses what an earlier one of the pass wrote")
    lines = modules[module].splitlines()
    waits = [call.lineno for call in ast.walk(node) if isinstance(call, ast.Call) and ast.unparse(call.func) == WAIT]
    uncommented = tuple(line for line in waits if not _comment_above(lines, line).startswith(("# Above", "# Before the wait")))
    return Kernel(
        f"{module}.{name}", tuple(sorted(set(walk.early))), tuple(dict.fromkeys(walk.faults)), ast.get_docstring(node) or "", uncommented
    )


def _comment_above(lines: list[str], number: int) -> str:
    """The first line of the comment right above a line."""
    above = ""
    for line in reversed(lines[: number - 1]):
        if not line.strip().startswith("#"):
            break
        above = line.strip()
    return above


def _parameters(node: ast.FunctionDef) -> list[str]:
    """Parameters that are not constants of the compilation."""
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return [each.arg for each in every if "constexpr" not in ast.unparse(each.annotation or ast.Constant(""))]


@dataclass
class _Walk:
    """Walks a kernel in the order of its statements, up to its wait."""

    modules: dict[str, str]
    index: dict[tuple[str, str], ast.FunctionDef]
    early: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    waited: bool = False
    inside: int = 0
    """How many branches and loops stand around the statement."""
    stack: list[tuple[str, str]] = field(default_factory=list)
    env: dict[str, Value] = field(default_factory=dict)

    def function(self, key: tuple[str, str], arguments: dict[str, Value]) -> Value:
        """Walk one function; return what it returns."""
        if key in self.stack:
            self.fault(f"{key[1]} calls itself before the wait")
            return NOTHING
        outer, self.env = self.env, dict(arguments)
        self.stack.append(key)
        returned: list[Value] = []
        self.body(self.index[key].body, returned)
        self.stack.pop()
        self.env = outer
        return _merged(returned) if returned else NOTHING

    def fault(self, sentence: str) -> None:
        module, name = self.stack[0]
        self.faults.append(f"{module}.{name}: {sentence}")

    def body(self, statements: list[ast.stmt], returned: list[Value]) -> None:
        for statement in statements:
            if self.waited:
                return
            self.statement(statement, returned)

    def statement(self, node: ast.stmt, returned: list[Value]) -> None:
        if isinstance(node, ast.Assign):
            value = self.value(node.value)
            for target in node.targets:
                self.assign(target, value)
        elif isinstance(node, ast.AnnAssign):
            if node.value is not None:
                self.assign(node.target, self.value(node.value))
        elif isinstance(node, ast.AugAssign):
            self.assign(node.target, self.value(ast.BinOp(node.target, node.op, node.value)))
        elif isinstance(node, ast.Expr):
            self.value(node.value)
        elif isinstance(node, ast.Return):
            if len(self.stack) == 1:
                self.fault("it returns before the wait")
            returned.append(NOTHING if node.value is None else self.value(node.value))
        elif isinstance(node, ast.If):
            self.value(node.test)
            self.branches([node.body, node.orelse], returned)
        elif isinstance(node, ast.For):
            self.assign(node.target, self.value(node.iter))
            self.branches([node.body * 2, node.orelse], returned)  # twice: what a round leaves, the next one may read
        elif isinstance(node, ast.While):
            self.value(node.test)
            self.branches([node.body * 2, node.orelse], returned)
        elif not isinstance(node, ast.Pass | ast.Assert):
            self.fault(f"a {type(node).__name__} statement stands before the wait, which this test cannot follow")

    def branches(self, bodies: list[list[ast.stmt]], returned: list[Value]) -> None:
        """Walk all ways; afterwards a name has the origins that it has on any of them."""
        before, after = self.env, []
        self.inside += 1
        for statements in bodies:
            self.env = dict(before)
            self.body(statements, returned)
            after.append(self.env)
        self.inside -= 1
        self.env = {name: _merged([env[name] for env in after if name in env]) for env in after for name in env}

    def assign(self, target: ast.expr, value: Value) -> None:
        if isinstance(target, ast.Name):
            self.env[target.id] = value
        elif isinstance(target, ast.Tuple):
            parts = value if isinstance(value, tuple) and len(value) == len(target.elts) else [_flat(value)] * len(target.elts)
            for each, part in zip(target.elts, parts, strict=True):
                self.assign(each, part)
        else:
            self.fault(f"{ast.unparse(target)} is assigned before the wait, which this test cannot follow")

    def value(self, node: ast.expr) -> Value:
        """The pointers that an expression is made of; reads on the way are noted."""
        if isinstance(node, ast.Name):
            return self.env.get(node.id, NOTHING)
        if isinstance(node, ast.Tuple | ast.List):
            return tuple(self.value(each) for each in node.elts)
        if isinstance(node, ast.Attribute):
            return self.attribute(node)
        if isinstance(node, ast.Call):
            return self.call(node)
        parts = [self.value(each) for each in ast.iter_child_nodes(node) if isinstance(each, ast.expr)]
        if isinstance(node, ast.BinOp):
            return _flat(tuple(parts)) if isinstance(node.op, ast.Add | ast.Sub) else NOTHING
        if isinstance(node, ast.Subscript):
            where = node.slice.value if isinstance(node.slice, ast.Constant) else None
            return parts[0][where] if isinstance(parts[0], tuple) and isinstance(where, int) else _flat(parts[0])
        if isinstance(node, ast.IfExp | ast.UnaryOp):
            return _flat(tuple(parts))
        return NOTHING

    def attribute(self, node: ast.Attribute) -> Value:
        held = _flat(self.value(node.value))
        if node.attr in NO_POINTER or not held:
            return NOTHING
        return frozenset([node.attr])  # the field of a NamedTuple

    def call(self, node: ast.Call) -> Value:
        name = ast.unparse(node.func)
        if name == WAIT:
            if self.inside:
                self.fault("the wait stands inside a branch or a loop; call it where every program passes once")
            self.waited = True
            return NOTHING
        arguments = [self.value(each) for each in node.args]
        named = {each.arg: self.value(each.value) for each in node.keywords if each.arg}
        if isinstance(node.func, ast.Name):
            return self.helper(node, name, arguments, named)
        first = arguments[0] if arguments else next(iter(named.values()), NOTHING)
        if not isinstance(node.func, ast.Attribute):
            self.fault(f"it calls {name} before the wait, which this test cannot follow")
            return NOTHING
        if ast.unparse(node.func.value) == "tl":
            return self.builtin(node.func.attr, node, first, arguments, named)
        receiver = _flat(self.value(node.func.value))
        if node.func.attr in ("load", "gather"):  # of a descriptor
            self.read("load", receiver)
            return NOTHING
        if node.func.attr in ("scatter", *STORES):
            self.write(receiver)
        return receiver

    def helper(self, node: ast.Call, name: str, arguments: list[Value], named: dict[str, Value]) -> Value:
        """A function of the package, which is walked in its turn; or a NamedTuple of it, or a function of Python."""
        key = _owner(self.modules, self.stack[-1][0], name)
        if key in self.index:
            every = [*self.index[key].args.posonlyargs, *self.index[key].args.args]
            given = dict(zip((each.arg for each in every), arguments, strict=False)) | named
            return self.function(key, given)
        if name not in FOLLOWED and not self.is_class(key):
            self.fault(f"it calls {name} before the wait, which is no function of this package with triton.jit: this test cannot follow it")
        return _flat((*arguments, *named.values()))

    def is_class(self, key: tuple[str, str]) -> bool:
        module, name = key
        return module in self.modules and any(
            isinstance(each, ast.ClassDef) and each.name == name for each in _parsed(self.modules[module]).body
        )

    def builtin(self, name: str, node: ast.Call, first: Value, arguments: list[Value], named: dict[str, Value]) -> Value:
        """A function of triton.language."""
        if name in ("load", "load_tensor_descriptor"):
            self.read("load", _flat(first))
            return NOTHING
        if name in STORES or name.startswith("atomic"):
            self.write(_flat(first))
            return NOTHING
        if name == "inline_asm_elementwise":
            if "prefetch" in ast.unparse(node):
                self.read("prefetch", _flat((*arguments, *named.values())))
            else:
                self.fault("assembler stands before the wait, which this test cannot follow")
            return NOTHING
        if name in ("arange", "program_id", "num_programs", "zeros", "full", "cdiv", "sum", "max", "min"):
            return NOTHING
        return _flat((*arguments, *named.values()))

    def read(self, how: str, pointers: Origins) -> None:
        named = [each for each in pointers if each.endswith("_ptr")] or list(pointers)  # offsets are no pointers
        if not named:
            self.fault(f"a {how} before the wait reads through a pointer that this test cannot trace to a parameter")
        self.early += [f"{how} {each.removesuffix('_ptr')}" for each in named]

    def write(self, pointers: Origins) -> None:
        self.fault(f"it stores to {' or '.join(sorted(pointers)) or 'memory'} before the wait; store after it")


def _flat(value: Value) -> Origins:
    return frozenset().union(*(_flat(each) for each in value)) if isinstance(value, tuple) else value


def _merged(values: list[Value]) -> Value:
    """One value for several: part by part for tuples of one length."""
    if all(isinstance(each, tuple) and len(each) == len(values[0]) for each in values):
        return tuple(_merged(list(parts)) for parts in zip(*values, strict=True))
    return _flat(tuple(values))


def launched(modules: dict[str, str]) -> Iterator[str]:
    """`module._function` of every function that is launched: `_function[grid](...)`."""
    for module, text in modules.items():
        for node in ast.walk(_parsed(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript) and isinstance(node.func.value, ast.Name):
                owner, name = _owner(modules, module, node.func.value.id)
                yield f"{owner}.{name}"
