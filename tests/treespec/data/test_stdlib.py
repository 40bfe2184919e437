"""The data set that is always there: a split that never moves, whole lines, nothing that training saw."""

import ast
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treespec.data.stdlib import Module, modules, pieces, split_rows


@pytest.fixture
def library(tmp_path):
    """A standard library of 300 small modules, with the folders that are left out."""
    for index in range(300):
        (tmp_path / f"m{index:03}.py").write_text("".join(f"line {line} of {index}\n" for line in range(index * 5)))
    for folder in ("encodings", "site-packages/somebody", "config-3.11", "pydoc_data", "test", "package"):
        (tmp_path / folder).mkdir(parents=True)
        for index in range(40):
            (tmp_path / folder / f"x{index}.py").write_text("x = 1\n")
    (tmp_path / "package" / "__init__.py").write_text("")
    return tmp_path


def names(split, root):
    return [module.name for module in modules(split, root)]


def test_the_split_is_a_hash_of_the_name_and_nothing_else(library):
    train, held_out = names("train", library), names("held-out", library)
    assert not set(train) & set(held_out)
    for name in train:
        assert hashlib.sha256(name.encode()).digest()[0] >= 32
    for name in held_out:
        assert hashlib.sha256(name.encode()).digest()[0] < 32
    assert 0.06 < len(held_out) / (len(train) + len(held_out)) < 0.2
    assert "package" in train + held_out  # __init__ goes by its package's name
    assert train == sorted(train)


@pytest.mark.parametrize(
    ("name", "held_out"), [("asyncio.base_events", True), ("dataclasses", True), ("json", True), ("argparse", False), ("typing", False)]
)
def test_the_split_of_known_modules_never_moves(tmp_path, name, held_out):
    """Moving one would let the embedded pair be evaluated on what it was trained on."""
    assert Module(name, tmp_path / "anywhere.py").held_out == held_out


def test_what_is_left_out(library):
    everything = {*names("train", library), *names("held-out", library)}
    assert not any(name.startswith(("encodings", "site-packages", "config-", "pydoc_data")) for name in everything)
    assert not any(name.startswith("test.") for name in names("held-out", library))
    assert any(name.startswith("test.") for name in names("train", library))


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=60), st.integers(2, 100))
def test_pieces_are_whole_lines_of_the_text(lines, characters):
    text = "\n".join(lines)
    found = list(pieces(text.splitlines(keepends=True), characters))
    assert "".join(found) == text
    whole = text.splitlines(keepends=True)
    assert all(piece for piece in found)
    assert all(piece.splitlines(keepends=True)[-1] in whole for piece in found)
    for piece in found[:-1]:
        assert len(piece) >= characters
        assert len("".join(piece.splitlines(keepends=True)[:-1])) < characters
    if len(found) > 1:
        assert len(found[-1]) >= characters // 2


def test_rows_mix_modules_and_hold_out_training(library):
    rows = split_rows("held-out", library)
    held_out = names("held-out", library)
    with_text = {module.name for module in modules("held-out", library) if module.text}
    assert {name.partition("#")[0] for name, _ in rows} == with_text <= set(held_out)
    first = [name for name, _ in rows if name.endswith("#0")]
    assert [name for name, _ in rows[: len(first)]] == first, "first pieces come first"
    assert [hashlib.sha256(name.partition("#")[0].encode()).hexdigest() for name in first] == sorted(
        hashlib.sha256(name.partition("#")[0].encode()).hexdigest() for name in first
    )
    for name in with_text:
        parts = sorted((int(row.partition("#")[2]), piece) for row, piece in rows if row.partition("#")[0] == name)
        assert "".join(piece for _, piece in parts) == (library / (name.replace(".", "/") + ".py")).read_text()


def test_bytes_that_are_no_text_are_replaced(tmp_path):
    (tmp_path / "m.py").write_bytes(b"# \xff\n")
    assert Module("m", tmp_path / "m.py").text == "# \ufffd\n"


def test_the_running_python_has_enough_real_text():
    rows = split_rows("held-out")
    assert len(rows) > 100
    assert sum(len(piece) >= 3000 for _, piece in rows) > 80
    found = {module.name: module for module in modules("held-out")}
    assert len(found) > 30
    assert sum(bool(ast.parse(module.text).body) for module in list(found.values())[:10]) >= 8
