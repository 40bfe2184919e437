"""Growmaps for people: their figures, and the tree drawn as lines."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from treespec.errors import counted
from treespec.tables import Parts, Table, figures, milliseconds, number

MAX_NODES = 48
"""Most nodes that are drawn if nothing else is said."""

_Shown = Callable[[float, Sequence[float] | None], tuple[str, str]]

_PROMISE: Mapping[str, _Shown] = {  # how each figure that a growmap promises is shown, with its interval
    "expected_tokens_per_step": lambda value, ends: ("expected tokens per step", number(value, 4, ends)),
    "predicted_seconds_per_step": lambda value, ends: ("predicted ms per step", milliseconds(value, ends)),
    "predicted_speedup": lambda value, ends: ("predicted speed-up, x", number(value, 3, ends)),
    "certified_gap": lambda value, ends: ("certified gap to the best tree", f"{100 * value:.2f} %"),
}


def promised(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what a growmap promises, by its metadata, as rows of figures with their 95 % intervals."""
    intervals = data.get("intervals_95") or {}
    return [shown(data[key], intervals.get(key)) for key, shown in _PROMISE.items() if data.get(key) is not None]


def growmap(data: Mapping[str, Any], max_nodes: int = MAX_NODES) -> Parts:
    """Draw a growmap from its summary: the figures, and the tree with its path probabilities, at most `max_nodes` of its nodes, the likeliest ones."""
    chances: Sequence[float] = data["path_probability"] or ()
    likeliest = sorted(range(data["size"] - 1), key=lambda node: (-chances[node] if chances else 0.0, node))[: max(0, max_nodes - 1)]
    paths = [tuple(data["paths"][node]) for node in likeliest]  # a parent is never less likely than its child and comes before it
    labels = {path: f"  {chances[node]:.4f}" if chances else "" for path, node in zip(paths, likeliest, strict=True)}
    picture = _lines(labels)
    picture.append("each line: rank among its siblings" + (", chance that the accepted path goes through it" if chances else ""))
    if hidden := data["size"] - 1 - len(paths):
        picture.append(f"{counted(hidden, 'more node is', 'more nodes are')} not drawn; `max_nodes` {data['size']} draws all")
    return [_figures(data), "\n".join(picture)]


def _figures(data: Mapping[str, Any]) -> Table:
    metadata = data["metadata"]
    named = {"size": "size (root included)", "depth": "depth (draft passes per step)", "max_branch": "most children"}
    shape = [(name, str(data[key])) for key, name in named.items()]
    others = [
        (key.replace("_", " "), f"{value:.6g}" if isinstance(value, float) else str(value))
        for key, value in metadata.items()
        if isinstance(value, str | int | float) and key not in ("size", "depth", *_PROMISE)
    ]
    if chain := metadata.get("best_chain"):
        others.append(("best chain", f"depth {chain.get('depth')}"))
    return figures("growmap", [*shape, ("level widths", " ".join(map(str, data["level_widths"]))), *_expected(data), *others])


def _expected(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what is promised, then the tokens per step that the chances in the picture expect where these are others: no interval is theirs."""
    metadata, chances = data["metadata"], data["tokens_per_step_by_chances"]
    key = "expected_tokens_per_step"
    if chances is None or metadata.get(key) is None:
        return promised({**metadata, key: chances})
    apart = number(chances, 4) != number(metadata[key], 4)
    return [*promised(metadata), *([("tokens per step by the chances alone", number(chances, 4))] if apart else [])]


def _lines(labels: Mapping[tuple[int, ...], str]) -> list[str]:
    """Return the lines of a tree of paths, each with what stands behind its rank; every path's parent is there too."""
    order = sorted(labels)  # depth first, siblings by rank
    youngest = {path[:-1]: path for path in order}
    lines = ["root"]
    margins: dict[tuple[int, ...], str] = {(): ""}
    for path in order:
        margin, last = margins[path[:-1]], youngest[path[:-1]] == path
        lines.append(f"{margin}{'└── ' if last else '├── '}{path[-1]}{labels[path]}")
        margins[path] = margin + ("    " if last else "│   ")
    return lines
