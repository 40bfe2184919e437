"""Make a draft for a target: pretrain one from a configuration, fine-tune one, distil the target into it, or train a head on its states."""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from transformers import TrainingArguments

from treeopt.training.arguments import training_arguments
from treeopt.training.folder import Run, claimed, drop_later, open_run, require_free
from treeopt.training.heads import HeadToTrain
from treeopt.training.record import NAME, SCHEMA, VERSION, Outcome, outcome
from treeopt.training.settings import FREE, TrainSettings, TrainSources
from treeopt.training.sources import Target, Trained, contents, open_draft
from treeopt.training.texts import Continuing, Shares, Split, Texts, held_out_prompts, own_windows, split_rows, target_texts
from treeopt.training.trainer import DraftTrainer, Watch
from treespec.data.tokens import unreadable
from treespec.errors import CapacityError, ModelError, TrainingError, counted
from treespec.files.provenance import Provenance, public_name
from treespec.files.writing import write_json
from treespec.models import families
from treespec.models.quiet import without_bars

Progress = Callable[[str, int, int], None]
Notice = Callable[[str], None]


_BAD_ROWS_SHOWN = 10
"""Number of bad rows that are named; more are only counted."""


@dataclass(frozen=True)
class TrainResult(Outcome):
    """The figures of a run, and its folder."""

    folder: Path
    record: Mapping[str, Any]
    """The content of training.json."""


def train_draft(
    sources: TrainSources,
    settings: TrainSettings,
    folder: Path,
    *,
    device: str = "cpu",
    resume: bool = False,
    progress: Progress = lambda what, done, total: None,
    notice: Notice = lambda message: None,
) -> TrainResult:
    """Train a draft into `folder`, which is then a draft like any other; its checkpoints, texts and `training.json` are there too.

    Everything that can be refused is refused before the target's weights are read. Under a launcher every process calls this; only the
    first one writes, and it keeps other runs out of the folder. A process group that the caller has made stays; one that is made here is
    destroyed at the end. After SIGINT or SIGTERM a checkpoint is written and TrainingError raised. Raises TreeoptError.
    """
    started = time.perf_counter()
    joined = distributed.is_available() and distributed.is_initialized()
    arguments = training_arguments(settings, folder, device)
    shares = Shares(arguments.world_size, arguments.process_index, _waiting(arguments))
    with ExitStack() as held:
        held.enter_context(without_bars())  # progress has one way to be shown
        if shares.rank == 0:
            held.enter_context(claimed(folder))
            require_free(folder, resume=resume, kind=sources.kind)
        result = _train(
            sources, settings, folder, arguments, shares, started, progress, notice if shares.rank == 0 else lambda message: None
        )
    if shares.processes > 1 and not joined:
        distributed.destroy_process_group()
    return result


def _train(
    sources: TrainSources,
    settings: TrainSettings,
    folder: Path,
    arguments: TrainingArguments,
    shares: Shares,
    started: float,
    progress: Progress,
    notice: Notice,
) -> TrainResult:
    """Train in a folder that is free; `notice` says something in the first process only."""
    target = Target(sources.target, sources.revision, settings.dtype, str(arguments.device))
    draft: Trained = open_draft(sources, target, settings.seed) if sources.kind is None else HeadToTrain.of(sources, target)
    draft.require_texts(settings)
    _require_positions(settings, target, draft)
    ends = target.end_of_text if settings.text == "own" else None
    if ends is not None and (reason := unreadable((ends,), draft.vocabulary)):
        raise ModelError(f"the end of a text, the tokenizer's EOS, is {reason}")
    if draft.reads_target:
        target.require_weights("a head reads its states; use a target that has weights")
    elif settings.objective == "distill":
        target.require_weights("distilling needs them, `objective` ce does not")
    elif settings.eval_prompts:
        target.require_weights("pass `eval_prompts` 0 to train without measuring acceptance")
    split = _rows(sources, settings, target, draft.vocabulary)
    _note_rows(split, sources, settings, notice)
    own, prompts = _material(split, settings, target, settings.batch_size * settings.gradient_accumulation * shares.processes)
    known = {
        "contents": contents(sources, target, draft),
        "sources": {name: public_name(value) if isinstance(value, str) else value for name, value in asdict(sources).items()},
        "settings": settings.to_json(),
        "rows": {"training_rows": len(split.training), "held_out_rows": len(split.held_out), "sha256": split.fingerprint},
        "machine": {"processes": shares.processes},
    }
    split = replace(split, training=())  # `own` and `prompts` hold what is needed of them
    run = _open(folder, known, shares)
    if run.record is not None:
        notice(f"{folder} is finished; nothing is left to train")
        return _result(folder, run.record, shares)
    held_out = _held_out(split, settings, target, draft.vocabulary, folder, shares, progress)
    texts = own
    if prompts is not None:
        how = Continuing(target.key, settings.seq_len, settings.text_temperature, draft.vocabulary, settings.seed, settings.text_batch)
        texts = _continue(target, prompts, how, folder, "texts", shares, lambda done, total: progress("writing texts", done, total))
    history, trainer = run.history, None
    if history is None:
        watch = Watch(settings.eval_steps if held_out is not None else None, progress, notice)
        trainer = draft.trainer(target, texts, held_out, settings, arguments, watch)
        history = _fit(trainer, watch, arguments, run.checkpoint)
    record = _record(known, history, texts, split, arguments, time.perf_counter() - started)
    if shares.rank == 0:
        draft.write(folder, target, trainer, run.checkpoint)
        write_json(folder / NAME, record)
    return _result(folder, record, shares)


def _open(folder: Path, known: Mapping[str, Any], shares: Shares) -> Run:
    """Return the run in the folder. The first process records it, and removes torn checkpoints."""
    shares.wait()
    run = None
    if shares.rank == 0:
        run = open_run(folder, known, FREE)
        if run.record is None:
            drop_later(folder, run.checkpoint)
    shares.wait()
    return run or open_run(folder, known, FREE)


def _fit(trainer: DraftTrainer, watch: Watch, arguments: TrainingArguments, checkpoint: Path | None) -> list[dict[str, Any]]:
    """Train a draft to its last step, from a checkpoint on if there is one, and return the log. Raises TrainingError."""
    watch.trainer = trainer
    arguments.eval_on_start = trainer.held_out is not None and checkpoint is None
    if checkpoint is not None:
        watch.notice(f"going on from {checkpoint.name}")
    with watch.listening():
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    steps, most = trainer.state.global_step, trainer.state.max_steps
    if steps < most:
        stopped = TrainingError(f"interrupted after step {steps} of {most}, which is saved; run the same with `resume` to go on")
        raise stopped from KeyboardInterrupt(watch.signal)
    return [entry for entry in trainer.state.log_history if "train_loss" not in entry]  # a mean over the steps of this call alone


def _result(folder: Path, record: Mapping[str, Any], shares: Shares) -> TrainResult:
    """Return the result that the record holds, when all processes are done."""
    shares.wait()
    found = outcome(record, folder / NAME)
    assert found is not None, "only finished runs have a result"
    return TrainResult(**vars(found), folder=folder, record=record)


def _waiting(arguments: TrainingArguments) -> Callable[[], None]:
    state = arguments.distributed_state
    return (lambda: None) if state is None else state.wait_for_everyone


def _require_positions(settings: TrainSettings, target: Target, draft: Trained) -> None:
    """Raise CapacityError if a model has fewer positions than the texts that it reads have tokens."""
    trained = "`seq_len`", settings.seq_len
    measured = "`prompt_len` or `gen_len`", settings.prompt_len + settings.gen_len if settings.eval_prompts else 0
    taught = [trained] if settings.objective == "distill" or draft.reads_target else []  # else it reads held-out texts alone, or nothing
    for role, config, needs in (("draft", draft.config, [trained, measured]), ("target", target.config, [*taught, measured])):
        if config is None:
            continue
        family = families.check(config)
        for names, tokens in needs:
            if (most := family.max_positions) is not None and tokens > most:
                raise CapacityError(
                    f"texts of {counted(tokens, 'token')} are longer than the {counted(most, 'position')} of the {role}{family.rope_note}; "
                    f"lower {names}"
                )


def _rows(sources: TrainSources, settings: TrainSettings, target: Target, vocabulary: int) -> Split:
    """Return the rows to train on and the held-out prompts, from one data set or from two. Raises DatasetError, TrainingError."""
    measured = None
    if sources.eval_rows is not None and settings.eval_prompts:  # before the rows to train on, which can take a minute
        measured = held_out_prompts(
            sources.eval_rows, target.tokenizer, vocabulary, count=settings.eval_prompts, prompt_len=settings.prompt_len
        )
    split = split_rows(
        sources.training_rows,
        target.tokenizer,
        vocabulary,
        num_rows=sources.num_rows,
        held_out=settings.eval_prompts if sources.eval_dataset is None else 0,
        prompt_len=settings.prompt_len,
        keep=settings.prompt_len if settings.text == "target" else None,
    )
    if measured is None:
        return split
    prompts, bad = measured
    return replace(split, held_out=prompts, bad=(*split.bad, *bad))


def _note_rows(split: Split, sources: TrainSources, settings: TrainSettings, notice: Notice) -> None:
    """Say which rows were skipped, and whether fewer are held out than asked for."""
    for row in split.bad[:_BAD_ROWS_SHOWN]:
        notice(f"skipped: {row.reason}")
    if len(split.bad) > _BAD_ROWS_SHOWN:
        notice(f"skipped: {counted(len(split.bad) - _BAD_ROWS_SHOWN, 'more bad row')}")
    if len(split.held_out) < settings.eval_prompts:
        notice(
            f"acceptance is measured on {counted(len(split.held_out), 'row')}, not {settings.eval_prompts}: "
            f"{sources.eval_dataset} has no more that are long enough"
        )


def _held_out(
    split: Split, settings: TrainSettings, target: Target, vocabulary: int, folder: Path, shares: Shares, progress: Progress
) -> Texts | None:
    """Return the target's greedy continuations of the held-out prompts; the draft's first choices are compared with the tokens after their first."""
    if not len(split.held_out):
        return None
    how = Continuing(target.key, settings.prompt_len + settings.gen_len, 0.0, vocabulary, settings.seed, settings.text_batch)
    texts = _continue(
        target, split.held_out, how, folder, "held-out", shares, lambda done, total: progress("writing held-out texts", done, total)
    )
    counts = texts.counts.clone()
    counts[:, settings.prompt_len] = False  # it comes from the prompt pass and is never drafted
    if not counts.any():
        raise TrainingError(
            "the target ends every held-out prompt at once, so there is no position to measure acceptance at; use other rows"
        )
    return Texts(texts.tokens, counts)


def _material(split: Split, settings: TrainSettings, target: Target, step: int) -> tuple[Texts, torch.Tensor | None]:
    """Return windows of the rows' own text, or the prompts that the target continues. Raises TrainingError if they do not fill a `step`."""
    if settings.text == "own":
        texts, prompts = own_windows(split.training, settings.seq_len, target.end_of_text), None
        found, what = (
            len(texts),
            f"{settings.seq_len} tokens (`seq_len`), {counted(sum(map(len, split.training)), 'token', form=',')} in all",
        )
    else:
        rows = [row[: settings.prompt_len] for row in split.training if len(row) >= settings.prompt_len]
        texts = own_windows((), settings.seq_len, None)
        prompts = torch.stack(rows) if rows else None
        found, what = len(rows), f"{counted(settings.prompt_len, 'token')} to continue (`prompt_len`)"
    if found < step:
        raise TrainingError(
            f"{split.dataset} has {counted(len(split.training), 'row')} for {counted(found, 'text')} of {what}, but a step needs {step}; "
            "give more or longer rows, or lower these lengths, `batch_size` or `gradient_accumulation`"
        )
    return texts, prompts


def _continue(
    target: Target, prompts: torch.Tensor, how: Continuing, folder: Path, name: str, shares: Shares, on_tokens: Callable[[int, int], None]
) -> Texts:
    path = folder / f"{name}-{how.fingerprint(prompts)[:16]}.jsonl"
    return target_texts(target.load, prompts, how, path, shares, on_tokens)


def _record(
    known: Mapping[str, Any],
    history: list[dict[str, Any]],
    texts: Texts,
    split: Split,
    arguments: TrainingArguments,
    seconds: float,
) -> dict[str, Any]:
    """Return training.json of a finished run."""
    losses = [entry["loss"] for entry in history if "loss" in entry]
    models = {role: name for role in ("target", "draft", "config") if (name := known["sources"][role])}
    provenance = Provenance.collect(
        models=models,
        dtype="bfloat16" if arguments.bf16 else "float32",
        dataset=f"{split.dataset}[{split.start}:{split.end}]",
        seed=arguments.seed,
    )
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "finished": True,
        **known,
        "texts": {"rows": len(texts), "tokens_that_count": texts.counted},
        "steps": history[-1]["step"],
        "loss": {"first": losses[0], "last": losses[-1]},
        "seconds": seconds,
        "history": history,
        "provenance": provenance.to_json(),
    }
