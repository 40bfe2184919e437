"""Provenance says where numbers are from and nothing about who measured them."""

import json
import platform
import re
from datetime import datetime
from pathlib import Path

import pytest

from treespec.files import provenance
from treespec.files.provenance import Provenance, public_name


def test_collect_finds_versions_and_time():
    found = Provenance.collect(seed=3)
    assert found.python == platform.python_version()
    assert found.torch.startswith("2.")
    assert int(found.transformers.split(".")[0]) >= 5
    assert found.seed == 3
    assert found.cpu
    assert datetime.fromisoformat(found.utc).utcoffset().total_seconds() == 0


def test_the_processor_has_a_name_with_and_without_proc(monkeypatch, tmp_path):
    assert provenance.cpu_name() == provenance.cpu_name().strip() != ""
    proc = tmp_path / "cpuinfo"
    monkeypatch.setattr(provenance, "Path", lambda _: proc)
    assert provenance.cpu_name() == (platform.processor() or platform.machine()), "there is no such file"
    proc.write_text("processor: 0\nmodel name\t: Some CPU @ 2 GHz\nmodel name\t: Another\n")
    assert provenance.cpu_name() == "Some CPU @ 2 GHz"


def test_round_trip():
    found = Provenance.collect(models={"target": "a/b"}, dtype="float16", temperature=0.6, top_p=0.9, dataset="cnn[0:200]", seed=1)
    data = json.loads(json.dumps(found.to_json()))
    assert Provenance.from_json(data) == found
    assert Provenance.from_json(data | {"of a later version": 1}) == found
    assert Provenance.from_json({}) == Provenance.from_json(None) == Provenance()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "is no object"),
        ({"models": 5}, "models: 5 is no object"),
        ({"models": {"target": None}}, "models: None is no text"),
        ({"dataset": 3}, "dataset: 3 is no text"),
        ({"temperature": 10**400}, "temperature: 1000.* is not finite"),
        ({"seed": 0.5}, "seed: 0.5 is no whole number"),
        ({"offloaded": 1}, "offloaded: 1 is neither true nor false"),
    ],
)
def test_what_no_provenance_holds_is_refused(data, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Provenance.from_json(data)


def test_known_fields_overrule_what_is_found():
    found = Provenance.collect(gpu="Some GPU", python="3.99")
    assert (found.gpu, found.python) == ("Some GPU", "3.99")
    with pytest.raises(TypeError, match="colour"):
        Provenance.collect(colour="red")


def test_paths_lose_their_folders(tmp_path):
    folder = tmp_path / "secret" / "draft"
    folder.mkdir(parents=True)
    found = Provenance.collect(models={"target": folder, "draft": str(folder) + "/"}, dataset=str(folder / "rows.jsonl"))
    assert dict(found.models) == {"target": "draft", "draft": "draft"}
    assert found.dataset == "rows.jsonl"
    assert "secret" not in json.dumps(found.to_json())


def test_names_of_people_and_machines_stay_out():
    text = json.dumps(Provenance.collect(models={"target": Path.home() / "model"}).to_json())
    assert str(Path.home()) not in text
    assert platform.node() not in text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt2", "gpt2"),
        ("JackFram/llama-68m", "JackFram/llama-68m"),
        ("JackFram/llama-68m@abc123", "JackFram/llama-68m@abc123"),
        ("cnn[0:200]", "cnn[0:200]"),
        ("./models/draft", "draft"),
        ("~/draft", "draft"),
        ("/somewhere/draft/", "draft"),
        ("some/deep/folder", "folder"),
        ("/", "/"),
    ],
)
def test_public_name(name, expected):
    assert public_name(name) == expected


def test_a_relative_folder_is_a_path(tmp_path, monkeypatch):
    (tmp_path / "me" / "draft").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert public_name("me/draft") == "draft"


def test_git_commit_of_a_checkout_and_of_an_installation(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "site-packages" / "treespec" / "files" / "provenance.py"))
    assert provenance._git_commit() is None
    checkout = tmp_path / "checkout"
    (checkout / ".git").mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(checkout / "treespec" / "files" / "provenance.py"))
    answers = {"rev-parse": "0123456789abcdef0123456789abcdef01234567", "status": " M treespec/trees/tree.py"}
    monkeypatch.setattr(provenance, "_first_output", lambda command: answers[command[3]])
    assert provenance._git_commit() == answers["rev-parse"] + "+"
    answers["status"] = None
    assert provenance._git_commit() == answers["rev-parse"]
    answers["rev-parse"] = None
    assert provenance._git_commit() is None


def test_a_command_that_is_not_there_gives_nothing():
    assert provenance._first_output(["no-such-command-here"]) is None
    assert provenance._first_output(["false"]) is None
    assert provenance._first_output(["echo", "one"]) == "one"


@pytest.mark.gpu
def test_the_gpu_is_named():
    import torch

    found = Provenance.collect()
    assert found.gpu == torch.cuda.get_device_name()
    assert re.fullmatch(r"[\d.]+", found.driver)
