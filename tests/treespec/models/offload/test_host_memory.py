"""How much memory the host has, by whoever limits it, and blocks of it."""

from pathlib import Path

import pytest
import torch

from treespec.errors import ModelError
from treespec.models.offload import host_memory

MEMINFO = "MemTotal:       24684084 kB\nMemFree:        22739988 kB\nMemAvailable:    2097152 kB\nHugePages_Total:       0\n"


def machine(root: Path, limit: str | None = None, current: int = 0, cached: tuple[int, int] = (0, 0)) -> Path:
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text(MEMINFO)
    if limit is not None:
        group = root / "sys/fs/cgroup"
        group.mkdir(parents=True)
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.current").write_text(f"{current}\n")
        (group / "memory.stat").write_text(f"anon 5\ninactive_file {cached[0]}\nactive_file {cached[1]}\n")
    return root


def test_the_machine_says_what_is_available(tmp_path: Path) -> None:
    assert host_memory.available_bytes(machine(tmp_path)) == 2 << 30


def test_a_group_without_a_limit_changes_nothing(tmp_path: Path) -> None:
    assert host_memory.available_bytes(machine(tmp_path, "max")) == 2 << 30


def test_the_smaller_limit_counts_and_cached_files_are_free(tmp_path: Path) -> None:
    assert host_memory.available_bytes(machine(tmp_path, str(1 << 30), 900 << 20, (100 << 20, 50 << 20))) == (1024 - 900 + 150) << 20


def test_a_large_limit_is_not_more_than_the_machine_has(tmp_path: Path) -> None:
    assert host_memory.available_bytes(machine(tmp_path, str(1 << 40), 1 << 30)) == 2 << 30


def test_nobody_says(tmp_path: Path) -> None:
    assert host_memory.available_bytes(tmp_path) is None


def test_this_machine_has_some() -> None:
    available = host_memory.available_bytes()
    assert available is None or available > 1 << 20


def test_too_much_is_refused_with_both_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "available_bytes", lambda: 100 << 30)
    host_memory.require(100 << 30, "big")
    with pytest.raises(
        ModelError, match=r"^big: its weights need 130\.5 GiB of host memory .* 100\.0 GiB are available.*disk.*not supported"
    ):
        host_memory.require(261 << 29, "big")


def test_a_block_has_pages_of_its_own() -> None:
    first, second = host_memory.block(5000), host_memory.block(1)
    assert (first.dtype, first.nbytes, second.nbytes) == (torch.uint8, 5000, 1)
    assert first.data_ptr() % 4096 == second.data_ptr() % 4096 == 0
    first.fill_(7)
    assert int(second) == 0


@pytest.mark.gpu
def test_a_block_is_pinned_as_it_is_and_unpinned_again() -> None:
    memory = host_memory.block(3 << 20)
    memory.copy_(torch.arange(3 << 20) % 251)
    host_memory.pin(memory)
    assert memory.is_pinned()
    assert torch.equal(memory.to("cuda", non_blocking=True).cpu(), memory)
    host_memory.unpin(memory)
    assert not memory.is_pinned()


def test_what_cannot_be_pinned_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cudart:
        def cudaHostRegister(self, address: int, count: int, flags: int) -> int:
            assert (address % 4096, count, flags) == (0, 3 << 30, 0)
            return 2

    memory = host_memory.block(3 << 30)  # of which nothing is touched
    monkeypatch.setattr(host_memory, "_cudart", Cudart)
    monkeypatch.setattr(host_memory, "available_bytes", lambda: 1 << 30)
    with pytest.raises(ModelError, match=r"3\.0 GiB of host memory cannot be pinned \(1\.0 GiB are available\): CUDA error 2;"):
        host_memory.pin(memory)
