"""A file that is something else is called by what it is, and what unfolds to more than it holds is refused before it does."""

import io
import json
import pickle
import struct
import zipfile
from time import process_time

import pytest
import torch

from tests.treespec.trees.test_growmap import TREE, sequoia
from treeopt.optimizer.sequoia_config import read_sequoia_config
from treeopt.profiles.acceptance import read_acceptance
from treeopt.profiles.latency import read_latency
from treeopt.profiles.trace import read_trace
from treespec.errors import GrowMapError, OptimizerError, ProfileError
from treespec.files import reading
from treespec.files.kinds import kind_of
from treespec.trees.growmap import GrowMap, read_growmap


def torch_bytes(value, **options):
    out = io.BytesIO()
    torch.save(value, out, **options)
    return out.getvalue()


def empty_zip():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("x", b"1")
    return out.getvalue()


KINDS = {
    "empty": (b"", "is empty; copy or make it again"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n", "fetch the file with `git lfs pull`"),
    "git-annex": (b"/annex/objects/SHA256E-s3--ab.pt\n", "fetch the file with `git annex get`"),
    "web page": (b"\n<!DOCTYPE html><html>", "is a web page; download the file itself"),
    "page": (b'<!DOCTYPE html>\n<meta name="generator" content="treeopt page">', "is a page of treeopt; open it in a browser"),
    "safetensors": (struct.pack("<Q", 2) + b"{}   ", "is a file of weights in the safetensors format"),
    "gguf": (b"GGUF\x03\0\0\0", "is a model in the GGUF format"),
    "gzip": (b"\x1f\x8b\x08\0", "is packed with gzip; unpack it first"),
    "pickle": (pickle.dumps([1]), "is a bare pickle, which could run code"),
    "old torch": (torch_bytes(torch.zeros(2), _use_new_zipfile_serialization=False), "was saved by a PyTorch before 1.6"),
    "zeros": (b"\0" * 5000, "begins with nothing but zeros"),
    "parquet": (b"PAR1abc", "is a table in the parquet format"),
    "numpy": (b"\x93NUMPY\x01\0", "is an array of NumPy"),
}


@pytest.mark.parametrize(("content", "words"), KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("suffix", [".pt", ".json"])
def test_each_reader_says_what_a_file_is(tmp_path, content, words, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    readers = [(read_acceptance, ProfileError), (read_latency, ProfileError), (read_trace, ProfileError), (read_growmap, GrowMapError)]
    readers.append((read_sequoia_config, OptimizerError))
    for read, error in readers:
        with pytest.raises(error) as caught:
            read(path)
        assert words in str(caught.value)
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)


def test_a_zip_archive_is_none_of_torch(tmp_path):
    (tmp_path / "x.json").write_bytes(empty_zip())
    with pytest.raises(ProfileError, match=r"is a zip archive; unpack it first"):
        read_latency(tmp_path / "x.json")
    assert kind_of(torch_bytes([1])) == "is a file of torch.save"


def profile(schema):
    return json.dumps({"schema": schema, "version": 1}).encode()


@pytest.mark.parametrize(
    ("read", "content", "words"),
    [
        (read_growmap, profile("treeopt.acceptance"), "is an acceptance profile, but a growmap is needed; `treeopt grow` makes one of it"),
        (read_growmap, b"\xef\xbb\xbf" + profile("treeopt.latency"), "is a latency profile, but a growmap is needed"),
        (read_acceptance, profile("treeopt.journal") + b"\n{}\n", "is the journal of unfinished work, but an acceptance profile is needed"),
        (read_sequoia_config, profile("treeopt.acceptance"), "but a Sequoia configuration is needed; pass it as `acceptance`"),
        (read_growmap, profile("treeopt.evaluation"), "is a report of an evaluation, but a growmap is needed; pass the .pt file"),
        (
            read_acceptance,
            profile("treeopt.latency"),
            "is a latency profile, but an acceptance profile is needed; pass an acceptance profile here; a latency",
        ),
        (read_growmap, profile("treeopt.trace"), "is a trace, but a growmap is needed; pass the .pt file"),
        (
            read_acceptance,
            profile("treeopt.trace"),
            "is a trace, but an acceptance profile is needed; pass the acceptance profile that was made with it",
        ),
        (
            read_trace,
            profile("treeopt.latency"),
            "is a latency profile, but a trace is needed; `treeopt profile acceptance` with `trace` writes one",
        ),
        (read_trace, torch_bytes(sequoia(TREE)), "is a file of torch.save, but a trace is needed"),
        (read_acceptance, profile("treeopt.growmap"), "needed; pass the profile from which it was grown"),
        (read_acceptance, profile("treeopt.evaluation"), "needed; `treeopt profile acceptance` writes one"),
        (read_acceptance, torch_bytes(sequoia(TREE)), "is a growmap, but an acceptance profile is needed; pass the profile from which"),
        (
            read_latency,
            profile("treeopt.acceptance"),
            "is an acceptance profile, but a latency profile is needed; pass a latency profile here; an acceptance",
        ),
        (read_latency, torch_bytes(sequoia(TREE)), "is a file of torch.save, but a latency profile is needed"),
        (read_growmap, torch_bytes(torch.zeros(3)), "`treeopt grow` makes one of an acceptance vector"),
    ],
)
def test_files_of_ours_are_told_which_to_pass(tmp_path, read, content, words):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises((ProfileError, GrowMapError, OptimizerError)) as caught:
        read(tmp_path / "x")
    assert words in str(caught.value)


def test_the_description_of_a_growmap_is_read_from_nothing_but_itself(tmp_path):
    GrowMap(TREE, {"name": "three"}).write(tmp_path / "t.pt")
    (tmp_path / "t.pt").unlink()
    found = read_growmap(tmp_path / "t.json")
    assert found.tree == TREE
    assert found.metadata == {"name": "three"}


# -- what unfolds -------------------------------------------------------------------------------------------------------


def with_pickle(path, content):
    """Write a file of torch.save whose pickle is another one: torch.save itself would take for ever."""
    with zipfile.ZipFile(io.BytesIO(torch_bytes(sequoia(TREE)))) as archive:
        members = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, content if name.endswith("data.pkl") else data)


def doubled(times):
    value: list[object] = []
    for _ in range(times):
        value = [value, value]
    return value


def pickled_key(tuple_code, again, times):
    """A dict with one key: a number in so many tuples, each made by this code of the one before."""
    steps = (again.replace(b"\0", bytes([step])) + tuple_code for step in range(times)) if again else [tuple_code * times]
    return b"\x80\x02}K\x01" + b"".join(steps) + b"K\x01s."


def holding_itself():
    value: list[object] = [1]
    value.append(value)
    return value


VAST = {
    "doubled lists": (pickle.dumps({"size": 3, "Successors": doubled(60)}, protocol=2), "lists that are used again and again"),
    "doubled keys": (pickle.dumps({"treeopt": {"a": doubled(60)}}, protocol=2), "lists that are used again and again"),
    "a key that shares tuples": (pickled_key(b"\x86", b"q\0h\0", 60), "lists that are used again and again"),
    "a key of nested tuples": (pickled_key(b"\x85", b"", 300_000), "more than 1,000 within one another"),
    "a nested list": (b"\x80\x02" + b"]" * 2000 + b"a" * 1999 + b".", "more than 1,000 within one another"),
    "shared children": (pickle.dumps({"Successors": [list(range(1000))] * 2000}, protocol=2), "lists that are used again and again"),
    "a list of one item": (
        pickle.dumps({"Successors": [[1]] * 1_000_000}, protocol=2),
        "lists that are used again and again, more than 100,000 times",
    ),
    "an empty list": (
        pickle.dumps({"Successors": [[]] * 1_000_000}, protocol=2),
        "lists that are used again and again, more than 100,000 times",
    ),
    "an empty tuple": (b"\x80\x02)q\0]" + b"h\0a" * 700_000 + b".", "lists that are used again and again, more than 100,000 times"),
    "a list in itself": (pickle.dumps(holding_itself(), protocol=2), "holds a list that is in itself"),
    "many items": (b"\x80\x02" + b"]0" * 800_000 + b"N.", "holds more than 1,500,000 items"),
    "a long number": (pickle.dumps({"size": 1 << 900}, protocol=2), "holds a whole number of 901 bits"),
}


@pytest.mark.parametrize(("content", "words"), VAST.values(), ids=VAST.keys())
def test_vast_pickles_are_refused(tmp_path, content, words):
    with_pickle(tmp_path / "x.pt", content)
    with pytest.raises(GrowMapError, match=words) as caught:
        read_growmap(tmp_path / "x.pt")
    assert "\n" not in str(caught.value)


def test_a_list_that_is_used_a_million_times_is_refused_within_two_seconds_and_before_torch_sees_it(tmp_path, monkeypatch):
    with_pickle(tmp_path / "x.pt", VAST["a list of one item"][0])
    monkeypatch.setattr(torch, "load", lambda *given, **how: pytest.fail("torch was asked"))
    started = process_time()
    with pytest.raises(GrowMapError, match="more than 100,000 times; refused: save less"):
        read_growmap(tmp_path / "x.pt")
    assert process_time() - started < 2


def test_texts_and_numbers_may_be_used_as_often_as_there_are_items(tmp_path):
    content = sequoia(GrowMap(TREE).tree) | {"treeopt": {"words": ["a long word"] * 200_000}}
    (tmp_path / "x.pt").write_bytes(torch_bytes(content))
    assert len(read_growmap(tmp_path / "x.pt").metadata["words"]) == 200_000


def test_rows_that_are_shared_a_little_are_fine(tmp_path):
    row = [1.0]
    content = sequoia(GrowMap(TREE).tree) | {"treeopt": {"a": row, "b": row, "c": []}}
    (tmp_path / "x.pt").write_bytes(torch_bytes(content))
    assert read_growmap(tmp_path / "x.pt").metadata == {"a": row, "b": row, "c": []}


def test_a_tensor_of_one_stored_number_is_refused(tmp_path):
    (tmp_path / "x.pt").write_bytes(torch_bytes(torch.zeros(1).expand(1 << 25)))
    with pytest.raises(ProfileError, match=r"a tensor of the shape \[33554432\] that stores fewer numbers"):
        read_acceptance(tmp_path / "x.pt")


def test_an_archive_of_very_many_members_is_refused(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"PK\x03\x04" + b"PK\x01\x02" * 20_001)
    with pytest.raises(GrowMapError, match="an archive of more than 20000 members"):
        read_growmap(tmp_path / "x.pt")


@pytest.mark.parametrize("part", [b"[],", b"{},", b"0,", b'{"":[0]},'])
def test_json_is_not_parsed_where_its_values_would_not_fit(tmp_path, part, monkeypatch):
    monkeypatch.setattr(reading, "_MAX_JSON_MEMORY", 1 << 16)
    (tmp_path / "x.json").write_bytes(b'{"schema": "treeopt.acceptance", "a": [' + part * 10_000 + b"0]}")
    monkeypatch.setattr(reading.json, "loads", lambda *data, **options: pytest.fail("it was parsed"))
    with pytest.raises(ProfileError, match="its values would take .* MiB, and 0 MiB is the limit"):
        read_acceptance(tmp_path / "x.json")


def test_a_sparse_file_is_refused_by_its_size(tmp_path):
    with open(tmp_path / "x.json", "wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ProfileError, match="larger than the limit"):
        read_acceptance(tmp_path / "x.json")


def test_a_sidecar_is_parsed_once(tmp_path, monkeypatch):
    GrowMap(TREE, {"x": 1}).write(tmp_path / "t.pt")
    loads, calls = json.loads, []
    monkeypatch.setattr(reading.json, "loads", lambda *data, **options: calls.append(1) or loads(*data, **options))
    assert read_growmap(tmp_path / "t.pt").metadata == {"x": 1}
    assert len(calls) == 1


# -- the same numbers in other types ------------------------------------------------------------------------------------


def changed(**how):
    return {key: how.get(key, lambda value: value)(value) for key, value in sequoia(TREE).items()}


EXACT = {
    "lists": changed(mask=torch.Tensor.tolist, depth=torch.Tensor.tolist),
    "lists of floats": changed(mask=lambda x: x.float().tolist(), depth=lambda x: tuple(x.double().tolist())),
    "floats": changed(mask=torch.Tensor.half, depth=torch.Tensor.bfloat16, size=float),
    "booleans and bytes": changed(mask=torch.Tensor.bool, depth=lambda x: x.to(torch.uint8)),
    "lists of booleans": changed(mask=lambda x: x.bool().tolist()),
    "negative views": changed(mask=lambda x: torch._neg_view(-x), depth=lambda x: torch._neg_view(-x)),
    "transposed twice": changed(mask=lambda x: x.T.contiguous().T),
    "tuples and tensors": changed(
        size=torch.tensor, Successors=lambda x: tuple(torch.tensor(row) for row in x), roots=lambda x: [tuple(r) for r in x]
    ),
}


@pytest.mark.parametrize("content", EXACT.values(), ids=EXACT.keys())
def test_exact_numbers_are_taken_in_any_type(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(torch_bytes(content))
    assert read_growmap(tmp_path / "x.pt").tree == TREE


INEXACT = {
    "half a node": changed(depth=lambda x: x + 0.5),
    "a mask of logits": changed(mask=lambda x: torch.where(x > 0, 0.0, float("-inf"))),
    "not a number": changed(mask=lambda x: x * float("nan")),
    "complex": changed(mask=lambda x: x.to(torch.complex64)),
    "sparse": changed(mask=torch.Tensor.to_sparse),
    "text": changed(depth=lambda x: [str(y) for y in x.tolist()]),
    "ragged": changed(mask=lambda x: [row[: i + 1] for i, row in enumerate(x.tolist())]),
    "nested": changed(depth=lambda x: [[y] for y in x.tolist()]),
}


@pytest.mark.parametrize("content", INEXACT.values(), ids=INEXACT.keys())
def test_other_numbers_are_refused(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(torch_bytes(content))
    with pytest.raises(GrowMapError, match="disagrees with Successors|but it must be torch.int64|refused: save plain tensors|is damaged"):
        read_growmap(tmp_path / "x.pt")
