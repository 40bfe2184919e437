"""What cannot be divided, or is started in another way, is refused in one sentence, in every process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from tests.reference.ranks import of_ranks
from treespec.decoding.loop import Request, decode_autoregressive
from treespec.errors import ModelError, SettingsError
from treespec.models.pairs import load_pair, load_target, team_of

Build = Callable[..., PreTrainedModel]


@pytest.fixture(scope="module")
def folder(tiny_module: Build, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    def save(family: str, name: str, seed: int = 0, safe: bool = True, **changes: Any) -> str:
        path = tmp_path_factory.mktemp("models") / name
        module = tiny_module(family, seed, **changes)
        module.save_pretrained(path)
        if not safe:
            torch.save(module.state_dict(), path / "pytorch_model.bin")
            (path / "model.safetensors").unlink()
        return str(path)

    return save


def test_one_process_alone_is_told_how_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        SettingsError, match=r"takes 2 processes, and this one stands alone; start it with: torchrun --nproc-per-node 2 SCR"
    ):
        team_of(2, "cpu")
    assert team_of(1, "cpu") is None
    with pytest.raises(SettingsError, match="`tensor_parallel`"):
        team_of(0, "cpu")
    with pytest.raises(SettingsError, match="`offload` streams the layers of a whole target .* drop one"):
        team_of(2, "cuda", offload=True)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(SettingsError, match=r"`tensor_parallel` is 2, but 4 processes were started; pass `tensor_parallel` 4"):
        team_of(2, "cpu")
    with pytest.raises(SettingsError, match=r"`device` is cuda:1; pass `device` cuda, or cpu"):
        team_of(4, "cuda:1")
    if not torch.cuda.is_available():
        with pytest.raises(SettingsError, match="torch finds none on this machine; pass `device` cpu"):
            team_of(4, "cuda")
    monkeypatch.setenv("RANK", "x")
    with pytest.raises(SettingsError, match="RANK is 'x'"):
        team_of(4, "cpu")


def in_a_rank(models: dict[str, str], other: tuple[str, str]) -> dict[str, str]:
    """The sentences by which models are refused, and those of processes that differ."""
    found: dict[str, str] = {}

    def note(name: str, work: Callable[[], Any], kind: type[Exception] = ModelError) -> None:
        with pytest.raises(kind) as caught:
            work()
        found[name] = str(caught.value)

    for name, path in models.items():
        note(name, lambda path=path: load_target(path, tensor_parallel=2))  # type: ignore[misc]
    rank = torch.distributed.get_rank()
    note("weights", lambda: load_target(other[rank], tensor_parallel=2), SettingsError)
    note("draft", lambda: load_pair(other[0], other[rank], tensor_parallel=2), SettingsError)
    target = load_target(other[0], tensor_parallel=2).target
    note("tokens", lambda: list(decode_autoregressive(target, Request((1, 2, 3 + rank), 30))))
    shard = target.loaded.shard
    assert shard is not None
    note("size", lambda: load_target(other[0], tensor_parallel=3), SettingsError)
    if rank == 1:
        return found  # and ends
    note("gone", lambda: list(decode_autoregressive(target, Request((1, 2, 3), 300))))
    return found


def test_what_cannot_be_divided_is_named(folder: Callable[..., str], tmp_path: Path) -> None:
    other = folder("llama", "m", 1), folder("llama", "m", 2)
    models = {
        "heads": folder("llama", "heads", num_attention_heads=6, num_key_value_heads=3, head_dim=8),
        "planned heads": folder("gemma", "planned", num_attention_heads=3, num_key_value_heads=3),
        "plan": folder("gpt2", "gpt2"),
        "pickle": folder("llama", "pickle", safe=False),
    }
    for found in of_ranks(2, in_a_rank, models, other):
        assert found["heads"].startswith("`tensor_parallel` 2 does not divide the 3 K/V heads of ")
        assert found["heads"].endswith("pass a number that does: 1")
        assert "does not divide the 3 K/V heads" in found["planned heads"]
        assert "(family gpt2) has no plan in transformers by which `tensor_parallel` could divide it" in found["plan"]
        assert "has a pickle of PyTorch, but with `tensor_parallel` each process reads its slices of safetensors" in found["pickle"]
        assert "the processes of this run differ in the weights of " in found["weights"]
        assert "the processes of this run differ in the draft " in found["draft"]
        assert "the processes have decoded other tokens than one another" in found["tokens"]
        assert "`tensor_parallel` is 3, but the process group has 2 processes" in found["size"]
        assert found.get("gone", "another process of this run has ended").startswith("another process of this run has ended")
