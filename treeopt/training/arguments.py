"""The settings of transformers' Trainer, made from those of a training run."""

from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from treeopt.training.settings import TrainSettings
from treespec.errors import TrainingError
from treespec.models.devices import find, half_precision

_VISIBLE = {"cuda": "CUDA_VISIBLE_DEVICES", "xpu": "ZE_AFFINITY_MASK"}
"""The variables of the environment that choose which GPUs a process sees."""


def training_arguments(settings: TrainSettings, folder: Path, device: str) -> TrainingArguments:
    """Return the Trainer's settings. Making them also joins the other processes, if a launcher has started some. Raises TrainingError."""
    kind, _, index = device.partition(":")
    if kind in _VISIBLE and index not in ("", "0"):
        raise TrainingError(f"training runs on {kind}:0 or on one GPU per process of a launcher; for {device} set {_VISIBLE[kind]}={index}")
    where = find(device)
    cpu = where.type == "cpu"
    bf16 = settings.dtype == "bfloat16" or (settings.dtype == "auto" and not cpu and half_precision(where) == torch.bfloat16)
    length: dict[str, Any] = {"num_train_epochs": settings.epochs, "warmup_steps": settings.warmup}
    if settings.epochs is None:
        length = {"max_steps": settings.most_steps, "warmup_steps": settings.warmup_steps(settings.most_steps)}
    return TrainingArguments(
        output_dir=str(folder),
        use_cpu=cpu,
        bf16=bf16,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        adam_beta2=0.95,
        weight_decay=0.1,
        **length,
        logging_steps=10,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # a loss that is no number ends the run
        save_strategy="steps",
        save_steps=settings.save_steps,
        save_total_limit=settings.save_limit,
        seed=settings.seed,
        data_seed=settings.seed,
        dataloader_drop_last=True,
        dataloader_pin_memory=not cpu,
        remove_unused_columns=False,
        label_names=["labels"],
        ddp_timeout=24 * 3600,  # processes wait for one another while the target writes texts
        ddp_find_unused_parameters=False,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        log_level_replica="error",
    )
