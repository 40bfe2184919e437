"""Pictures of a growmap: the tree, and the speed-up of the best tree of every size and depth."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from treeopt.optimizer.frontier import Frontier
from treeopt.optimizer.search import optimize, rule_for
from treeopt.pictures.canvas import BLUE, INK, MUTED, ORANGE, PAPER, WIDTH, Canvas, Titles
from treeopt.profiles.acceptance import AcceptanceProfile
from treeopt.profiles.latency import LatencyProfile
from treeopt.profiles.latency_model import LatencyModel
from treespec.decoding.step_rule import GREEDY, StepRule, rule_of
from treespec.errors import OptimizerError, counted
from treespec.trees.growmap import GrowMap
from treespec.trees.tree import SpeculationTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_NODES = 512
"""Most nodes of a tree that are drawn, the likeliest ones."""
_ROOT = 46.0
"""Points across the root, whose chance is 1."""
_MOST_SIZES, _MOST_DEPTHS = 12, 14
_FEWEST_DEPTHS = 6


def growmap(grown: GrowMap, probability: Sequence[Sequence[float]] | None = None, *, max_nodes: int = MAX_NODES) -> Canvas:
    """Return the picture of a tree: the area of each node is the chance that the accepted path goes through it.

    `probability` is the chance of each rank, by depth of the parent; None stands for what the growmap promises. Without either, all nodes have one
    size. First choices are filled, and later ones hollow. Of a larger tree, the `max_nodes` likeliest nodes are drawn, and a line says how many are
    missing.
    """
    rows = probability or grown.promise.rank_probability
    tree = grown.tree
    chances = None if rows is None else tree.path_probabilities(rows)
    order = sorted(range(tree.size), key=lambda node: (-chances[node] if chances else 0.0, node))
    kept = sorted(order[: max(1, max_nodes)])
    columns = _columns(tree, kept)
    wide = max(columns.values()) + 1
    width = min(14.0, max(WIDTH, 0.32 * wide + 0.8))
    depth = max(tree.depths[node] for node in kept)
    height = min(16.0, 0.95 * (depth + 1) + 0.75)

    def draw(figure: "Figure") -> Titles:
        axes = figure.add_subplot()
        axes.set_axis_off()
        margin = 0.7 + 0.03 * wide
        axes.set_xlim(-margin, wide - 0.5)
        axes.set_ylim(-(depth + 0.55), 0.6)
        titles = {}
        for node in kept[1:]:
            x, y = [columns[tree.parents[node]], columns[node]], [-tree.depths[node] + 1, -tree.depths[node]]
            axes.plot(x, y, color=MUTED, linewidth=0.8 if len(kept) <= 100 else 0.4, zorder=1)
        for node in kept:
            across = _ROOT * math.sqrt(chances[node]) if chances else 0.3 * _ROOT
            first = tree.ranks[node] == 0
            (shape,) = axes.plot(
                [columns[node]],
                [-tree.depths[node]],
                marker="o",
                markersize=across,
                markerfacecolor=INK if node == 0 else BLUE if first else PAPER,
                markeredgecolor=INK if node == 0 else BLUE if first else ORANGE,
                markeredgewidth=0 if first else min(1.3, 0.25 * across),
                linestyle="none",
                zorder=2,
            )
            shape.set_gid(f"node-{node}")
            path = " ".join(map(str, tree.paths[node - 1])) if node else ""
            chance = "" if chances is None else f"; chance that the accepted path goes through it: {chances[node]:.4f}"
            titles[f"node-{node}"] = f"rank path {path}{chance}" if node else "the root: the last committed token"
        for level in range(depth + 1):
            axes.text(-margin, -level, str(level), ha="left", va="center", fontsize=9, color=MUTED)
        hidden = tree.size - len(kept)
        said = "area: chance of being accepted" if chances else "chances are not known: all nodes have one size"
        more = f"; {counted(hidden, 'more node is', 'more nodes are')} not drawn" if hidden else ""
        axes.set_title(f"filled: first choice (rank 0), hollow: later ranks; {said}{more}", fontsize=9.5, color=MUTED, wrap=True)
        return titles

    return Canvas(width, height, draw, f"A tree of {counted(tree.size, 'node')} and depth {tree.depth}")


def _columns(tree: SpeculationTree, kept: Sequence[int]) -> dict[int, float]:
    """Return the place of each kept node across the picture: leaves stand side by side, and a parent over its first child's side of the middle."""
    drawn = set(kept)
    below = {node: [child for child in tree.children[node] if child in drawn] for node in kept}
    columns: dict[int, float] = {}
    leaves = 0
    stack: list[tuple[int, bool]] = [(0, False)]
    while stack:
        node, done = stack.pop()
        if not below[node]:
            columns[node] = float(leaves)
            leaves += 1
        elif done:
            ends = columns[below[node][0]], columns[below[node][-1]]
            columns[node] = (ends[0] + ends[1]) / 2
        else:
            stack += [(node, True), *((child, False) for child in reversed(below[node]))]
    return columns


@dataclass(frozen=True)
class Grid:
    """The predicted speed-up of the best tree of each size within each depth bound; NaN where there is none or its time is not known."""

    sizes: tuple[int, ...]
    depths: tuple[int, ...]
    speedup: tuple[tuple[float, ...], ...]
    """By depth, then size."""
    chosen: tuple[int, int] | None = None
    """The size and the depth of the tree that was chosen."""


def grid(acceptance: AcceptanceProfile, latency: LatencyProfile, grown: GrowMap | None = None) -> Grid:
    """Return the speed-ups that profiles predict, at the sizes that were timed and the depths around the chosen one.

    Smoothing, context and rule are those that the growmap names; without a growmap, the profiles' own, and the best tree of all is the chosen one.
    Every tree is built by the solver and timed as the search times it. Raises OptimizerError, ProfileError.
    """
    known: Mapping[str, Any] = {} if grown is None else grown.metadata
    smoothing, context = known.get("smoothing", "none"), known.get("context")
    rule = rule_for(acceptance, latency) if grown is None else _rule(known)
    model = latency.at_context(context, rule)
    best = optimize(acceptance, latency=latency, context=context, smoothing=smoothing, rule=rule, max_size=min(model.largest_size, 4096))
    tree = best.tree if grown is None else grown.tree
    sizes = _spread([size for size, _ in model.target if 1 < size <= best.table.max_size], _MOST_SIZES, tree.size)
    deepest = min(best.table.max_depth, max(_FEWEST_DEPTHS, 2 * tree.depth))
    depths = _spread(list(range(1, deepest + 1)), _MOST_DEPTHS, tree.depth)
    values = tuple(tuple(_speedup(best.table, model, size, depth) for size in sizes) for depth in depths)
    return Grid(sizes, depths, values, (tree.size, tree.depth))


def _rule(metadata: Mapping[str, Any]) -> StepRule:
    """Return the rule whose times a growmap was made with. Raises OptimizerError for one that is unknown here."""
    try:
        return rule_of(metadata["timed_rule"]) if "timed_rule" in metadata else GREEDY
    except (TypeError, ValueError) as error:
        raise OptimizerError(f"the growmap names a rule that is unknown here ({error})") from error


def _spread(values: Sequence[int], most: int, needed: int) -> tuple[int, ...]:
    """Return at most `most` of the values, evenly spread, both ends among them, and the one that is needed, if it is 1 or more."""
    places: Sequence[int] = (
        sorted({round(at * (len(values) - 1) / max(1, most - 1)) for at in range(most)}) if len(values) > most else range(len(values))
    )
    return tuple(sorted({*(values[place] for place in places), *([needed] if needed >= 1 else [])}))


def _speedup(table: Frontier, model: LatencyModel, size: int, depth: int) -> float:
    """Return the speed-up of the best tree of this size and depth; NaN without one."""
    if size > table.max_size or depth > table.max_depth or not table.value(size, depth) > 0:
        return math.nan
    tree = table.tree(size, depth)
    if max(tree.level_widths[:-1], default=1) > model.largest_width:
        return math.nan
    try:
        return model.autoregressive_seconds() * table.value(size, depth) / model.step_seconds(tree)
    except OptimizerError:
        return math.nan


def speedups(found: Grid) -> Canvas:
    """Return the picture of a grid: a cell per size and depth with its figure in it, lighter where it is larger, and a frame around the chosen one."""
    values = np.array(found.speedup, dtype=np.float64).reshape(len(found.depths), len(found.sizes))

    def draw(figure: "Figure") -> Titles:
        from matplotlib import colormaps
        from matplotlib.patches import Rectangle

        axes = figure.add_subplot()
        axes.grid(False)
        known = values[np.isfinite(values)]
        low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
        colours, titles = colormaps["viridis"], {}
        for (row, column), value in np.ndenumerate(values):
            share = (value - low) / (high - low) if high > low else 0.5
            part, size, depth = f"cell-{row}-{column}", found.sizes[column], found.depths[row]
            if not np.isfinite(value):
                cell = Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor="none", edgecolor=MUTED, hatch="///", linewidth=0)
                titles[part] = f"size {size}, depth at most {depth}: no such tree, or no known time"
            else:
                cell = Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colours(share), edgecolor="none")
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=9, color="#000000" if share > 0.55 else "#fffffe")
                titles[part] = f"size {size}, depth at most {depth}: {value:.3f} x"
            cell.set_gid(part)
            axes.add_patch(cell)
        size, depth = found.chosen or (0, 0)
        if size in found.sizes and depth in found.depths:
            corner = found.sizes.index(size) - 0.5, found.depths.index(depth) - 0.5
            for width, colour in ((5.0, "#fffffe"), (2.5, "#d00000")):
                axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=colour, linewidth=width, zorder=4, clip_on=False))
        axes.set_xlim(-0.5, len(found.sizes) - 0.5)
        axes.set_ylim(-0.5, len(found.depths) - 0.5)
        axes.set_xticks(range(len(found.sizes)), map(str, found.sizes))
        axes.set_yticks(range(len(found.depths)), map(str, found.depths))
        axes.set(xlabel="tree size (root included)", ylabel="depth, at most")
        return titles

    size, depth = found.chosen or (0, 0)
    height = 0.28 * len(found.depths) + 0.8
    width = max(4.0, 0.41 * len(found.sizes) + 0.8)
    return Canvas(
        width,
        height,
        draw,
        f"Speed-up by tree size and depth, as the chances of the ranks predict it; the chosen tree has size {size} and depth {depth}",
    )
