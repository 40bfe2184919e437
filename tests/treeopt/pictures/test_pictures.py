"""Pictures show the figures that they are given, in files that stand alone."""

import io
import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from treeopt.optimizer import optimize
from treeopt.pictures import evaluations, profiles, trees
from treeopt.pictures.canvas import DARK, Canvas
from treeopt.profiles.acceptance import AcceptanceProfile
from treespec.trees.growmap import GrowMap
from treespec.trees.tree import SpeculationTree


def titles(canvas: Canvas) -> list[str]:
    """What readers are told who point at a part of the picture."""
    return [element.text or "" for element in ET.fromstring(canvas.svg()).iter("{http://www.w3.org/2000/svg}title")]


def canvases(found: dict[str, Any]) -> dict[str, Canvas]:
    return {
        "acceptance": profiles.acceptance(found["acceptance"]),
        "latency": profiles.latency(found["latency"], size=found["growmap"].tree.size),
        "tree": trees.growmap(found["growmap"]),
        "speedup": trees.speedups(trees.grid(found["acceptance"], found["latency"], found["growmap"])),
        "prediction": evaluations.prediction(evaluations.pairs(found["report"])),
    }


def test_a_picture_is_a_file_that_stands_alone_and_the_same_each_time(found: dict[str, Any]) -> None:
    again = canvases(found)
    for name, canvas in canvases(found).items():
        svg = canvas.svg()
        root = ET.fromstring(svg)
        ids = [element.get("id") for element in root.iter() if element.get("id")]
        assert len(ids) == len(set(ids)), name
        assert titles(canvas), name
        assert not re.search(rb"<script|<image|@import|(href|src)=\"(?!#)|<metadata", svg), name
        assert svg == again[name].svg(), name
        picture = Image.open(io.BytesIO(canvas.png()))
        assert picture.format == "PNG"
        assert picture.convert("RGB").getpixel((1, 1)) == (255, 255, 255)


def test_drawing_leaves_matplotlib_as_it_was(found: dict[str, Any]) -> None:
    import matplotlib

    before = {name: value for name, value in matplotlib.rcParams.items() if name != "backend"}
    backend = matplotlib.get_backend(auto_select=False)
    profiles.acceptance(found["acceptance"]).svg()
    assert {name: value for name, value in matplotlib.rcParams.items() if name != "backend"} == before
    assert matplotlib.get_backend(auto_select=False) == backend


def test_pictures_on_one_page_share_no_id(found: dict[str, Any]) -> None:
    canvas = profiles.acceptance(found["acceptance"])
    first, second = (set(re.findall(r'\bid="([^"]+)"', canvas.inline(name))) for name in ("one", "two"))
    assert first and second
    assert not first & second


def luminance(colour: str) -> float:
    """The relative luminance of a colour, by WCAG 2."""
    parts = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_lines_and_words_stand_out_on_light_and_on_dark_paper() -> None:
    for light, dark in DARK.items():
        if light in ("#ffffff", "#d5dbe1"):  # the paper, and the lines of the grid
            continue
        assert contrast(light, "#ffffff") >= 3
        assert contrast(dark, DARK["#ffffff"]) >= 4.5


def test_the_area_of_a_node_is_its_chance() -> None:
    growmap = GrowMap(SpeculationTree.from_paths([(0, 0), (1,)]), {"rank_probability": [[0.64, 0.16]]})
    said = titles(trees.growmap(growmap))
    assert said[0].startswith("the root")
    assert said[1:] == [
        "rank path 0; chance that the accepted path goes through it: 0.6400",
        "rank path 1; chance that the accepted path goes through it: 0.1600",
        "rank path 0 0; chance that the accepted path goes through it: 0.4096",
    ]
    from matplotlib.figure import Figure

    figure = Figure()
    trees.growmap(growmap)._draw(figure)
    across = [line.get_markersize() for line in figure.axes[0].lines if (line.get_gid() or "").startswith("node-")]
    assert [(size / across[0]) ** 2 for size in across] == pytest.approx([1, 0.64, 0.16, 0.4096])


def test_a_tree_without_chances_and_the_root_alone_are_drawn_and_what_is_hidden_is_said() -> None:
    unknown = trees.growmap(GrowMap(SpeculationTree.k_ary(2, 2))).svg()
    assert "chances are not known" in " ".join(" ".join(ET.fromstring(unknown).itertext()).split())
    assert titles(trees.growmap(GrowMap(SpeculationTree((-1,))))) == ["the root: the last committed token"]
    small = trees.growmap(GrowMap(SpeculationTree.k_ary(3, 2), {"rank_probability": [[0.5, 0.2, 0.1]]}), max_nodes=4)
    assert "9 more nodes are not drawn" in " ".join(" ".join(ET.fromstring(small.svg()).itertext()).split())
    assert len(titles(small)) == 4


def test_places_across_keep_the_order_of_siblings() -> None:
    tree = SpeculationTree.from_branches([[3], [2, 0, 1]])
    columns = trees._columns(tree, range(tree.size))
    assert len({(columns[node], tree.depths[node]) for node in range(tree.size)}) == tree.size
    for level in tree.levels:
        assert [columns[node] for node in level] == sorted(columns[node] for node in level)


def test_the_grid_holds_the_speed_ups_that_the_search_predicts(found: dict[str, Any]) -> None:
    acceptance, latency = found["acceptance"], found["latency"]
    grid = trees.grid(acceptance, latency, found["growmap"])
    assert grid.chosen == (found["growmap"].tree.size, found["growmap"].tree.depth)
    seen = 0
    for depth, row in zip(grid.depths, grid.speedup, strict=True):
        for size, value in zip(grid.sizes, row, strict=True):
            if not math.isnan(value):
                best = optimize(acceptance, latency=latency, size=size, max_depth=depth)
                assert best.predicted_speedup is not None
                assert value <= best.predicted_speedup + 1e-12  # the best one may be less deep
                seen += value == pytest.approx(best.predicted_speedup)
    assert seen >= len(grid.sizes)
    chosen = grid.speedup[grid.depths.index(grid.chosen[1])][grid.sizes.index(grid.chosen[0])]
    assert chosen == pytest.approx(found["growmap"].promise.speedup)
    assert chosen == max(value for row in grid.speedup for value in row if not math.isnan(value))


def test_acceptance_and_latency_say_their_figures_with_intervals(found: dict[str, Any]) -> None:
    said = titles(profiles.acceptance(found["acceptance"]))
    assert any(re.fullmatch(r"rank 0, profile, all positions: 0\.6000, 95 % interval 0\.55\d+ to 0\.64\d+", line) for line in said)
    assert any(line.startswith("rank 0, profile, children at depth 2 and deeper: 0.7000") for line in said)
    said = titles(profiles.latency(found["latency"], size=3))
    assert any(line.startswith("target pass by tree size: 16 nodes, 16.5") and "interval" in line for line in said)
    assert any(line.startswith("the chosen size 3: 11.715 ms") for line in said), "the time of 3 nodes is that of 4"


def test_legends_lie_over_no_figure_and_have_room(found: dict[str, Any]) -> None:
    several = tuple(replace(one, context=at) for at in (64, 512, 1024, 2048) for one in found["latency"].target)
    contexts = replace(found["latency"], target=several, draft=found["latency"].draft)
    for canvas in (
        profiles.acceptance(found["acceptance"]),
        profiles.latency(found["latency"], size=3),
        profiles.latency(contexts, size=3),
    ):
        figure, _ = canvas._figure()
        FigureCanvasAgg(figure).draw()
        (legend,), (axes,) = figure.legends, figure.axes
        under, over = axes.get_window_extent(), legend.get_window_extent()
        assert under.y1 <= over.y0
        assert over.y1 <= figure.bbox.y1
        assert over.x1 <= figure.bbox.x1
        assert under.height > 0.5 * 2.8 * figure.dpi


def test_profiles_without_errors_depths_or_acceptance_are_drawn() -> None:
    assert titles(profiles.acceptance(AcceptanceProfile("unknown", None, None, (0.5,), 0.5, (), 0, 0))) == [
        "rank 0, profile, all positions: 0.5000"
    ]
    assert titles(profiles.acceptance(AcceptanceProfile("topk", 0.0, 1.0, (0.0, 0.0), 1.0, (), 5, 1)))


@pytest.mark.parametrize("ranks", [1, 2, 5, 40])
def test_ranks_are_whole_numbers_on_the_axis(ranks: int) -> None:
    """A chain has one rank or two: the first child, and the second where the profile saw it accepted."""
    chances = tuple(0.5 / ranks for _ in range(ranks))
    rows = [("profile", chances, None), *[(f"observed, children at depth {depth}", chances[:1], None) for depth in range(1, 5)]]
    figure, _ = profiles.acceptance_of(rows)._figure()
    left, right = figure.axes[0].get_xlim()
    ticks = [tick for tick in figure.axes[0].get_xticks() if left <= tick <= right]
    assert 0 in ticks
    assert all(tick == round(tick) for tick in ticks)


def test_words_tell_who_wrote_each_token(found: dict[str, Any]) -> None:
    kinds = [word.kind for word in evaluations.words(found["report"].results[0])]
    assert kinds == ["prompt", "first", "first", "target", "target", "later", "target"]
