"""Names of devices: what they mean, what is said of those that mean nothing, and what torch is asked on devices that this machine lacks."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from treeopt.profiling.settings import default_sizes, default_widths
from treespec.decoding import timing
from treespec.errors import ModelError, SettingsError
from treespec.kernels.plain import draw, widest
from treespec.models import devices
from treespec.models.offload import require_gpu


def pretend(monkeypatch: pytest.MonkeyPatch, **counts: int) -> None:
    """Let torch have these devices and no others."""

    def module(device: Any) -> SimpleNamespace:
        kind = torch.device(device).type
        count = counts.get(kind, 0)
        return SimpleNamespace(is_available=lambda: count > 0, device_count=lambda: count, is_bf16_supported=lambda: kind == "xpu")

    monkeypatch.setattr(torch, "get_device_module", module)


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:0", "cuda:12", "mps", "xpu", "xpu:1"])
def test_names_of_devices(name: str) -> None:
    devices.require_name(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("0", "is a number without its kind; pass cuda:0"),
        ("3", "pass cuda:3"),
        (
            "cuda:0,1",
            "names several devices, but a process uses one: pass one of them; a target .* divided among several GPUs .*`tensor_parallel`",
        ),
        ("0,1", "names several devices"),
        ("cuda:0,cuda:1", "names several devices"),
        ("cuda:0-3", "names several devices"),
        ("gpu", "pass cuda"),
        ("rocm", "pass cuda"),
        ("metal", "pass mps"),
        ("cuda:-1", "is not one of cpu, cuda, cuda:N, mps, xpu or xpu:N"),
        ("cuda:", "is not one of"),
        ("cuda:01", "is not one of"),
        ("cuda:999999999999", "is not one of"),
        ("9" * 5000, "is not one of"),
        ("tpu", "is not one of"),
        ("CUDA", "is not one of"),
        ("balanced", "is not one of"),
        ("", "is not one of"),
    ],
)
def test_other_names_are_refused_with_the_right_one(name: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        devices.require_name(name)


@pytest.mark.parametrize(
    ("name", "there", "said"),
    [
        ("cuda", {}, r"finds no CUDA GPU; use `device` cpu$"),
        ("cuda", {"mps": 1}, r"finds no CUDA GPU; use `device` cpu or mps$"),
        ("mps", {}, r"finds no Apple GPU \(MPS\); use `device` cpu$"),
        ("xpu:1", {"cuda": 2}, r"finds no Intel GPU \(XPU\); use `device` cpu or cuda$"),
        ("cuda:9", {"cuda": 1}, "there is 1 CUDA GPU, cuda:0; use that$"),
        ("cuda:9", {"cuda": 4}, "there are 4 of kind CUDA GPU, cuda:0 to cuda:3; use one of these$"),
    ],
)
def test_devices_that_are_not_there(name: str, there: dict[str, int], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, **there)
    with pytest.raises(ModelError, match=said):
        devices.find(name)


def test_devices_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, cuda=2, mps=1, xpu=1)
    for name in ("cpu", "cuda", "cuda:1", "mps", "xpu:0"):
        assert devices.find(name) == torch.device(name)


def test_half_precision_is_bfloat16_where_the_device_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, mps=1, xpu=1)
    assert devices.half_precision(torch.device("xpu")) == torch.bfloat16
    for known, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *version, known=known: known)
        assert devices.half_precision(torch.device("mps")) == dtype


def test_clocks_wait_for_devices_that_run_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    for name in ("mps", "xpu:1"):
        waited.clear()
        device = torch.device(name)
        timer = timing.timer_for(device)
        timer.begin()
        timer.mark("draft")
        timing.now(device)
        assert waited == [device] * 3
        assert [part for part, _ in timer.parts()] == ["draft"]
    waited.clear()
    timing.now(torch.device("cpu"))
    assert type(timing.timer_for(torch.device("cpu"))) is timing.HostTimer
    assert not waited


def test_mps_is_never_asked_for_float64() -> None:
    assert widest(torch.device("mps")) == torch.float32
    assert widest(torch.device("xpu")) == widest(torch.device("cpu")) == torch.float64


def test_draws_in_float32_have_the_same_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("treespec.kernels.plain.widest", lambda device: torch.float32)
    weights = torch.tensor([[0.5, 0.0, 0.3, 0.2]])
    drawn = draw(weights, 20_000, torch.Generator().manual_seed(0))[0].bincount(minlength=4) / 20_000
    assert torch.allclose(drawn, weights[0], atol=0.02)
    assert drawn[1] == 0


@pytest.mark.parametrize("device", ["cpu", "mps", "xpu:1"])
def test_offloading_is_for_cuda(device: str) -> None:
    with pytest.raises(SettingsError, match=f"to a CUDA GPU, but the device is {device}; drop `offload` or pass `device` cuda"):
        require_gpu(device)


def test_gpus_of_every_kind_are_measured_up_to_the_sizes_of_gpus() -> None:
    assert default_sizes("mps") == default_sizes("xpu:0") == default_sizes("cuda") != default_sizes("cpu")
    assert max(default_widths("mps")) == 256


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)")]
)
def test_full_memory_is_known_in_the_words_of_every_device(error: RuntimeError) -> None:
    assert devices.memory_is_full(error)
    assert not devices.memory_is_full(RuntimeError("shapes differ"))
