"""Where GPUs cannot read one another's memory, collectives add up, and people are told; in all processes, or in none."""

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from treespec.kernels.peers import Peers
from treespec.models.parallel import symmetric
from treespec.models.parallel.symmetric import peers_of
from treespec.models.parallel.team import Team

HERE = torch.device("cpu", 0)
MADE = Peers(0, torch.zeros(2), torch.zeros(2), torch.zeros(8, dtype=torch.int32), 32, torch.float32)


@pytest.fixture(autouse=True)
def _group(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backends of a process group, which is not there."""
    monkeypatch.setattr(torch.distributed, "get_backend_config", lambda: "cpu:gloo")


@pytest.fixture
def reach(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Two GPUs that read one another, and a process that agrees with this one, unless a test says otherwise."""
    known = {"reads": True, "other": True}

    def least(told: torch.Tensor, op: Any) -> None:
        assert op == torch.distributed.ReduceOp.MIN
        told &= known["other"]

    monkeypatch.setattr(torch.distributed, "all_reduce", least)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda one, other: known["reads"] or one == other)
    monkeypatch.setattr(symmetric, "_made", lambda device, dtype, rank: MADE)
    return known


def test_gpus_of_one_host_exchange_rows(reach: dict[str, bool]) -> None:
    assert peers_of(HERE, torch.float32, 0, hosts=1) == (MADE, "")


def test_what_stands_in_the_way_is_said(reach: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    assert peers_of(HERE, torch.float32, 0, hosts=2) == (None, "the processes are on several hosts")
    reach["reads"] = False
    assert peers_of(HERE, torch.float32, 0, hosts=1) == (None, "the GPUs of this machine do not read one another's memory")
    reach.update(reads=True, other=False)
    assert peers_of(HERE, torch.float32, 0, hosts=1) == (None, "another process cannot read the memory of this one's GPU")
    reach["other"] = True

    def refused(device: torch.device, dtype: torch.dtype, rank: int) -> Peers:
        raise RuntimeError("the driver does not map it")

    monkeypatch.setattr(symmetric, "_made", refused)
    found, why = peers_of(HERE, torch.float32, 0, hosts=1)
    assert found is None
    assert why == "torch cannot share memory between these GPUs (RuntimeError: the driver does not map it)"


def test_a_team_asks_once_for_each_type_and_says_what_it_found(reach: dict[str, bool]) -> None:
    team = Team(0, 2, "cpu:0", "nccl")
    assert team.peers(torch.float32) is MADE
    assert not team.note
    reach["reads"] = False
    assert team.peers(torch.float32) is MADE
    assert team.peers(torch.float16) is None
    assert team.note.startswith("NCCL adds up what the processes compute")
    assert team.note.endswith("the GPUs of this machine do not read one another's memory")


def test_processors_have_collectives_alone() -> None:
    team = Team(0, 2, "cpu", "gloo")
    assert team.peers(torch.float32) is None
    assert not team.note
