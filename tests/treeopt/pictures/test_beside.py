"""The profiles of a growmap are known by their content, whatever they are called."""

from pathlib import Path
from typing import Any

from treeopt.growmap_making import generate
from treeopt.pictures.beside import profiles_beside


def test_profiles_are_found_by_their_sha256(found: dict[str, Any], tmp_path: Path) -> None:
    found["acceptance"].write(tmp_path / "one.json")
    found["latency"].write(tmp_path / "two.json")
    grown = generate(tmp_path / "one.json", latency=tmp_path / "two.json").growmap
    grown.write(tmp_path / "tree.pt")
    (tmp_path / "three.json").write_text("{}")
    beside = profiles_beside(tmp_path / "tree.pt", grown)
    assert beside.acceptance == found["acceptance"]
    assert beside.latency == found["latency"]
    assert beside.files == {"acceptance": tmp_path / "one.json", "latency": tmp_path / "two.json"}
    assert beside.missing == ()


def test_profiles_that_are_not_there_or_changed_are_named(found: dict[str, Any], tmp_path: Path) -> None:
    found["acceptance"].write(tmp_path / "one.json")
    grown = generate(tmp_path / "one.json", latency=found["latency"]).growmap
    (tmp_path / "one.json").write_text((tmp_path / "one.json").read_text() + "\n")
    beside = profiles_beside(tmp_path / "tree.pt", grown)
    assert beside.acceptance is None and beside.latency is None
    assert [line.split()[1] for line in beside.missing] == ["acceptance", "latency"]
    assert all("is not in the growmap's folder" in line for line in beside.missing)
