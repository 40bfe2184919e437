"""Whole training runs on a tiny pair: what they reach, what they leave, how they go on, what they refuse."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.utils import logging

from tests.reference.folders import names
from tests.reference.pairs import VOCABULARY, prompt_set, tiny_pair
from tests.reference.training import SETTINGS, equal, weights
from treeopt.profiling.acceptance import profile_acceptance
from treeopt.profiling.settings import AcceptanceSettings
from treeopt.training import sources as models_to_train
from treeopt.training import train as drafting_models
from treeopt.training.folder import newest_checkpoint
from treeopt.training.settings import CONFIGS, TrainSources
from treeopt.training.sources import Target, new_model
from treeopt.training.texts import Continuing, Shares, target_texts
from treeopt.training.train import TrainResult, train_draft
from treespec.data.prompts import load_prompts
from treespec.errors import CapacityError, ModelError, SettingsError, TrainingError
from treespec.models.pairs import load_pair, load_target
from treespec.models.tree_model import TreeModel


def test_distilling_raises_the_first_choice_acceptance_of_a_weak_draft(sources: TrainSources, whole: TrainResult) -> None:
    assert whole.before is not None
    assert whole.after is not None
    assert whole.before[0] < 0.3
    assert whole.after[0] > whole.before[0] + 0.2 > whole.before[0] + 3 * whole.after[1]
    assert whole.loss_last < 0.3 * whole.loss_first
    assert whole.steps == 60


def test_the_saved_folder_is_a_draft_and_what_was_logged_is_its_profile(sources: TrainSources, whole: TrainResult) -> None:
    """Measured again by `profile_acceptance` on the folder that was saved, and on the one it started from."""
    for draft, expected in ((str(whole.folder), whole.after), (sources.draft, whole.before)):
        pair = load_pair(sources.target, draft)
        prompts = load_prompts(sources.dataset, None, num_prompts=12, prompt_len=8, vocabulary_size=VOCABULARY)
        profile = profile_acceptance(pair, prompts, AcceptanceSettings(gen_len=16, max_branch=1))
        assert expected is not None
        assert (profile.rank_probability[0], profile.standard_error[0]) == pytest.approx(expected, abs=1e-6)


def test_the_record_says_what_was_done_and_holds_no_path(sources: TrainSources, whole: TrainResult) -> None:
    text = (whole.folder / "training.json").read_text()
    record = json.loads(text)
    assert (record["schema"], record["version"], record["finished"]) == ("treeopt.training", 1, True)
    assert record == json.loads(json.dumps(whole.record))
    assert [entry["step"] for entry in record["history"] if "rank1_acceptance" in entry] == [0, 30, 60]
    assert [entry["step"] for entry in record["history"] if "loss" in entry] == [1, *range(10, 61, 10)]
    assert (record["rows"]["training_rows"], record["texts"]["rows"]) == (128, 128)
    assert str(Path(sources.target).parent) not in text
    assert str(whole.folder) not in text
    assert {"checkpoint-40", "checkpoint-60", "config.json", "model.safetensors", "training.json"} <= set(names(whole.folder))
    assert not [name for name in names(whole.folder) if "journal" in name or name.startswith(".")]


def test_what_is_left_of_the_journals_of_texts_goes(tmp_path: Path) -> None:
    path, prompts = tmp_path / "texts.jsonl", torch.zeros(1, 2, dtype=torch.int32)
    path.write_text('{"input_ids": [0, 0, 5]}\n')
    for left in ("texts.jsonl.0.journal", ".treeopt-texts.jsonl.0.journal.lock"):
        (tmp_path / left).write_text("left by a run that was killed")
    assert target_texts(pytest.fail, prompts, Continuing("target", length=3, temperature=0, vocabulary=9), path).tokens.tolist() == [
        [0, 0, 5]
    ]
    assert names(tmp_path) == ["texts.jsonl"]


def test_texts_are_the_targets_own_and_no_held_out_row_is_among_them(sources: TrainSources, whole: TrainResult) -> None:
    rows = [json.loads(line)["input_ids"] for line in Path(sources.dataset).read_text().splitlines()]
    (texts,), (held_out,) = (list(whole.folder.glob(f"{name}-*.jsonl")) for name in ("texts", "held-out"))
    trained, measured = ([json.loads(line)["input_ids"] for line in path.read_text().splitlines()] for path in (texts, held_out))
    assert [text[:8] for text in measured] == [row[:8] for row in rows[:12]]
    assert [text[:8] for text in trained] == [row[:8] for row in rows[12:]]
    pair = load_target(sources.target)
    for text in measured:
        with torch.no_grad():
            assert pair.target.module(input_ids=torch.tensor([text])).logits[0, 7:-1].argmax(-1).tolist() == text[8:]
    ends = [[token in pair.eos_token_ids for token in text[8:]] for text in measured + trained]
    assert all(not any(end[:-1]) and (end[-1] or len(end) == 16) for end in ends), "up to the first EOS"
    assert any(end[-1] for end in ends)
    record = json.loads((whole.folder / "training.json").read_text())
    assert record["texts"]["tokens_that_count"] == sum(len(text) - 8 for text in trained)


def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(
    sources: TrainSources, whole: TrainResult, tmp_path: Path
) -> None:
    """By SIGINT in the second epoch, not at a checkpoint's step; a checkpoint torn later on is passed over."""
    out = tmp_path / "out"

    def stop(what: str, done: int, total: int) -> None:
        if what == "training" and done == 13:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(TrainingError, match="interrupted after step 1[34] of 60, which is saved; run the same with `resume`"):
        train_draft(sources, SETTINGS, out, progress=stop)
    assert signal.getsignal(signal.SIGINT) is before
    saved = newest_checkpoint(out)
    assert saved is not None
    assert not (out / "config.json").exists()
    torn = out / "checkpoint-20"
    shutil.copytree(saved, torn)
    assert newest_checkpoint(out) == saved, "its trainer_state.json is of another step"
    (torn / "trainer_state.json").unlink()
    assert newest_checkpoint(out) == saved
    said: list[str] = []
    resumed = train_draft(sources, SETTINGS, out, resume=True, notice=said.append)
    assert said[0] == f"going on from {saved.name}"
    assert equal(weights(out), weights(whole.folder))
    assert (resumed.before, resumed.after) == (whole.before, whole.after)
    again = train_draft(sources, SETTINGS, out, resume=True)
    assert again.record == resumed.record, "a finished run is told again"


def test_a_killed_run_goes_on_from_its_last_checkpoint(sources: TrainSources, whole: TrainResult, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def die(what: str, done: int, total: int) -> None:
        if what == "training" and done == 33:
            raise MemoryError

    with pytest.raises(MemoryError):
        train_draft(sources, SETTINGS, out, progress=die)
    assert newest_checkpoint(out) == out / "checkpoint-20"
    train_draft(sources, SETTINGS, out, resume=True)
    assert equal(weights(out), weights(whole.folder))


def test_a_run_killed_after_its_last_step_is_saved_without_another(
    sources: TrainSources, whole: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*arguments: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched, pytest.raises(MemoryError):
        patched.setattr(models_to_train, "write_model", die)
        train_draft(sources, SETTINGS, tmp_path)
    monkeypatch.setattr(models_to_train, "DraftTrainer", lambda *a, **k: pytest.fail("trained again"))
    resumed = train_draft(sources, SETTINGS, tmp_path, resume=True)
    assert equal(weights(tmp_path), weights(whole.folder))
    assert (resumed.steps, resumed.before, resumed.after) == (60, whole.before, whole.after)
    assert resumed.loss_last == whole.loss_last


def test_writing_texts_goes_on_where_it_stopped_and_is_shared_out(sources: TrainSources, tmp_path: Path) -> None:
    prompts = torch.tensor([p.ids for p in prompt_set(10)])
    how = Continuing("t", 20, 1.0, VOCABULARY, seed=5, batch_size=2)
    asked: list[int] = []

    def target() -> tuple[TreeModel, frozenset[int]]:
        asked.append(1)
        return tiny_pair().target, frozenset(range(0, VOCABULARY, 9))

    expected = target_texts(target, prompts, how, tmp_path / "a.jsonl")
    assert len(asked) == 5
    assert 10 < expected.counted < 140
    assert torch.equal(target_texts(target, prompts, how, tmp_path / "a.jsonl").tokens, expected.tokens)
    assert len(asked) == 5, "read from the file"

    def stop(done: int, total: int) -> None:
        if done > 2 * 2 * 14:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        target_texts(target, prompts, how, tmp_path / "b.jsonl", on_tokens=stop)
    asked.clear()
    found = target_texts(target, prompts, how, tmp_path / "b.jsonl")
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.counts, expected.counts)
    assert len(asked) == 3

    class StopHereError(Exception):
        pass

    def other_waits() -> None:
        raise StopHereError

    with pytest.raises(StopHereError):
        target_texts(target, prompts, how, tmp_path / "c.jsonl", Shares(2, 1, other_waits))
    asked.clear()
    assert torch.equal(target_texts(target, prompts, how, tmp_path / "c.jsonl", Shares(2, 0)).tokens, expected.tokens)
    assert len(asked) == 3, "two of five batches are the other process's"
    assert names(tmp_path) == ["a.jsonl", "b.jsonl", "c.jsonl"]
    (tmp_path / "a.jsonl").write_text('{"input_ids": [1, 2]}\n')
    with pytest.raises(TrainingError, match="does not hold 10 continued texts of 7 to 20 tokens; delete it"):
        target_texts(target, prompts, how, tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("settings", "target_needed"),
    [
        ({"objective": "ce", "text": "own"}, False),
        ({"divergence": "sampled-ce", "text_temperature": 1.0}, True),
        ({"divergence": "reverse-kl", "text": "own", "gradient_accumulation": 2, "temperature": 2.0}, True),
    ],
)
def test_every_objective_lowers_its_loss(
    sources: TrainSources, settings: dict[str, Any], target_needed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random rows teach `ce` their tokens' frequencies at most; without acceptance it never reads the target's weights."""
    if not target_needed:
        monkeypatch.setattr(Target, "load", lambda self: pytest.fail("the target's weights were read"))
    result = train_draft(sources, replace(SETTINGS, **settings, steps=25, eval_prompts=0), tmp_path)
    assert result.loss_last < 0.9 * result.loss_first
    assert (result.before, result.after) == (None, None)


def test_a_new_draft_has_the_targets_vocabulary_and_special_tokens(sources: TrainSources, tmp_path: Path) -> None:
    shape = tmp_path / "shape.json"
    LlamaConfig(vocab_size=5, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2).to_json_file(shape)
    made = replace(sources, draft=None, config=str(shape))
    result = train_draft(made, replace(SETTINGS, steps=2), tmp_path / "out")
    pair = load_pair(sources.target, str(result.folder))
    ours, theirs = pair.draft.module.config, pair.target.module.config
    assert (ours.vocab_size, ours.hidden_size, ours.num_hidden_layers) == (VOCABULARY, 16, 1)
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)
    other = train_draft(made, replace(SETTINGS, steps=2), tmp_path / "other")
    assert equal(weights(result.folder), weights(other.folder)), "one seed, one draft"


def test_the_given_configurations_have_the_sizes_of_their_names(sources: TrainSources) -> None:
    """Embedding and head of 32,000 x 768, and per layer 4 x 768^2 + 3 x 768 x 3072 and two norms, and one more."""
    target = Target(sources.target, None, "auto", "cpu")
    target.vocabulary = 32000
    for name, layers in (("llama-68m", 2), ("llama-160m", 12)):
        with torch.device("meta"):
            parameters = sum(p.numel() for p in new_model(name, target, 0).parameters())
        assert parameters == 2 * 32000 * 768 + layers * (4 * 768**2 + 3 * 768 * 3072 + 2 * 768) + 768
        assert round(parameters / 1e6, -1 if layers == 12 else 0) == int(name[6:-1])
    assert set(CONFIGS) == {"llama-68m", "llama-160m"}


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"seq_len": 300}, CapacityError, "texts of 300 tokens are longer than the 256 positions of the draft; lower `seq_len`$"),
        ({"prompt_len": 10, "gen_len": 250}, CapacityError, "texts of 260 tokens are longer .*; lower `prompt_len` or `gen_len`$"),
        ({"text": "own", "seq_len": 240, "batch_size": 17}, TrainingError, "rows.jsonl has 128 rows for 16 texts of 240 tokens"),
        ({"batch_size": 129}, TrainingError, "for 128 texts of 8 tokens to continue .`prompt_len`., but a step needs 129"),
        (
            {"eval_prompts": 150},
            TrainingError,
            "`eval_prompts` holds out 150 rows of rows.jsonl to measure acceptance, but 140 have 8 tokens",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    sources: TrainSources, changes: dict[str, Any], error: type[Exception], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Target, "load", lambda self: pytest.fail("the target's weights were read"))
    with pytest.raises(error, match=words):
        train_draft(sources, replace(SETTINGS, **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_taken_is_refused(sources: TrainSources, whole: TrainResult, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="holds a training run already; pass `resume`"):
        train_draft(sources, SETTINGS, whole.folder)
    with pytest.raises(TrainingError, match="was trained with `learning_rate` 0.003, and now it is 0.001; resume with the same"):
        train_draft(sources, replace(SETTINGS, learning_rate=1e-3), whole.folder, resume=True)
    with pytest.raises(TrainingError, match="was trained with `num_rows` 10000, and now it is 128"):
        train_draft(replace(sources, num_rows=128), SETTINGS, whole.folder, resume=True)
    for resume in (False, True):
        with pytest.raises(TrainingError, match="holds another model .config.json., which training would overwrite"):
            train_draft(sources, SETTINGS, Path(sources.draft), resume=resume)


def broken_config(content: str) -> Callable[[TrainSources, Path], TrainSources]:
    def make(sources: TrainSources, folder: Path) -> TrainSources:
        (folder / "c.json").write_text(content)
        return replace(sources, draft=None, config=str(folder / "c.json"))

    return make


def without_weights(sources: TrainSources, folder: Path) -> TrainSources:
    shutil.copytree(Path(sources.target), folder / "empty")
    (folder / "empty" / "model.safetensors").unlink()
    return replace(sources, target=str(folder / "empty"))


def draft_without_weights(sources: TrainSources, folder: Path) -> TrainSources:
    return replace(sources, draft=without_weights(sources, folder).target)


def other_vocabulary(sources: TrainSources, folder: Path) -> TrainSources:
    config = LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "other")
    return replace(sources, draft=str(folder / "other"))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (broken_config("{"), ModelError, "c.json is no JSON"),
        (broken_config("[]"), ModelError, 'names no "model_type"'),
        (
            broken_config('{"model_type": "no-such"}'),
            ModelError,
            'has the model_type "no-such", which transformers does not know; correct it',
        ),
        (broken_config('{"model_type": "bloom"}'), ModelError, "cannot run trees exactly"),
        (broken_config('{"model_type": "llama", "hidden_size": 10, "num_attention_heads": 4}'), ModelError, "no model can be made"),
        (
            broken_config('{"model_type": "llama", "hidden_size": "x"}'),
            ModelError,
            "hidden_size is 'x', but it must be a whole number, 1 or more",
        ),
        (
            broken_config('{"model_type": "llama", "num_hidden_layers": -1}'),
            ModelError,
            "num_hidden_layers is -1, but it must be a whole number, 1 or more",
        ),
        (
            broken_config('{"model_type": "llama", "num_attention_heads": 0}'),
            ModelError,
            "num_attention_heads is 0, but it must be a whole number, 1 or",
        ),
        (without_weights, TrainingError, "holds no weights; distilling needs them"),
        (draft_without_weights, ModelError, "holds no model.safetensors"),
        (other_vocabulary, ModelError, "has 61 logits and draft .* has 50"),
        (lambda s, f: replace(s, draft=None, config="llama-7m"), ModelError, "there is no configuration llama-7m; pass llama-68m"),
    ],
)
def test_bad_sources_are_one_clear_line(
    sources: TrainSources, change: Callable[[TrainSources, Path], TrainSources], error: type[Exception], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words) as caught:
        train_draft(change(sources, tmp_path), SETTINGS, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500, "no list of all that there is"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 0},
        {"steps": 3, "epochs": 1.0},
        {"steps": 0},
        {"seq_len": 1},
        {"temperature": 0.0},
        {"dtype": "float16"},
        {"objective": "ce"},
        {"divergence": "sampled-ce", "text": "own"},
        {"prompt_len": 24},
        {"warmup": 60.0},
        {"seed": 2**32},
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        replace(SETTINGS, **changes)


def test_exactly_one_start_is_needed() -> None:
    for draft, config in ((None, None), ("d", "llama-68m")):
        with pytest.raises(SettingsError, match="exactly one of `draft`, .*, `config`, .*, and `kind`"):
            TrainSources("t", "rows", draft=draft, config=config)


@pytest.mark.slow
def test_two_processes_train_what_one_does(sources: TrainSources, tmp_path: Path) -> None:
    """Half the batch each, launched by torchrun; only the first prints. The texts that the target writes are shared out too."""
    one = train_draft(sources, replace(SETTINGS, steps=12, text_batch=16), tmp_path / "one")
    command = (
        f"train-draft --target {sources.target} --draft {sources.draft} --dataset {sources.dataset} --text target --steps 12 --batch-size 8"
    )
    command += (
        " --seq-len 24 --learning-rate 0.003 --prompt-len 8 --gen-len 16 --eval-prompts 12 --eval-steps 30 --text-batch 16 --device cpu"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "treeopt"]
    done = subprocess.run(
        [*launch, *command.split(), "-o", str(tmp_path / "two"), "--format", "json"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    found = [
        (printed["rank1_acceptance"][when]["probability"], printed["rank1_acceptance"][when]["standard_error"])
        for when in ("before", "after")
    ]
    assert found == [pytest.approx(one.before), pytest.approx(one.after)]
    assert printed["loss"] == pytest.approx({"first": one.loss_first, "last": one.loss_last}, rel=1e-5)
    ours, theirs = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(float((ours[key] - theirs[key]).abs().max()) < 1e-5 for key in ours)
    assert len(list((tmp_path / "two").glob("checkpoint-12/rng_state_*.pth"))) == 2


@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_bfloat16_training_raises_acceptance_and_saves_float32(sources: TrainSources, where: str, tmp_path: Path) -> None:
    result = train_draft(sources, replace(SETTINGS, dtype="bfloat16"), tmp_path, device=where)
    assert result.before is not None
    assert result.after is not None
    assert result.after[0] > result.before[0] + 0.15
    assert result.record["provenance"]["dtype"] == "bfloat16"
    assert all(weight.dtype == torch.float32 for weight in weights(tmp_path).values())


@pytest.mark.parametrize("joined", [True, False])
def test_only_a_process_group_of_its_own_is_destroyed(
    joined: bool, sources: TrainSources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two processes, whose group the caller has made before, or the Trainer's settings make."""
    events, there = [], [joined]

    def join(*arguments: object) -> Any:
        there[0] = True
        return SimpleNamespace(world_size=2, process_index=1, distributed_state=None)

    monkeypatch.setattr(drafting_models, "training_arguments", join)
    monkeypatch.setattr(drafting_models, "_train", lambda *arguments: events.append("trained"))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: there[0])
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: events.append("destroyed"))
    train_draft(sources, SETTINGS, tmp_path / "out")
    assert events == (["trained"] if joined else ["trained", "destroyed"])


def test_training_leaves_progress_bars_as_they_were(sources: TrainSources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(drafting_models, "_train", lambda *arguments: seen.append(logging.is_progress_bar_enabled()))
    before = logging.is_progress_bar_enabled()
    try:
        logging.enable_progress_bar()  # type: ignore[no-untyped-call]
        train_draft(sources, SETTINGS, tmp_path / "out")
        assert (seen, logging.is_progress_bar_enabled()) == ([False], True)
    finally:
        (logging.enable_progress_bar if before else logging.disable_progress_bar)()  # type: ignore[no-untyped-call]
