"""The command `convert`, and what other commands take beside growmaps."""

import errno

import pytest

from treeopt.cli.convert import NAMES
from treespec.trees.conversion import FORMATS
from treespec.trees.growmap import GrowMap
from treespec.trees.tree import SpeculationTree

TREE = SpeculationTree.from_branches([[2], [1, 0]])


def test_the_command_knows_every_format():
    assert list(FORMATS) == NAMES


def test_a_growmap_is_converted_and_shown(tmp_path, run):
    GrowMap(TREE, {"name": "mine"}).write(tmp_path / "tree.pt")
    done = run("convert", "tree.pt", "choices.json", "--to", "medusa", "--format", "json")
    assert done.code == 0, done.err
    assert done.json == {
        "output": "choices.json",
        "to": "medusa",
        "size": 4,
        "depth": 2,
        "left_behind": "Medusa's choices hold the tree alone: the growmap's metadata stay behind",
    }
    assert (tmp_path / "choices.json").read_text() == "[[0], [1], [0, 0]]\n"
    shown = run("inspect", "choices.json", "--format", "json")
    assert shown.json["paths"] == [[0], [1], [0, 0]]
    assert run("inspect", "tree.json", "--format", "json").json["metadata"] == {"name": "mine"}


def test_what_is_replaced_is_said_and_a_file_may_be_converted_in_place(tmp_path, run):
    GrowMap(TREE, {"name": "mine"}).write(tmp_path / "tree.pt")
    before = [(tmp_path / name).read_bytes() for name in ("tree.pt", "tree.json")]
    done = run("convert", "tree.pt", "tree.pt")
    assert (done.code, done.err) == (0, "wrote tree.pt, in place of an earlier one\n")
    assert [(tmp_path / name).read_bytes() for name in ("tree.pt", "tree.json")] == before
    run("convert", "tree.pt", "alone.json", "--to", "json")
    done = run("convert", "alone.json", "alone.pt")
    assert (done.code, done.err) == (0, "wrote alone.pt\nwrote alone.json, in place of an earlier one\n"), "it describes alone.pt now"
    assert run("convert", "tree.pt", "choices.json", "--to", "medusa").err.startswith("wrote choices.json\n")
    done = run("convert", "choices.json", "choices.json", "--to", "vllm")
    assert (done.code, done.err) == (0, "wrote choices.json, in place of an earlier one\n")
    assert (tmp_path / "choices.json").read_text() == "[(0,), (1,), (0, 0)]\n"


def test_a_conversion_in_place_that_cannot_be_finished_leaves_the_file(tmp_path, run, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "full")

    (tmp_path / "choices.json").write_text("[[0], [1], [0, 0]]")
    monkeypatch.setattr("treespec.files.writing.write_all", full)
    done = run("convert", "choices.json", "choices.json", "--to", "vllm")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert done.err.startswith("error: cannot write choices.json: the disk is full")
    assert (tmp_path / "choices.json").read_text() == "[[0], [1], [0, 0]]"
    assert [path.name for path in tmp_path.iterdir()] == ["choices.json"]


def test_the_root_alone_is_one_node(tmp_path, run):
    (tmp_path / "empty.json").write_text("[]")
    done = run("convert", "empty.json", "root.json", "--to", "medusa")
    assert "root.json: a tree of 1 node and depth 0, as Medusa's choices" in done.out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("tree.pt", "out"), 2, "the name out does not say the format to write; pass --to sequoia or json"),
        (
            ("tree.pt", "out.pt", "--to", "vllm"),
            2,
            "--to vllm writes text, but the name out.pt ends in .pt; name the file out.txt, or pass --to s",
        ),
        (
            ("tree.pt", "out.PT", "--to", "json"),
            2,
            "--to json writes text, but the name out.PT ends in .pt; name the file out.json, or pass --to s",
        ),
        (("tree.pt", "a/out.pt"), 1, "error: cannot write a/out.pt: its folder does not exist; create it first"),
        (("gap.json", "out.pt"), 1, "gap.json: path [1, 0] has no parent: [1] is missing; add it"),
        (("young.json", "out.pt"), 1, "young.json: path [0, 1] has no elder sibling: [0, 0] is missing; add it, or lower the rank"),
        (("config.json", "out.pt"), 1, "config.json is JSON, but"),
    ],
)
def test_what_cannot_be_converted_is_one_line(tmp_path, run, arguments, code, words):
    GrowMap(TREE).write(tmp_path / "tree.pt")
    (tmp_path / "gap.json").write_text("[[0], [1, 0]]")
    (tmp_path / "young.json").write_text("[(0,), (0, 1)]")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    done = run("convert", *arguments)
    assert done.code == code
    assert words in done.err
    assert len(done.err.strip().splitlines()) == 1 or code == 2
    assert not [path for path in tmp_path.iterdir() if path.stem in ("out", "a")]


@pytest.mark.parametrize(
    "words",
    [
        ("inspect",),
        ("compare", "tree.pt"),
        ("evaluate", "--target", "embedded-target", "--draft", "embedded-draft", "--dataset", "stdlib", "--growmap"),
        ("run", "--target", "embedded-target", "--draft", "embedded-draft", "--prompt", "x", "--growmap"),
    ],
    ids=lambda words: words[0],
)
def test_a_gap_in_choices_is_named_wherever_a_tree_is_taken(tmp_path, run, words):
    GrowMap(TREE).write(tmp_path / "tree.pt")
    (tmp_path / "gap.json").write_text("[[0], [1, 0]]")
    done = run(*words, "gap.json")
    assert done.code == 1
    assert done.err.strip() == "error: gap.json: path [1, 0] has no parent: [1] is missing; add it"
