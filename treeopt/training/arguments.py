"""The settings of transformers' Trainer, made from those of a training run."""

from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from treeopt.training.settings import TrainSettings
from treespec.errors import TrainingError


def training_arguments(settings: TrainSettings, folder: Path, device: str) -> TrainingArguments:
    """Return the Trainer's settings. Making them also joins the other processes, if a launcher has started some. Raises TrainingError."""
    if device.startswith("cuda:") and device != "cuda:0":
        raise TrainingError(
            f"training runs on cuda:0 or on one GPU per process of a launcher; for {device} set CUDA_VISIBLE_DEVICES={device[5:]}"
        )
    cpu = device == "cpu"
    if not cpu and not torch.cuda.is_available():
        raise TrainingError(f"device {device} was asked for, but this torch ({torch.__version__}) finds no CUDA GPU; use `device` cpu")
    bf16 = settings.dtype == "bfloat16" or (settings.dtype == "auto" and not cpu and torch.cuda.is_bf16_supported())
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
