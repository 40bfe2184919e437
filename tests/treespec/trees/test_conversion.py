"""Trees go to the formats of other tools and back unchanged, and what is wrong in one is named with the path."""

import ast
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treespec.errors import GrowMapError, OutputError, SettingsError
from treespec.files.provenance import Provenance
from treespec.trees.conversion import FORMATS, format_for, left_behind, write_as
from treespec.trees.formats.choices import choices_text, tree_of_choices, tuples_text
from treespec.trees.formats.text import umbrella_text
from treespec.trees.growmap import GrowMap, read_growmap
from treespec.trees.tree import SpeculationTree

SMALL = SpeculationTree.from_paths([(0, 0, 0), (0, 1), (1,)])


def drawn(choices: list[int]) -> SpeculationTree:
    return SpeculationTree.from_parents([-1, *(choice % (node + 1) for node, choice in enumerate(choices))])


TREES = st.lists(st.integers(0, 1000), max_size=40).map(drawn)
"""Any trees of up to 41 nodes."""

SHAPES = {
    "the root alone": SpeculationTree((-1,)),
    "a chain of 7": SpeculationTree.chain(7),
    "4 chains of 8": SpeculationTree.k_chains(4, 8),
    "8 chains of 8": SpeculationTree.k_chains(8, 8),
    "wide at the root, 64 nodes": SpeculationTree.from_branches(
        [
            [14],
            [9, 5, 3, 2, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0],
            [6, 3, 1, 1, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 1, 0, 0, 1, 0, 1, 0, 0, 0],
            [3, 1, 1] + [0] * 14,
            [2, 1, 0, 0, 0],
        ]
    ),
    "a chain with twigs, 16 nodes": SpeculationTree.from_branches([[4], [3, 1, 1, 0], [2, 1, 0, 0, 0], [1, 1, 0], [0, 0]]),
}
"""Shapes of the kinds that published growmaps have."""


def as_medusa_documents(text: str) -> list[tuple[int, ...]]:
    """Medusa, EAGLE-1 and TensorRT-LLM before 1.2: a list of lists of ranks."""
    found = json.loads(text)
    assert all(isinstance(path, list) and path and all(type(rank) is int for rank in path) for path in found)
    return [tuple(path) for path in found]


def as_vllm_documents(text: str) -> list[tuple[int, ...]]:
    """vLLM's speculative_token_tree: a Python literal, a list of tuples."""
    found = ast.literal_eval(text)
    assert isinstance(found, list)
    assert all(isinstance(path, tuple) and path for path in found)
    return found


@given(TREES)
def test_choices_are_all_paths_of_the_tree_and_are_read_back(tree):
    for text, parsed in ((choices_text(tree), as_medusa_documents), (tuples_text(tree), as_vllm_documents)):
        assert parsed(text) == list(tree.paths)
        assert tree_of_choices(text) == tree


@given(TREES, st.randoms(use_true_random=False), st.sampled_from([(",", "[", "]"), (" , ", " [ ", " ] "), (",\n", "(", ",)")]))
def test_choices_are_read_in_any_order_and_with_the_spaces_of_python(tree, random, marks):
    comma, opening, closing = marks
    paths = list(tree.paths)
    random.shuffle(paths)
    text = "[" + comma.join(opening + ",".join(map(str, path)) + closing for path in paths) + (",]\n" if paths else "]\n")
    assert tree_of_choices(text) == tree
    assert tree_of_choices(json.dumps(text)[:-3] + '"' if "\n" not in text[:-1] else text) == tree


@given(TREES, st.data())
def test_a_gap_is_named_with_the_path(tree, data):
    inner = [
        path
        for path in tree.paths
        if any(other[:-1] == path or (other[:-1] == path[:-1] and other[-1] == path[-1] + 1) for other in tree.paths)
    ]
    if not inner:
        return
    gone = data.draw(st.sampled_from(inner))
    with pytest.raises(GrowMapError, match="is missing; add it") as caught:
        tree_of_choices(str([list(path) for path in tree.paths if path != gone]))
    assert f"{list(gone)} is missing" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[0], [1, 0]]", "path [1, 0] has no parent: [1] is missing; add it"),
        ("[(0,), (0, 1)]", "path [0, 1] has no elder sibling: [0, 0] is missing; add it, or lower the rank"),
        ("[[1]]", "path [1] has no elder sibling: [0] is missing"),
        ("[[0], [0]]", "path [0] is there twice; keep one"),
        ("[[0], []]", "a path is empty"),
        ("[[0] [1]]", "a comma is missing before '[1]'"),
        ("[[0], [-1]]", "'-1' stands where a rank is due"),
        ("[[0], [0.5]]", "'0.5' stands where a rank is due"),
        ("[[0], [00000001]]", "'00000001' stands where a rank is due"),
        ("[[0], [true]]", "'true' stands where a rank is due"),
        ("[[1000000]]", "'1000000' stands where a rank is due: a whole number from 0 to 999999"),
        ("[[0], [[0]]]", "stands where a path is due"),
        ("[0, 1]", "'0, 1' stands where a path is due, such as [0, 1] or (0, 1)"),
        ("[[0], __import__('os')]", "stands where a path is due"),
        ("[[0]", "stands where a path is due"),
        ("[" * 100_000 + "]" * 100_000, "stands where a path is due"),
    ],
)
def test_bad_choices_are_refused_in_one_line(tmp_path, text, words):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(GrowMapError) as caught:
        read_growmap(tmp_path / "c.json")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_choices_of_too_many_ranks_are_refused(tmp_path):
    (tmp_path / "c.json").write_text(str([[0] * length for length in range(1, 3000)]))
    with pytest.raises(GrowMapError, match="4,194,304 ranks"):
        read_growmap(tmp_path / "c.json")


def test_umbrella_holds_the_six_keys_of_sequoia_in_lists():
    found = json.loads(umbrella_text(SMALL))
    assert found.keys() == {"roots", "branches", "Successors", "mask", "depth", "size"}
    assert found["Successors"] == [[1, 2], [3, 4], [], [5], [], []]
    assert found["depth"] == [0, 1, 1, 2, 2, 3]
    assert found["mask"] == SMALL.ancestor_mask.astype(int).tolist()
    assert found["size"] == 6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": 7}, "size is 7, but Successors has 6 nodes"),
        ({"depth": [0, 1, 1, 2, 2, 2]}, "depth disagrees with Successors"),
        ({"Successors": [[1, 2], [3, 4], [], [5], [], [0]]}, "Successors[5] names node 0"),
        ({"roots": "0"}, "roots must be a list of lists of whole numbers"),
    ],
)
def test_what_umbrella_says_is_held_against_its_successors(tmp_path, change, words):
    (tmp_path / "u.json").write_text(json.dumps(json.loads(umbrella_text(SMALL)) | change))
    with pytest.raises(GrowMapError) as caught:
        read_growmap(tmp_path / "u.json")
    assert words in str(caught.value)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_goes_through_every_format_and_back(tmp_path, shape, form):
    grown = GrowMap(SHAPES[shape], {"name": shape}, Provenance.collect())
    path = tmp_path / ("t.pt" if form == "sequoia" else "t.txt")
    write_as(grown, path, form)
    found = read_growmap(path)
    assert found.tree == grown.tree
    if form in ("sequoia", "json"):
        assert found == grown
        assert left_behind(grown, form) is None
    else:
        assert "metadata and provenance stay behind" in str(left_behind(grown, form))
    write_as(found, path, form)  # a tree of the same format may be replaced
    write_as(found, tmp_path / "again.pt", "sequoia")
    assert read_growmap(tmp_path / "again.pt").tree == grown.tree


def test_nothing_but_a_tree_in_the_format_is_replaced(tmp_path):
    grown = GrowMap(SMALL)
    for held in ("precious", json.dumps({"schema": "treeopt.latency"}), umbrella_text(SMALL)):
        (tmp_path / "x").write_text(held)
        with pytest.raises(OutputError, match="would be overwritten but is no tree in that format"):
            write_as(grown, tmp_path / "x", "medusa")
        assert (tmp_path / "x").read_text() == held
    grown.write(tmp_path / "t.pt")
    with pytest.raises(OutputError, match="would be overwritten"):
        write_as(grown, tmp_path / "t.json", "umbrella")
    with pytest.raises(GrowMapError, match=r"t\.json is the place of the description of .*t\.pt, which has one already"):
        write_as(grown, tmp_path / "t.json", "json")
    assert read_growmap(tmp_path / "t.pt").tree == SMALL


def test_the_format_is_named_or_seen():
    assert format_for("x.pt") == "sequoia"
    assert format_for("x.txt", "vllm") == "vllm"
    assert format_for("x.txt", "sequoia") == format_for("x.pt", "sequoia") == "sequoia"
    for form, name in (("vllm", "x.txt"), ("umbrella", "x.json"), ("json", "x.json")):
        with pytest.raises(
            SettingsError, match=f"`to` {form} writes text, but the name x.pt ends in .pt; name the file {name}, or pass `to` seq"
        ):
            format_for("a/x.pt", form)
    with pytest.raises(SettingsError, match=r"the name x\.json does not say the format"):
        format_for("x.json")
    with pytest.raises(SettingsError, match="`to` is 'yaml'"):
        format_for("x", "yaml")
