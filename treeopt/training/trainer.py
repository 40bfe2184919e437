"""transformers' Trainer for drafts: a loss against the target, first-choice acceptance during training, and a stop that loses nothing."""

import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from treeopt.profiles.ratio import ratio
from treeopt.training.folder import newest_checkpoint, saving
from treeopt.training.losses import IGNORED, Loss, summed_loss
from treeopt.training.texts import Texts
from treespec.errors import OutputError, TrainingError, counted

Progress = Callable[[str, int, int], None]
Notice = Callable[[str], None]
_LOGITS_AT_ONCE = 1 << 27
"""Elements of one [texts, positions, vocabulary] block that an evaluation pass may hold."""


class _Rows(Dataset[dict[str, Tensor]]):
    """Texts in the form in which the Trainer reads them."""

    def __init__(self, texts: Texts) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens = self.texts.tokens[index].long()
        return {"input_ids": tokens, "labels": tokens.masked_fill(~self.texts.counts[index], IGNORED)}


class DraftTrainer(Trainer):
    """A Trainer of a draft on texts. `teacher` is the target (None for `ce`), `vocabulary` the number of tokens that both have.

    The loss is the mean over all tokens that count in a step, whatever batches, accumulation steps and processes they are
    spread over. With `held_out`, first-choice acceptance on it is logged when `evaluate` is called.
    """

    loss_is_scaled_for_ga = True  # `compute_loss` divides by the whole step's tokens
    goes_on = True
    """Whether a checkpoint can be trained further as a draft of its own."""

    def __init__(
        self,
        draft: torch.nn.Module,
        texts: Texts,
        arguments: TrainingArguments,
        *,
        loss: Loss,
        vocabulary: int,
        teacher: PreTrainedModel | None = None,
        temperature: float = 1.0,
        held_out: Texts | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs are for several processes, not for torch's DataParallel
        super().__init__(model=draft, args=arguments, train_dataset=_Rows(texts), callbacks=callbacks)
        self.remove_callback(PrinterCallback)  # it prints to stdout
        self.model_accepts_loss_kwargs = True  # so that the tokens of a step are counted for every family
        self.draft = draft  # accelerate gives this very module its autocast
        self.draft_loss, self.vocabulary, self.teacher, self.temperature, self.held_out = loss, vocabulary, teacher, temperature, held_out

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the sum over this batch's tokens divided by the number of those in the whole step, scaled for the mean over processes."""
        ids = inputs["input_ids"]
        labels = F.pad(inputs["labels"][:, 1:], (0, 1), value=IGNORED).flatten()
        outputs = model(input_ids=ids, use_cache=False)
        target = None
        if self.teacher is not None:
            with torch.no_grad():
                target = self.teacher(input_ids=ids, use_cache=False).logits[..., : self.vocabulary].flatten(0, 1)
        draft = outputs.logits[..., : self.vocabulary].flatten(0, 1)
        loss = summed_loss(self.draft_loss, draft, labels, target, self.temperature)
        loss = loss / self.step_tokens(labels, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def step_tokens(self, labels: Tensor, in_step: Tensor | int | None) -> Tensor | float:
        """Return the tokens that count in the whole step, per process; without `in_step`, those of one batch."""
        return (labels != IGNORED).sum() if in_step is None else in_step / self.accelerator.num_processes

    def first_choices(self, tokens: Tensor) -> Tensor:
        """Return the draft's first choice for every token but the first, int64 [batch, length - 1], for texts int [batch, length]."""
        return self.draft(input_ids=tokens[:, :-1], use_cache=False).logits[..., : self.vocabulary].argmax(-1)  # type: ignore[no-any-return]

    @torch.inference_mode()
    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict[str, Any]:
        """Measure and log first-choice acceptance on `held_out` and its standard error over texts, which is None with one text.

        The texts are shared out among the processes.
        """
        if self.held_out is None:
            raise TrainingError("there are no held-out texts to measure acceptance on; pass `eval_prompts` 1 or more")
        self.draft.train(False)
        processes, rank, device = self.args.world_size, self.args.process_index, self.args.device
        hits = torch.zeros(len(self.held_out), dtype=torch.float64, device=device)
        step = max(1, _LOGITS_AT_ONCE // (self.held_out.tokens.shape[1] * self.vocabulary))
        for rows in torch.split(torch.arange(rank, len(self.held_out), processes), step):
            tokens = self.held_out.tokens[rows].to(device)
            first = self.first_choices(tokens)
            hits[rows.to(device)] = ((first == tokens[:, 1:]) & self.held_out.counts[rows, 1:].to(device)).sum(-1).double()
        hits = self.accelerator.reduce(hits, reduction="sum")
        chance, error = ratio(hits[:, None].cpu().numpy(), self.held_out.counts[:, 1:].sum(-1).tolist())
        metrics: dict[str, Any] = {"rank1_acceptance": float(chance[0]), "rank1_standard_error": None if error is None else float(error[0])}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Save a checkpoint as the Trainer does, but never with weights that are not finite. Raises TrainingError, OutputError (nothing torn is left)."""
        if not all(bool(parameter.isfinite().all()) for parameter in self.draft.parameters()):
            raise diverged("weights are not finite", self.state.global_step, Path(str(self.args.output_dir)), goes_on=self.goes_on)
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        try:
            with saving(folder):
                super()._save_checkpoint(model, trial)
        except OutputError:
            shutil.rmtree(folder, ignore_errors=True)  # it is of no use and takes up space
            raise


def diverged(what: str, step: int, folder: Path, *, goes_on: bool = True) -> TrainingError:
    """Return the error for a run whose weights or loss are not finite.

    It says how to train on from the newest checkpoint, whose weights are, if a new run can begin with one (`goes_on`).
    """
    good = newest_checkpoint(folder)
    if step == 1:
        remedy = "nothing has been learned yet, so no learning rate helps; pass `dtype` float32, or use another target or draft"
    elif good is None or not goes_on:
        why = "there is no checkpoint yet" if good is None else "a new run cannot begin with a checkpoint of a head"
        remedy = f"{why}; start over with a lower `learning_rate`, in another folder if the target wrote texts into this one"
    else:
        remedy = f"train on from the last checkpoint before it, with a lower `learning_rate`: `draft` {good}, and another `folder`"
    return TrainingError(f"{what} at step {step}; {remedy}")


class Watch(TrainerCallback):
    """A callback that reports the log, asks for evaluations, and turns a Ctrl-C into a checkpoint and an orderly end.

    All processes stop at the same step: the one that was interrupted tells the others.
    """

    def __init__(self, eval_steps: int | None, progress: Progress, notice: Notice) -> None:
        self.eval_steps, self.progress, self.notice = eval_steps, progress, notice
        self.interrupted = False
        self.signal: int = signal.SIGINT
        self.trainer: DraftTrainer | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Let the first SIGINT or SIGTERM in this block ask for a stop; a later one of its kind acts as it did before.

        One that comes within a second is taken for the same.         Signals reach a process's main thread only: in another thread nothing is changed.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        first: list[float] = []

        def ask(number: int, frame: FrameType | None) -> None:
            if first and time.monotonic() - first[0] > 1:
                signal.signal(number, before[signal.Signals(number)])
                signal.raise_signal(number)
            elif not first:
                first.append(time.monotonic())
                self.interrupted, self.signal = True, number

        for number in before:
            signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take the intervals of this call, not those of the checkpoint, and say if the warm-up is too long."""
        state.save_steps = int(args.save_steps)
        warmup: int = args.get_warmup_steps(state.max_steps)
        if warmup >= state.max_steps:
            self.notice(
                f"`warmup` is {warmup} of {counted(state.max_steps, 'step')}: the learning rate is never reached; lower it, or train for longer"
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for the evaluation, the checkpoint or the stop that is due after this step."""
        last = state.global_step >= state.max_steps
        self.progress("training", state.global_step, state.max_steps)
        control.should_log = control.should_log or last or control.should_save  # a loss that is no number is found before it is saved
        if self.eval_steps is not None and (last or state.global_step % self.eval_steps == 0):
            control.should_evaluate = True
        if self._anywhere(self.interrupted) and not last:
            self.interrupted = True
            control.should_log = control.should_save = control.should_training_stop = True

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Report the loss or the acceptance, and end a run whose loss or gradient is not finite."""
        logs: dict[str, Any] = kwargs["logs"]
        if "loss" in logs:
            for name, what in (("loss", "the loss"), ("grad_norm", "the gradient's norm")):
                if not math.isfinite(logs.get(name, 0.0)):
                    goes_on = self.trainer is None or self.trainer.goes_on
                    raise diverged(f"{what} is {logs[name]}", state.global_step, Path(str(args.output_dir)), goes_on=goes_on)
            self.notice(f"step {state.global_step}: loss {logs['loss']:.4f}")
        if "rank1_acceptance" in logs:
            error = "" if logs["rank1_standard_error"] is None else f" +- {logs['rank1_standard_error']:.4f}"
            self.notice(f"step {state.global_step}: first-choice acceptance {logs['rank1_acceptance']:.4f}{error} on held-out texts")

    def _anywhere(self, flag: bool) -> bool:
        assert self.trainer is not None
        if self.trainer.args.world_size == 1:
            return flag
        found = self.trainer.accelerator.reduce(torch.tensor(float(flag), device=self.trainer.args.device), reduction="sum")
        return bool(found > 0)
