"""What an installation puts where: only treeopt and treespec, complete, with the command; wheel and editable alike."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAPPED = {"cli": "treeopt/cli", "growmaps": "treeopt/growmaps", "treeopt": "treeopt", "treespec": "treespec"}


def test_wheel_holds_two_packages_and_the_command(wheel):
    with zipfile.ZipFile(wheel) as archive:
        top = {name.partition("/")[0] for name in archive.namelist()}
        (entry_points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        commands = archive.read(entry_points).decode()
    assert {name for name in top if not name.endswith(".dist-info")} == {"treeopt", "treespec"}
    assert "treeopt = treeopt.cli.process:run" in commands


def test_wheel_lacks_no_file_of_the_packages(source, wheel):
    expected = set()
    for folder, package in MAPPED.items():
        for path in (source / folder).rglob("*"):
            if path.is_file() and path.suffix in {".py", ".json", ".safetensors", ".pt", ".typed", ".html"} and "build" not in path.parts:
                expected.add(f"{package}/{path.relative_to(source / folder).as_posix()}")
    with zipfile.ZipFile(wheel) as archive:
        missing = expected - set(archive.namelist())
    assert not missing, f"list these in [tool.setuptools] of pyproject.toml: {sorted(missing)}"
    assert {"treeopt/cli/main.py", "treeopt/growmaps/68m_7b-64.pt", "treeopt/growmaps/profiles/68m_7b.acceptance.json"} <= expected


def test_a_wheel_finds_its_growmaps_by_name(installed, tmp_path):
    code = (
        "from treeopt.growmap_library import CATALOGUE, derive, find, folder, shipped; from treespec import read_growmap\n"
        "assert all(find(name).is_file() for name in CATALOGUE) and len(shipped()) == len(CATALOGUE)\n"
        "assert read_growmap(find('68m_7b-64')).tree == derive(CATALOGUE['68m_7b-64']).tree\n"
        "print(folder())"
    )
    environment = clean_environment() | {"PYTHONPATH": str(installed)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(installed / "treeopt" / "growmaps")


@pytest.fixture(scope="module")
def editable(source, tmp_path_factory):
    """A virtual environment that borrows the libraries of this one and has treeopt installed as editable."""
    folder = tmp_path_factory.mktemp("editable") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    site = Path(subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"], text=True).strip())
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")  # a path only: its own .pth files stay unread
    pip = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed"]
    done = subprocess.run([*pip, "--editable", source], capture_output=True, text=True, env=clean_environment())
    assert done.returncode == 0, done.stderr
    return folder


def clean_environment():
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PIP_REQUIRE_VIRTUALENV")}


def test_editable_install_maps_the_folders(editable, source, tmp_path):
    code = "import treeopt.cli, treeopt.growmaps, treeopt, treespec; print(*(m.__file__ for m in (treeopt.cli, treeopt.growmaps, treeopt, treespec)))"
    done = subprocess.run([editable / "bin" / "python", "-c", code], capture_output=True, text=True, cwd=tmp_path, env=clean_environment())
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(source / folder / "__init__.py") for folder in ("cli", "growmaps", "treeopt", "treespec")]


def test_editable_install_claims_no_name_but_its_own(editable, tmp_path):
    code = "import importlib.util as u; print(*(n for n in ('cli', 'growmaps', 'tests', 'benchmarks') if u.find_spec(n)))"
    done = subprocess.run([editable / "bin" / "python", "-c", code], capture_output=True, text=True, cwd=tmp_path, env=clean_environment())
    assert done.stdout.split() == [], done.stderr


@pytest.mark.parametrize("start", [["bin/treeopt"], ["bin/python", "-m", "treeopt"]])
def test_editable_install_has_the_command(editable, tmp_path, start):
    command = [str(editable / start[0]), *start[1:], "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=clean_environment())
    assert done.returncode == 0, done.stderr
    assert "Usage: treeopt" in done.stdout
