"""Training runs that fail, diverge, or are gone on with otherwise than they began."""

import json
import os
import re
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from tests.reference.folders import names
from tests.reference.training import SETTINGS, equal, weights
from treeopt.training import train as drafting_models
from treeopt.training import trainer
from treeopt.training.folder import LOCK, newest_checkpoint
from treeopt.training.settings import TrainSources
from treeopt.training.sources import Target
from treeopt.training.train import TrainResult, train_draft
from treespec.errors import CapacityError, ModelError, OutputError, SettingsError, TrainingError
from treespec.files.locks import alone
from treespec.models.loading import load_model

SHORT = replace(SETTINGS, text="own", eval_prompts=0, steps=12, save_steps=5)


def stopping(at: int, act: Callable[[], None]) -> Callable[[str, int, int], None]:
    """A progress callback that acts at one step."""

    def progress(what: str, done: int, total: int) -> None:
        if what == "training" and done == at:
            act()

    return progress


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def die() -> None:
    raise MemoryError


def copied(sources: TrainSources, folder: Path) -> TrainSources:
    """The same models and rows in folders and files of the same names elsewhere."""
    for path in (sources.target, sources.draft):
        shutil.copytree(path, folder / Path(path).name)
    return replace(sources, target=str(folder / Path(sources.target).name), draft=str(folder / Path(sources.draft).name))


@pytest.mark.parametrize("role", ["target", "draft", "config"])
def test_another_model_of_the_same_name_is_not_gone_on_with(sources: TrainSources, role: str, tmp_path: Path) -> None:
    given = copied(sources, tmp_path / "here")
    shape = tmp_path / "shape.json"
    if role == "config":
        LlamaConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2).to_json_file(shape)
        given = replace(given, draft=None, config=str(shape))
    out = tmp_path / "out"
    with pytest.raises(TrainingError, match="interrupted after step 3"):
        train_draft(given, SHORT, out, progress=stopping(3, interrupt))
    assert str(tmp_path) not in (out / "training.json").read_text()
    moved = tmp_path / "there"
    moved.mkdir()
    if role == "config":
        shutil.copy(shape, moved / shape.name)
        same = other = replace(given, config=str(moved / shape.name))
        train_draft(same, SHORT, shutil.copytree(out, tmp_path / "same"), resume=True)
        LlamaConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=1).to_json_file(moved / shape.name)
    else:
        same = other = copied(given, moved)
        train_draft(same, SHORT, shutil.copytree(out, tmp_path / "same"), resume=True)
        changed = moved / ("target" if role == "target" else "weak")
        module = load_model(str(changed)).module
        with torch.no_grad():
            module.lm_head.weight += 0.1
        module.save_pretrained(changed)
    words = "`config_file`" if role == "config" else f"`{role}_weights`"
    with pytest.raises(TrainingError, match=f"was trained with {words} .*, and now it is .*; resume with the same"):
        train_draft(other, SHORT, out, resume=True)


def test_texts_are_those_of_the_targets_weights_not_of_its_name(sources: TrainSources, tmp_path: Path) -> None:
    given = copied(sources, tmp_path)
    before = Target(given.target, None, "auto", "cpu").key
    assert Target(given.target, None, "auto", "cpu").key == Target(os.path.relpath(given.target), None, "auto", "cpu").key == before
    module = load_model(given.target).module
    with torch.no_grad():
        module.model.norm.weight *= 1.5
    module.save_pretrained(given.target)
    assert Target(given.target, None, "auto", "cpu").key != before


def poison(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Make the loss no number from a step on."""
    calls = []
    real = trainer.summed_loss

    def broken(*arguments: Any, **options: Any) -> torch.Tensor:
        calls.append(1)
        return real(*arguments, **options) * (float("nan") if len(calls) > after else 1.0)

    monkeypatch.setattr(trainer, "summed_loss", broken)


def test_a_run_that_diverges_keeps_its_good_checkpoint_and_says_how_to_go_on(
    sources: TrainSources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is no number from step 6 on; steps 8 and 12 would save, step 10 would log."""
    settings = replace(SHORT, save_steps=4, save_limit=1)
    with monkeypatch.context() as patched:
        poison(patched, after=5)
        with pytest.raises(TrainingError) as caught:
            train_draft(sources, settings, tmp_path / "out")
    assert re.match("the (loss|gradient's norm) is nan at step 8; train on from the last checkpoint before it", str(caught.value))
    advice = re.search(r"lower `learning_rate`: `draft` (\S+), and another `folder`", str(caught.value))
    assert advice is not None
    assert advice[1] == str(tmp_path / "out" / "checkpoint-4")
    assert [name for name in names(tmp_path / "out") if name.startswith("checkpoint")] == ["checkpoint-4"]
    result = train_draft(replace(sources, draft=advice[1]), replace(settings, learning_rate=1e-4), tmp_path / "other")
    assert result.steps == 12


def test_a_run_that_diverges_at_once_has_no_checkpoint_to_offer(
    sources: TrainSources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched, pytest.raises(TrainingError, match=r"at step 2; there is no checkpoint yet; start over"):
        poison(patched, after=1)
        train_draft(sources, replace(SHORT, save_steps=2), tmp_path / "out")
    assert names(tmp_path / "out") == ["training.json"]
    train_draft(sources, SHORT, tmp_path / "out")


def test_a_loss_that_is_no_number_at_the_first_step_is_not_the_learning_rates_doing(
    sources: TrainSources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, after=0)
    with pytest.raises(
        TrainingError, match=r"is nan at step 1; nothing has been learned yet, so no learning rate helps; pass `dtype` float32"
    ):
        train_draft(sources, SHORT, tmp_path / "out")


def test_a_draft_whose_weights_are_no_numbers_is_refused(sources: TrainSources, tmp_path: Path) -> None:
    given = copied(sources, tmp_path)
    module = load_model(given.draft).module
    with torch.no_grad():
        module.lm_head.weight[3, 5] = float("nan")
    module.save_pretrained(given.draft)
    with pytest.raises(ModelError, match=r"weak cannot be trained: lm_head.weight holds numbers that are not finite; use another draft"):
        train_draft(given, SHORT, tmp_path / "out")


def test_what_was_logged_is_that_of_all_calls(sources: TrainSources, tmp_path: Path) -> None:
    plain = train_draft(sources, SHORT, tmp_path / "plain").record["history"]
    with pytest.raises(TrainingError, match="interrupted after step 7"):
        train_draft(sources, SHORT, tmp_path / "out", progress=stopping(7, interrupt))
    history = train_draft(sources, SHORT, tmp_path / "out", resume=True).record["history"]
    assert [entry["step"] for entry in plain] == [1, 5, 10, 12]
    assert [entry["step"] for entry in history] == [1, 5, 7, 10, 12]
    assert (history[0], history[-1]) == (plain[0], plain[-1])
    assert (2 * history[2]["loss"] + 3 * history[3]["loss"]) / 5 == pytest.approx(plain[2]["loss"])


def test_weights_that_are_no_numbers_are_never_saved(sources: TrainSources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one step's gradient, while the loss was still a number."""
    opened: list[torch.nn.Module] = []
    real = drafting_models.open_draft

    def keep(*arguments: Any) -> Any:
        draft = real(*arguments)
        opened.append(draft.module)
        return draft

    def spoil() -> None:
        with torch.no_grad():
            next(opened[0].parameters())[0, 0] = float("inf")

    monkeypatch.setattr(drafting_models, "open_draft", keep)
    with pytest.raises(TrainingError, match="weights are not finite at step 10; train on from .*checkpoint-5"):
        train_draft(sources, SHORT, tmp_path, progress=stopping(10, spoil))
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-5"
    assert not (tmp_path / "checkpoint-10").exists()


@contextmanager
def small_files(limit: int) -> Iterator[Callable[[], None]]:
    """What makes the system refuse files beyond a limit, until the end of the block."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("share", [0.5, 1.5], ids=["weights", "optimizer"])
def test_a_full_disk_is_said_with_the_remedy_which_works(sources: TrainSources, share: float, tmp_path: Path) -> None:
    size = (Path(sources.draft) / "model.safetensors").stat().st_size
    with (
        small_files(int(share * size)) as fill,
        pytest.raises(OutputError, match=r"cannot save .*checkpoint-10: .*; free some space.* then run the same with `resume`$") as caught,
    ):
        train_draft(sources, SHORT, tmp_path / "out", progress=stopping(10, fill))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "checkpoint-10").exists(), "a torn checkpoint takes up space"
    train_draft(sources, SHORT, tmp_path / "out", resume=True)
    train_draft(sources, SHORT, tmp_path / "plain")
    assert equal(weights(tmp_path / "out"), weights(tmp_path / "plain"))


def test_a_first_call_that_came_to_nothing_locks_no_folder(sources: TrainSources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Target) -> None:
        raise ModelError("does not fit")

    with monkeypatch.context() as patched, pytest.raises(ModelError):
        patched.setattr(Target, "load", fail)
        train_draft(sources, SETTINGS, tmp_path)
    assert names(tmp_path) == ["training.json"]
    with pytest.raises(MemoryError):
        train_draft(sources, replace(SHORT, batch_size=32), tmp_path, progress=stopping(3, die))
    with pytest.raises(MemoryError):
        train_draft(sources, replace(SHORT, batch_size=8), tmp_path, resume=True, progress=stopping(7, die))
    with pytest.raises(TrainingError, match="holds a training run already; pass `resume`"):
        train_draft(sources, SHORT, tmp_path)
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-5"


def test_one_run_at_a_time_trains_in_a_folder(sources: TrainSources, tmp_path: Path) -> None:
    """From the first look at the folder to its last file."""
    out = tmp_path / "out"
    refusal = r"another run is writing .*out now; wait for it, or name another output with -o"
    refused = []

    def second() -> None:
        with pytest.raises(OutputError, match=refusal), alone(out / LOCK, out):
            pytest.fail("two runs are within")
        refused.append(True)

    assert train_draft(sources, SHORT, out, progress=stopping(7, second)).steps == SHORT.steps
    assert refused
    assert LOCK not in names(out)
    before = names(out)
    for resume in (True, False):
        with alone(out / LOCK, out), pytest.raises(OutputError, match=refusal):
            train_draft(sources, SHORT, out, resume=resume)
        assert names(out) == before


def test_texts_that_the_target_wrote_are_no_empty_folder(sources: TrainSources, tmp_path: Path) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if what == "writing texts" and done >= 64 * 16:
            raise MemoryError

    with pytest.raises(MemoryError):
        train_draft(sources, SETTINGS, tmp_path, progress=stop)
    with pytest.raises(TrainingError, match="holds a training run already; pass `resume`"):
        train_draft(sources, SETTINGS, tmp_path)


def test_what_decides_nothing_may_change_from_call_to_call(sources: TrainSources, whole: TrainResult, tmp_path: Path) -> None:
    """How often to save and to measure, how many rows to write at once: the weights are those of the uninterrupted run."""
    with pytest.raises(TrainingError, match="interrupted after step 23"):
        train_draft(sources, SETTINGS, tmp_path, progress=stopping(23, interrupt))
    changed = replace(SETTINGS, save_steps=11, save_limit=9, eval_steps=50, text_batch=5)
    result = train_draft(replace(sources, skip_bad_rows=True), changed, tmp_path, resume=True)
    assert equal(weights(tmp_path), weights(whole.folder))
    assert {f"checkpoint-{step}" for step in (20, 23, 33, 44, 55, 60)} == {n for n in names(tmp_path) if n.startswith("checkpoint")}
    assert [entry["step"] for entry in result.record["history"] if "rank1_acceptance" in entry] == [0, 50, 60]
    assert (result.before, result.after) == (whole.before, whole.after)


def test_a_damaged_checkpoint_is_passed_over_and_removed(sources: TrainSources, whole: TrainResult, tmp_path: Path) -> None:
    out = shutil.copytree(whole.folder, tmp_path / "out")
    record = json.loads((out / "training.json").read_text())
    (out / "training.json").write_text(json.dumps({**record, "finished": False}))
    (out / "model.safetensors").unlink()
    torn = out / "checkpoint-60" / "optimizer.pt"
    os.truncate(torn, torn.stat().st_size - 7)
    said: list[str] = []
    removed: list[bool] = []
    train_draft(
        sources,
        SETTINGS,
        out,
        resume=True,
        notice=said.append,
        progress=stopping(41, lambda: removed.append((out / "checkpoint-60").exists())),
    )
    assert said[0] == "going on from checkpoint-40"
    assert removed == [False]
    assert equal(weights(out), weights(whole.folder))


def test_cross_entropy_without_measuring_asks_nothing_of_the_targets_positions(sources: TrainSources, tmp_path: Path) -> None:
    given = copied(sources, tmp_path)
    config = json.loads((tmp_path / "target" / "config.json").read_text())
    (tmp_path / "target" / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 20}))
    plain = replace(SHORT, objective="ce", steps=2)
    assert train_draft(given, plain, tmp_path / "out").steps == 2
    with pytest.raises(CapacityError, match="texts of 24 tokens are longer than the 20 positions of the target; lower `seq_len`$"):
        train_draft(given, replace(SHORT, steps=2), tmp_path / "other")
    with pytest.raises(
        CapacityError, match="texts of 24 tokens are longer than the 20 positions of the target; lower `prompt_len` or `gen_len`$"
    ):
        train_draft(given, replace(plain, eval_prompts=4), tmp_path / "other")
    assert train_draft(given, replace(plain, eval_prompts=4, gen_len=10), tmp_path / "other").after is not None


def test_a_warm_up_longer_than_the_epochs_is_said(sources: TrainSources, tmp_path: Path) -> None:
    said: list[str] = []
    train_draft(sources, replace(SHORT, steps=None, epochs=0.5, warmup=100.0), tmp_path / "out", notice=said.append)
    assert said[0].startswith("`warmup` is 100 of ")
    assert "the learning rate is never reached" in said[0]
    with pytest.raises(SettingsError, match="`warmup` 12 takes all of the 12 steps; lower it, or raise `steps`"):
        replace(SHORT, warmup=12.0)
    assert [replace(SHORT, warmup=share).warmup_steps(12) for share in (0.0, 0.05, 0.5, 0.99, 1.0, 11.9)] == [0, 1, 6, 11, 1, 11]
    single = train_draft(sources, replace(SHORT, steps=1), tmp_path / "single")
    assert single.record["history"][0]["learning_rate"] == SHORT.learning_rate, "one step is no warm-up"
    said.clear()
    train_draft(sources, replace(SHORT, steps=None, epochs=0.5, warmup=1.0), tmp_path / "other", notice=said.append)
    assert "`warmup`" not in said[0]


def test_one_held_out_text_has_no_standard_error(sources: TrainSources, tmp_path: Path) -> None:
    said: list[str] = []
    result = train_draft(sources, replace(SHORT, eval_prompts=1), tmp_path, notice=said.append)
    assert result.before is not None
    assert result.before[1] is None
    assert [entry["rank1_standard_error"] for entry in result.record["history"] if "rank1_acceptance" in entry] == [None, None]
    assert re.fullmatch(r"step 0: first-choice acceptance \d\.\d{4} on held-out texts", said[0])
