"""Growmaps go both ways unchanged, and no file is believed: every kind of bad one is refused in one line."""

import copy
import hashlib
import io
import json
import os
import pickle
import zipfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from treespec.errors import GrowMapError, OutputError
from treespec.files.provenance import Provenance
from treespec.trees.formats.sequoia import MAX_GROWMAP_SIZE
from treespec.trees.growmap import (
    MAX_FILE_BYTES,
    GrowMap,
    check_growmap_writable,
    read_growmap,
    read_sidecar,
    sidecar_path,
)
from treespec.trees.tree import SpeculationTree

TREE = SpeculationTree.from_branches([[3], [2, 1, 0], [1, 0, 0]])


def sequoia(tree):
    """What Sequoia's own scripts save for a tree, written out from the definitions."""
    size = tree.size
    mask = torch.zeros(size, size, dtype=torch.int64)
    for node in range(size):
        ancestor = node
        while ancestor >= 0:
            mask[node, ancestor] = 1
            ancestor = tree.parents[ancestor]
    depth = mask.sum(1) - 1
    successors = [[child for child in range(size) if tree.parents[child] == node] for node in range(size)]
    roots = [[node for node in range(size) if depth[node] == level] for level in range(int(depth.max()) + 1)]
    return {
        "roots": roots,
        "branches": [[len(successors[node]) for node in level] for level in roots],
        "Successors": successors,
        "mask": mask,
        "depth": depth,
        "size": size,
    }


def saved(path, content, **options):
    torch.save(content, path, **options)
    return path


# -- both ways ----------------------------------------------------------------------------------------------------------

SHAPES = {
    "root alone": SpeculationTree((-1,)),
    "4-chain": SpeculationTree.chain(3),
    "8-chain": SpeculationTree.chain(7),
    "4 chains of 8": SpeculationTree.k_chains(4, 8),
    "8 chains of 8": SpeculationTree.k_chains(8, 8),
    "binary": SpeculationTree.k_ary(2, 5),
    "19 ranks wide": SpeculationTree.from_branches([[19], [9, 6, 4, 3, 2, 1, 1, 1, 1, 1, 1] + [0] * 8]),
    "ragged": TREE,
}


@pytest.mark.parametrize("tree", SHAPES.values(), ids=SHAPES.keys())
def test_a_file_of_sequoia_is_read(tmp_path, tree):
    found = read_growmap(saved(tmp_path / "s.pt", sequoia(tree)))
    assert found == GrowMap(tree)


@pytest.mark.parametrize("tree", SHAPES.values(), ids=SHAPES.keys())
def test_sequoia_reads_what_is_written(tmp_path, tree):
    GrowMap(tree).write(tmp_path / "t.pt")
    found = torch.load(tmp_path / "t.pt", weights_only=True, map_location="cpu")
    expected = sequoia(tree)
    assert list(found) == list(expected)
    for key in ("mask", "depth"):
        assert found[key].dtype == torch.int64
        assert found[key].is_contiguous()
        assert torch.equal(found.pop(key), expected.pop(key))
    assert found == expected
    assert {type(value) for value in found.values()} == {list, int}


@given(
    parents=st.lists(st.integers(0, 10**6), max_size=20).map(lambda xs: [-1, *(x % (i + 1) for i, x in enumerate(xs))]),
    metadata=st.dictionaries(
        st.text().map("my {}".format), st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.lists(st.text())
    ),
)
def test_round_trip(tmp_path_factory, parents, metadata):
    path = tmp_path_factory.mktemp("growmap") / "t.pt"
    growmap = GrowMap(SpeculationTree.from_parents(parents), metadata, Provenance(gpu="g", models={"target": "a/b"}))
    growmap.write(path)
    assert read_growmap(path) == growmap
    sidecar_path(path).unlink()
    assert read_growmap(path) == GrowMap(growmap.tree, metadata)


def test_writing_is_reproducible(tmp_path):
    for name in ("a", "b"):
        GrowMap(TREE, {"x": 1.5}).write(tmp_path / f"{name}.pt")
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert len(list(tmp_path.iterdir())) == 4


def test_sidecar_content(tmp_path):
    GrowMap(TREE, {"expected_tokens_per_step": 2.5}, Provenance(seed=1)).write(tmp_path / "t.pt")
    sidecar = json.loads((tmp_path / "t.json").read_text())
    assert sidecar["schema"] == "treeopt.growmap"
    assert sidecar["version"] == 1
    assert sidecar["parents"] == list(TREE.parents)
    assert sidecar["metadata"] == {"expected_tokens_per_step": 2.5}
    assert sidecar["provenance"]["seed"] == 1
    assert sidecar["sha256"] == hashlib.sha256((tmp_path / "t.pt").read_bytes()).hexdigest()
    assert torch.load(tmp_path / "t.pt", weights_only=True)["treeopt"] == {"expected_tokens_per_step": 2.5}


def test_the_largest_tree_goes_both_ways(tmp_path):
    tree = SpeculationTree.k_ary(2, 10).truncated(MAX_GROWMAP_SIZE)
    GrowMap(tree).write(tmp_path / "t.pt")
    assert (tmp_path / "t.pt").stat().st_size < MAX_FILE_BYTES
    assert read_growmap(tmp_path / "t.pt").tree == tree


def test_a_file_saved_from_cuda_is_read(tmp_path):
    """Its pickle names a device that this machine may not have."""
    path = saved(tmp_path / "s.pt", sequoia(TREE))
    with zipfile.ZipFile(path) as archive:
        content = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    pickled = next(name for name in content if name.endswith("data.pkl"))
    assert b"X\x03\x00\x00\x00cpu" in content[pickled]
    content[pickled] = content[pickled].replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    assert read_growmap(path).tree == TREE


# -- bad content --------------------------------------------------------------------------------------------------------


def with_changes(**changes):
    return sequoia(TREE) | changes


def with_item(key, *index_and_value):
    content = copy.deepcopy(sequoia(TREE))
    *indices, last, value = index_and_value
    place = content[key]
    for index in indices:
        place = place[index]
    place[last] = value
    return content


def without(key):
    content = sequoia(TREE)
    del content[key]
    return content


BAD_CONTENT = {
    "a list": ([1, 2], "holds a list, but a growmap is a dict with the keys roots"),
    "a tensor": (torch.zeros(3), "holds a Tensor"),
    "lacks mask": (without("mask"), "it lacks mask"),
    "lacks size": (without("size"), "it lacks size"),
    "size is text": (with_changes(size="8"), "size is '8', but it must be a whole number"),
    "size is true": (with_changes(size=True), "size is True"),
    "size is half a node": (with_changes(size=7.5), "size is 7.5, but it must be a whole number"),
    "size is endless": (with_changes(size=1 << 70), "holds a whole number of 71 bits"),
    "size 0": (with_changes(size=0), "size is 0"),
    "size -1": (with_changes(size=-1), "size is -1"),
    "size 10^9": (with_changes(size=10**9), f"has size 1000000000, but a growmap may have at most {MAX_GROWMAP_SIZE} nodes"),
    "another size": (with_changes(size=9), "size is 9, but Successors has 8 nodes"),
    "Successors is a dict": (with_changes(Successors={}), "Successors must be a list of lists of whole numbers"),
    "Successors of half a node": (with_item("Successors", 0, [1.5, 2.0, 3.0]), "Successors must be a list of lists"),
    "Successors is a tensor": (with_changes(Successors=torch.zeros(8)), "Successors must be a list of lists"),
    "a child out of range": (with_item("Successors", 0, [1, 2, 99]), r"Successors\[0\] names node 99, but ids lie in \[0, 7\]"),
    "a negative child": (with_item("Successors", 0, [1, 2, -1]), "names node -1, but ids lie"),
    "its own child": (with_item("Successors", 3, [3]), "does not come after it: the tree has a cycle"),
    "a cycle": (with_item("Successors", 7, [4]), "the tree has a cycle"),
    "the root as a child": (with_item("Successors", 1, [0, 4]), "the tree has a cycle"),
    "a child twice": (with_item("Successors", 0, [1, 2, 2]), r"names node 2 where 3 is due"),
    "siblings in another order": (with_item("Successors", 0, [2, 1, 3]), "ids are breadth-first"),
    "two parents": (with_item("Successors", 3, [6]), "names node 6 where 7 is due"),
    "an unreachable node": (with_item("Successors", 4, []), "size is 8, but only 7 nodes can be reached"),
    "roots disagree": (with_item("roots", 1, [1, 2]), "roots disagrees with Successors at entry 1"),
    "roots too short": (with_changes(roots=sequoia(TREE)["roots"][:-1]), "roots disagrees with Successors in length: 3 instead of 4"),
    "branches disagree": (with_item("branches", 1, 0, 1), "branches disagrees with Successors at entry 1"),
    "depth is a list": (with_changes(depth=[0]), r"depth is list, but it must be torch.int64 \[8\]"),
    "depth of floats": (with_changes(depth=torch.zeros(8)), r"depth disagrees with Successors at \[1\]"),
    "depth of complex numbers": (with_changes(depth=torch.zeros(8, dtype=torch.complex64)), r"depth is torch.complex64 \[8\]"),
    "depth is text": (with_changes(depth=["0"] * 8), r"depth is list, but it must be torch.int64 \[8\]"),
    "depth too long": (with_changes(depth=torch.zeros(9, dtype=torch.int64)), r"depth is torch.int64 \[9\]"),
    "depth disagrees": (with_item("depth", 5, 1), r"depth disagrees with Successors at \[5\]"),
    "mask of another shape": (with_changes(mask=torch.ones(8, 7, dtype=torch.int64)), r"mask is torch.int64 \[8, 7\]"),
    "mask of booleans": (with_changes(mask=torch.ones(8, 8, dtype=torch.bool)), r"mask disagrees with Successors at \[0, 1\]"),
    "a vast mask of one stored number": (
        with_changes(mask=torch.ones(1, dtype=torch.int64).expand(10**9, 10**9)),
        r"holds a tensor of the shape \[1000000000, 1000000000\] that stores fewer numbers",
    ),
    "mask sees a sibling": (with_item("mask", 2, 1, 1), r"mask disagrees with Successors at \[2, 1\]"),
    "mask misses the root": (with_item("mask", 5, 0, 0), r"mask disagrees with Successors at \[5, 0\]"),
    "metadata are a list": (with_changes(treeopt=[1]), r"has a 'treeopt' that cannot be: \[1\] is no object"),
    "metadata under a number": (with_changes(treeopt={1: 2}), "has a 'treeopt' that cannot be: 1 is no text"),
    "metadata are tensors": (with_changes(treeopt={"x": torch.zeros(2)}), "has a 'treeopt' that cannot be: .*Tensor"),
    "metadata are not finite": (with_changes(treeopt={"x": float("nan")}), "has a 'treeopt' that cannot be: .*float"),
    "a promise that is no number": (
        with_changes(treeopt={"expected_tokens_per_step": float("nan")}),
        "has a 'treeopt' that cannot be: expected_tokens_per_step: nan is not finite; make the file again, or correct it",
    ),
}


@pytest.mark.parametrize(("content", "message"), BAD_CONTENT.values(), ids=BAD_CONTENT.keys())
def test_content_that_disagrees_is_refused(tmp_path, content, message):
    path = saved(tmp_path / "bad.pt", content)
    with pytest.raises(GrowMapError, match=message) as caught:
        read_growmap(path)
    assert "bad.pt" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"mask": list(sequoia(TREE)["mask"]), "depth": list(sequoia(TREE)["depth"])},
        {"mask": sequoia(TREE)["mask"].bool().tolist(), "depth": sequoia(TREE)["depth"].tolist()},
        {"mask": sequoia(TREE)["mask"].bfloat16(), "size": torch.tensor([TREE.size])},
    ],
    ids=["lists of tensors", "lists", "other types"],
)
def test_the_same_numbers_in_other_types_are_taken(tmp_path, changes):
    assert read_growmap(saved(tmp_path / "t.pt", with_changes(**changes))).tree == TREE


# -- bad files ----------------------------------------------------------------------------------------------------------


class Code:
    """A pickle that leaves a file behind if it is ever run."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_a_pickle_that_would_run_code_is_refused(tmp_path, protocol):
    path = saved(tmp_path / "bad.pt", with_changes(treeopt={"x": Code(tmp_path / "ran")}), pickle_protocol=protocol)
    with pytest.raises(GrowMapError, match=r"asks to (run \w+.mkdir|build Python objects) when loaded.*; refused") as caught:
        read_growmap(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_a_bare_pickle_is_refused(tmp_path):
    (tmp_path / "bad.pt").write_bytes(pickle.dumps(Code(tmp_path / "ran")))
    with pytest.raises(GrowMapError, match="is a bare pickle, which could run code"):
        read_growmap(tmp_path / "bad.pt")
    assert not (tmp_path / "ran").exists()


def test_a_saved_model_is_refused(tmp_path):
    path = saved(tmp_path / "bad.pt", torch.nn.Linear(2, 2))
    with pytest.raises(GrowMapError, match="refused: save plain tensors and containers instead"):
        read_growmap(path)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04", b"\x80\x02}q\x00."])
def test_files_of_other_kinds(tmp_path, content):
    (tmp_path / "bad.pt").write_bytes(content)
    with pytest.raises(
        GrowMapError, match="is a text, but a .pt file|is damaged, or was cut off|is empty; copy|is a bare pickle"
    ) as caught:
        read_growmap(tmp_path / "bad.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["nothing of a tree\n", "tree: é\n" * 1000], ids=["short", "long"])
def test_text_that_is_no_tree_is_told_what_can_be_passed(tmp_path, content):
    (tmp_path / "note.txt").write_text(content)
    with pytest.raises(GrowMapError, match="note.txt is a text, but a .pt file .* or a tree as JSON .* or vLLM's string"):
        read_growmap(tmp_path / "note.txt")


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(GrowMapError, match="there is no file"):
        read_growmap(tmp_path / "t.pt")
    with pytest.raises(GrowMapError, match="is a folder"):
        read_growmap(tmp_path)


@pytest.mark.parametrize("part", range(1, 40))
def test_a_truncated_file_is_refused(tmp_path, part):
    data = saved(tmp_path / "t.pt", sequoia(TREE)).read_bytes()
    (tmp_path / "bad.pt").write_bytes(data[: len(data) * part // 40])
    with pytest.raises(GrowMapError):
        read_growmap(tmp_path / "bad.pt")


def test_an_archive_whose_directory_lies_far_outside_is_refused(tmp_path):
    data = bytearray(saved(tmp_path / "t.pt", sequoia(TREE)).read_bytes())
    data[data.rindex(b"PK\x06\x06") + 55] = 0xFF  # the last byte of the central directory's 64-bit offset
    (tmp_path / "bad.pt").write_bytes(data)
    with pytest.raises(GrowMapError, match="is damaged, or was cut off"):
        read_growmap(tmp_path / "bad.pt")


@given(st.data())
def test_a_file_with_a_changed_byte_is_the_same_tree_or_refused(tmp_path_factory, data):
    buffer = io.BytesIO()
    torch.save(sequoia(TREE), buffer)
    content = bytearray(buffer.getvalue())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("changed") / "t.pt"
    path.write_bytes(content)
    try:
        assert read_growmap(path).tree == TREE
    except GrowMapError as e:
        assert "\n" not in str(e)


def test_archives_that_unpack_to_more_than_they_hold(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", b"\x00" * (1 << 20))
    with pytest.raises(GrowMapError, match="would unpack to more than it holds"):
        read_growmap(tmp_path / "bomb.pt")


def test_a_file_above_the_limit_is_not_read(tmp_path):
    with open(tmp_path / "big.pt", "wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(GrowMapError, match=f"larger than the limit of {MAX_FILE_BYTES} bytes"):
        read_growmap(tmp_path / "big.pt")


def test_archives_without_or_with_two_pickles(tmp_path):
    for names in ([], ["a/data.pkl", "b/data.pkl"]):
        with zipfile.ZipFile(tmp_path / "bad.pt", "w") as archive:
            for name in names:
                archive.writestr(name, b"")
        with pytest.raises(GrowMapError, match=f"{len(names)} members of the archive are named data.pkl"):
            read_growmap(tmp_path / "bad.pt")


# -- sidecars -----------------------------------------------------------------------------------------------------------


def test_a_sidecar_of_another_file_is_refused(tmp_path):
    GrowMap(TREE).write(tmp_path / "a.pt")
    GrowMap(SpeculationTree.chain(3)).write(tmp_path / "b.pt")
    (tmp_path / "b.json").replace(tmp_path / "a.json")
    with pytest.raises(GrowMapError, match="a.json describes another file than .*a.pt; remove it if it is stale"):
        read_growmap(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parents": [-1]}, "describes another file"),
        ({"sha256": None}, "describes another file"),
        ({"version": 2}, "version 2, but this treeopt reads version 1"),
        ({"metadata": []}, r"t.json has a 'metadata' that cannot be: \[\] is no object"),
        ({"metadata": {"expected_tokens_per_step": 10**400}}, "expected_tokens_per_step: 10000.* is not finite"),
        ({"metadata": {"predicted_seconds_per_step": -1}}, "predicted_seconds_per_step: -1 is below 0"),
        ({"metadata": {"temperature": "0"}}, "temperature: '0' is no number"),
        ({"metadata": {"drafting": 1}}, "drafting: 1 is no text"),
        ({"metadata": {"rank_probability": [[0.5], []]}}, r"rank_probability: \[\[0.5\], \[\]\] is not made of rows of probabilities"),
        ({"metadata": {"rank_probability": [[1.5]]}}, "is not made of rows of probabilities"),
        ({"metadata": {"profiled_row": 10**30}}, "profiled_row: 1000.* is not in 0 to 9223372036854775807"),
        ({"metadata": {"profiled_start": True}}, "profiled_start: True is no whole number"),
        ({"provenance": 1}, "t.json has a 'provenance' that cannot be: 1 is no object"),
        ({"provenance": {"models": 5}}, "t.json has a 'provenance' that cannot be: models: 5 is no object"),
        ({"metadata": {"x": float("nan")}}, "NaN is not a JSON number"),
    ],
)
def test_a_changed_sidecar_is_refused(tmp_path, change, message):
    GrowMap(TREE, {"x": 1}).write(tmp_path / "t.pt")
    content = json.loads((tmp_path / "t.json").read_text())
    (tmp_path / "t.json").write_text(json.dumps(content | change))
    with pytest.raises(GrowMapError, match=message):
        read_growmap(tmp_path / "t.pt")


def test_a_sidecar_alone_tells_what_the_growmap_holds(tmp_path):
    GrowMap(TREE, {"x": 1}, Provenance(seed=1)).write(tmp_path / "t.pt")
    whole = read_growmap(tmp_path / "t.pt")
    (tmp_path / "t.pt").unlink()
    assert read_sidecar(tmp_path / "t.pt") == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parents": None}, "t.json: parents must be a list of whole numbers"),
        ({"parents": [-1, 0.0]}, "t.json: parents must be a list of whole numbers"),
        ({"parents": [-1, 1]}, r"t.json: parents\[1\] is 1"),
        ({"schema": "other"}, "schema 'other'"),
        ({"metadata": []}, "t.json has a 'metadata' that cannot be"),
    ],
)
def test_a_sidecar_alone_is_not_believed_either(tmp_path, change, message):
    GrowMap(TREE).write(tmp_path / "t.pt")
    content = json.loads((tmp_path / "t.json").read_text())
    (tmp_path / "t.json").write_text(json.dumps(content | change))
    with pytest.raises(GrowMapError, match=message):
        read_sidecar(tmp_path / "t.pt")


def test_a_damaged_sidecar_is_refused(tmp_path):
    GrowMap(TREE).write(tmp_path / "t.pt")
    (tmp_path / "t.json").write_text('{"schema": "treeopt.gro')
    with pytest.raises(GrowMapError, match="lies beside the growmap but cannot be read .*no valid JSON"):
        read_growmap(tmp_path / "t.pt")


def test_files_of_other_tools_beside_a_growmap_are_left_alone(tmp_path):
    path = saved(tmp_path / "t.pt", sequoia(TREE))
    other = '{"schema": "treeopt.latency", "version": 1}'
    (tmp_path / "t.json").write_text(other)
    assert read_growmap(path) == GrowMap(TREE)
    for attempt in (GrowMap(TREE).write, check_growmap_writable):
        with pytest.raises(
            OutputError, match=r"t.json would be overwritten but is no growmap's sidecar|treeopt.growmap file; name another"
        ):
            attempt(path)
    assert (tmp_path / "t.json").read_text() == other


def test_a_pipe_beside_a_growmap_is_left_alone(tmp_path):
    path = saved(tmp_path / "t.pt", sequoia(TREE))
    os.mkfifo(tmp_path / "t.json")
    assert read_growmap(path) == GrowMap(TREE)
    for attempt in (GrowMap(TREE).write, check_growmap_writable):
        with pytest.raises(OutputError, match=r"t.json would be overwritten but is no growmap's sidecar"):
            attempt(path)


def test_a_device_gets_no_sidecar(tmp_path):
    (tmp_path / "t.pt").symlink_to(os.devnull)
    check_growmap_writable(tmp_path / "t.pt")
    GrowMap(TREE).write(tmp_path / "t.pt")
    assert os.listdir(tmp_path) == ["t.pt"]


@pytest.mark.parametrize("content", [torch.tensor([0.0, 0.6, 0.4]), {"weights": [1]}])
def test_only_growmaps_make_way_for_growmaps(tmp_path, content):
    torch.save(content, tmp_path / "vec.pt")
    with pytest.raises(OutputError, match=r"vec.pt would be overwritten but is no growmap; name another output, or delete that file"):
        check_growmap_writable(tmp_path / "vec.pt")
    GrowMap(TREE).write(tmp_path / "t.pt")
    (tmp_path / "empty.pt").touch()
    for name in ("t.pt", "empty.pt", "new.pt"):
        check_growmap_writable(tmp_path / name)


# -- writing ------------------------------------------------------------------------------------------------------------


def test_trees_too_large_for_the_format_are_not_written(tmp_path):
    with pytest.raises(GrowMapError, match=f"this tree has size {MAX_GROWMAP_SIZE + 1}, but a growmap may have at most"):
        GrowMap(SpeculationTree.chain(MAX_GROWMAP_SIZE)).write(tmp_path / "t.pt")
    assert list(tmp_path.iterdir()) == []


def test_metadata_that_are_not_numbers_are_not_written(tmp_path):
    with pytest.raises(GrowMapError, match="a number that is not finite"):
        GrowMap(TREE, {"x": float("inf")}).write(tmp_path / "t.pt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["t.json", "."])
def test_names_that_leave_the_sidecar_no_place(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GrowMapError, match=r"use NAME\.pt"):
        GrowMap(TREE).write(name)


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(OutputError, match="its folder does not exist"):
        GrowMap(TREE).write(tmp_path / "missing" / "t.pt")


def test_a_failed_write_leaves_the_old_growmap(tmp_path, monkeypatch):
    old = GrowMap(TREE, {"x": 1})
    old.write(tmp_path / "t.pt")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("treespec.files.writing.os.fsync", full)
    with pytest.raises(OutputError, match="the disk is full"):
        GrowMap(SpeculationTree.chain(2)).write(tmp_path / "t.pt")
    monkeypatch.undo()
    assert read_growmap(tmp_path / "t.pt") == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.json", "t.pt"]


def test_the_promise_is_shown_with_its_own_interval_and_never_with_that_of_other_chances():
    metadata = {"expected_tokens_per_step": 1.5, "intervals_95": {"expected_tokens_per_step": [1.25, 1.75]}, "rank_probability": [[0.75]]}
    shown = str(GrowMap(SpeculationTree((-1, 0)), metadata).drawing())
    assert "1.5000 [1.2500, 1.7500]" in shown
    assert "1.7500 [" not in shown
    assert any("tokens per step by the chances alone" in line and "1.7500" in line for line in shown.splitlines())
    same = str(GrowMap(SpeculationTree((-1, 0)), metadata | {"expected_tokens_per_step": 1.75}).drawing())
    assert "by the chances alone" not in same
    bare = str(GrowMap(SpeculationTree((-1, 0)), {"rank_probability": [[0.75]]}).drawing())
    assert "1.7500" in bare
