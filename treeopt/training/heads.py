"""Training a head on the states of its target: the loss over its levels, its draft tokens, and its files.

Level d counts with the weight 0.8 to the power d - 1, as in the authors' code of EAGLE-3 (SafeAILab/EAGLE, `eagle/traineagle3/main.py`, 7
levels) and as Medusa-1 has it (Cai et al., arXiv 2401.10774, section 2.2.1). The levels of a DFlash draft count in the same way; its authors
weigh them by a falling exponential as well (Chen et al., arXiv 2602.06036, equation 4).
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

from treeopt.training.folder import STAGING, saving
from treeopt.training.losses import IGNORED, Loss, summed_loss
from treeopt.training.settings import TrainSettings, TrainSources
from treeopt.training.sources import Target
from treeopt.training.texts import Texts
from treeopt.training.trainer import DraftTrainer, Watch
from treespec.errors import CapacityError
from treespec.files.writing import write_json
from treespec.models.heads.making import NewDFlash, NewEagle3, NewHead, NewMedusa, Trainable
from treespec.models.heads.target import HeadTarget, text_states

LEVEL_DECAY = 0.8
"""The weight of a level's loss, beside that of the level above it."""


class HeadLoss(nn.Module):
    """A head in training, called as the Trainer calls a model."""

    def __init__(self, head: Trainable, levels: int, loss: Loss, temperature: float, vocabulary: int) -> None:
        super().__init__()
        self.head, self.levels, self.loss, self.temperature = head, levels, loss, temperature
        self.known: Tensor
        ids = head.target_ids
        known = torch.arange(vocabulary)
        if ids is not None:
            known = torch.full((vocabulary,), IGNORED).index_copy(0, ids.cpu(), torch.arange(len(ids)))
        self.register_buffer("known", known, persistent=False)

    def forward(self, ids: Tensor, states: Tensor, labels: Tensor | None = None, target: Tensor | None = None) -> Tensor:
        """Return the sum of the loss over levels and positions, or without `labels` what the first level proposes first.

        `ids` int64 [batch, length] are texts, `states` [batch, length, state layers, Ht] and `target` [batch, length, V] the target's states and
        logits at their tokens; `labels` int64 [batch, length] are the tokens themselves, and IGNORED where they do not count. A position counts on
        every level. One whose token (`ce`), or whose likeliest token by the target (divergences), is no draft token has no loss.
        What is proposed is int64 [batch, length - 1]: draft tokens as ids of the target.
        """
        states = states.float()
        if labels is None:
            first = next(self.head.score(ids, states, 1)).argmax(-1)
            return first if self.head.target_ids is None else self.head.target_ids[first]
        assert target is not None
        total = torch.zeros((), device=ids.device)
        for level, logits in enumerate(self.head.score(ids, states, self.levels), start=1):
            wanted, teacher = labels[:, level + 1 :], target[:, level:-1]
            total = total + LEVEL_DECAY ** (level - 1) * self._summed(logits[:, :-1], wanted, teacher)
        return total

    def _summed(self, logits: Tensor, labels: Tensor, target: Tensor) -> Tensor:
        ids = self.head.target_ids
        if ids is not None:
            decisive = labels if self.loss == "ce" else target.argmax(-1)
            labels = self.known[decisive.clamp(min=0)].masked_fill(labels == IGNORED, IGNORED)
            target = target[..., ids]
        return summed_loss(self.loss, logits.flatten(0, 1), labels.flatten(), target.flatten(0, 1), self.temperature)


class HeadTrainer(DraftTrainer):
    """A Trainer of a head. Its checkpoints are folders of the head, and more."""

    goes_on = False

    def __init__(
        self,
        new: NewHead,
        module: HeadLoss,
        texts: Texts,
        arguments: TrainingArguments,
        *,
        vocabulary: int,
        teacher: PreTrainedModel,
        held_out: Texts | None,
        callbacks: list[TrainerCallback],
    ) -> None:
        super().__init__(
            module, texts, arguments, loss=module.loss, vocabulary=vocabulary, teacher=teacher, held_out=held_out, callbacks=callbacks
        )
        self.new, self.module = new, module

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """See `DraftTrainer.compute_loss`; the loss is the sum over levels, each with its weight."""
        ids, labels = inputs["input_ids"], inputs["labels"]
        states, logits = self._read(ids)
        loss = model(ids, states, labels, logits) / self.step_tokens(labels, num_items_in_batch)
        return (loss, {}) if return_outputs else loss

    def first_choices(self, tokens: Tensor) -> Tensor:
        """See `DraftTrainer.first_choices`. No head proposes the second token of a text: there is no state before the first one."""
        states, _ = self._read(tokens)
        return F.pad(self.draft(tokens, states)[:, :-1], (1, 0), value=-1)

    def _read(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the target's states and logits, over the tokens of its vocabulary."""
        assert self.teacher is not None
        with torch.no_grad():
            states, logits = text_states(self.teacher, tokens.long(), self.module.head.state_layers)
        return states, logits[..., : self.vocabulary]

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.args.should_save:
            write_head(Path(output_dir or str(self.args.output_dir)), self.new, self.module.head)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        saved = load_file(Path(resume_from_checkpoint) / self.new.file)
        with torch.no_grad():
            for name, tensor in self.new.stored(self.module.head).items():
                tensor.copy_(saved[name])


@dataclass(frozen=True)
class HeadToTrain:
    """A head to train. It is made when the target is loaded, and its draft tokens are known when the texts are."""

    new: NewHead
    levels: int
    draft_vocabulary: int | None
    vocabulary: int
    """Number of tokens of the target, all of which the head reads."""
    reads_target = True
    config = None
    """A head has no bound of positions of its own."""

    @classmethod
    def of(cls, sources: TrainSources, target: Target) -> "HeadToTrain":
        """Return the head that is asked for. Raises ModelError if the target can have none."""
        assert sources.kind is not None
        levels = sources.trained_levels
        new: NewHead
        if sources.kind == "eagle3":
            new = NewEagle3.of(target.name, target.config, sources.draft_vocabulary)
        elif sources.kind == "dflash":
            new = NewDFlash.of(target.name, target.config, levels)
        else:
            new = NewMedusa.of(target.name, target.config, levels)
        return cls(new, levels, sources.draft_vocabulary, target.vocabulary)

    def require_texts(self, settings: TrainSettings) -> None:
        """Raise CapacityError if the texts to train on are shorter than the levels are deep."""
        if settings.seq_len < self.levels + 2:
            raise CapacityError(
                f"`seq_len` {settings.seq_len} leaves no token for level {self.levels} of a head; pass `seq_len` {self.levels + 2} or more, or fewer `levels`"
            )

    def trainer(
        self, target: Target, texts: Texts, held_out: Texts | None, settings: TrainSettings, arguments: TrainingArguments, watch: Watch
    ) -> HeadTrainer:
        """Return the Trainer of a new head. Raises ModelError."""
        module = target.load()[0].module
        ids = None if self.draft_vocabulary is None else frequent_tokens(texts, self.draft_vocabulary, self.vocabulary)
        head = self.new.made(HeadTarget.of(module, target.name), ids, settings.seed)
        loss = HeadLoss(head, self.levels, settings.loss, settings.temperature, self.vocabulary)
        return HeadTrainer(
            self.new, loss, texts, arguments, vocabulary=self.vocabulary, teacher=module, held_out=held_out, callbacks=[watch]
        )

    def write(self, folder: Path, target: Target, trainer: DraftTrainer | None, checkpoint: Path | None) -> None:
        """Save the head of a Trainer, or without one that of a checkpoint. Each file is written whole, the configuration last. Raises OutputError."""
        staging = folder / STAGING
        with saving(folder):
            shutil.rmtree(staging, ignore_errors=True)
            if isinstance(trainer, HeadTrainer):
                write_head(staging, self.new, trainer.module.head)
            else:
                assert checkpoint is not None
                staging.mkdir()
                for name in (self.new.file, "config.json"):
                    shutil.copyfile(checkpoint / name, staging / name)
            for name in (self.new.file, "config.json"):
                os.replace(staging / name, folder / name)
            staging.rmdir()


def write_head(folder: Path, new: NewHead, head: Trainable, dtype: torch.dtype = torch.float32) -> None:
    """Write a head's weights in a type, and its config.json, in the layout of its kind."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in new.stored(head).items()}
    save_file({name: tensor.contiguous().cpu() for name, tensor in kept.items()}, folder / new.file, metadata={"format": "pt"})
    write_json(folder / "config.json", {**new.config, "dtype": str(dtype).removeprefix("torch.")})
    shutil.copymode(folder / "config.json", folder / new.file)  # safetensors has written it for its owner alone


def frequent_tokens(texts: Texts, count: int, vocabulary: int) -> Tensor:
    """Return the ids of the tokens that count most often in texts, int64 [count] in rising order; of equally frequent ones, the lower ids."""
    often = torch.bincount(texts.tokens[texts.counts].long(), minlength=vocabulary)
    return often.argsort(descending=True, stable=True)[:count].sort().values
