"""How a draft is trained."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from transformers import TrainingArguments

from treeopt.training.losses import Loss
from treespec.errors import TrainingError

FREE = ("eval_steps", "save_steps", "save_limit", "text_batch", "skip_bad_rows")
"""Settings and sources that may change from call to call of one run: they decide nothing about what is trained."""

MAX_SEED = 2**32 - 1
"""NumPy's limit."""


@dataclass(frozen=True)
class TrainSettings:
    """What is minimised, on which text, for how long. Lengths are in tokens; `batch_size` is rows per process and pass.

    `ce` is cross-entropy with the data set's text. `distill` lowers a divergence from the target, at `temperature`, on the
    data set's text (`own`) or on the target's continuations of its rows (`target`, sampled at `text_temperature`);
    `sampled-ce` is cross-entropy with these continuations. `steps` or `epochs`, not both; neither is 1,000 steps.
    """

    objective: Literal["ce", "distill"] = "distill"
    divergence: Literal["forward-kl", "reverse-kl", "sampled-ce"] = "forward-kl"
    text: Literal["own", "target"] = "own"
    temperature: float = 1.0
    text_temperature: float = 1.0
    steps: int | None = None
    epochs: float | None = None
    batch_size: int = 8
    gradient_accumulation: int = 1
    seq_len: int = 512
    learning_rate: float = 3e-4
    warmup: float = 0.05
    """Share of the steps, or a number of them from 1 on; then the rate follows a cosine down to 0."""
    dtype: str = "auto"
    """Of the arithmetic: float32, bfloat16 (autocast), auto: bfloat16 on a GPU that has it. Trained weights are float32."""
    eval_prompts: int = 64
    prompt_len: int = 128
    gen_len: int = 128
    eval_steps: int = 100
    save_steps: int = 100
    save_limit: int = 2
    text_batch: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        small = {"batch-size": self.batch_size, "gradient-accumulation": self.gradient_accumulation, "eval-steps": self.eval_steps}
        small |= {
            "save-steps": self.save_steps,
            "save-limit": self.save_limit,
            "text-batch": self.text_batch,
            "prompt-len": self.prompt_len,
        }
        for name, value in small.items():
            if value < 1:
                raise TrainingError(f"--{name} is {value}, but it must be 1 or more")
        if self.steps is not None and self.epochs is not None:
            raise TrainingError(f"training ends after {self.steps} steps or {self.epochs} epochs; pass one of --steps and --epochs")
        if (self.steps is not None and self.steps < 1) or (self.epochs is not None and self.epochs <= 0):
            raise TrainingError("there is nothing to train: --steps must be 1 or more, --epochs more than 0")
        if self.seq_len < 2 or self.gen_len < 2:
            raise TrainingError(f"--seq-len {self.seq_len} and --gen-len {self.gen_len} must be 2 or more: a first token is never drafted")
        if self.temperature <= 0 or self.text_temperature < 0 or self.learning_rate <= 0 or self.warmup < 0 or self.eval_prompts < 0:
            raise TrainingError(
                f"--temperature {self.temperature} and --learning-rate {self.learning_rate} must be more than 0, "
                f"--text-temperature {self.text_temperature}, --warmup {self.warmup} and --eval-prompts {self.eval_prompts} 0 or more"
            )
        if self.epochs is None and self.warmup_steps(self.most_steps) >= self.most_steps:
            raise TrainingError(f"--warmup {self.warmup:g} takes all of the {self.most_steps} steps; lower it, or raise --steps")
        if not 0 <= self.seed <= MAX_SEED:
            raise TrainingError(f"--seed is {self.seed}, but it must be 0 to {MAX_SEED}")
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise TrainingError(
                f"--dtype is {self.dtype}, but training runs in float32 or bfloat16: float16 overflows without loss scaling"
            )
        if self.objective == "ce" and self.text == "target":
            raise TrainingError("cross-entropy with the target's text is --objective distill --divergence sampled-ce")
        if self.objective == "distill" and self.divergence == "sampled-ce" and self.text == "own":
            raise TrainingError("sampled-ce learns the target's own samples; pass --text target, or leave --text out")
        if self.text == "target" and self.seq_len <= self.prompt_len:
            raise TrainingError(
                f"--seq-len {self.seq_len} leaves nothing to write after --prompt-len {self.prompt_len}; pass --seq-len {self.prompt_len + 2} or more"
            )

    @property
    def most_steps(self) -> int:
        """Steps of a run that is not bounded by epochs."""
        return self.steps or 1000

    def warmup_steps(self, steps: int) -> int:
        """Of so many steps, those until the learning rate is reached; a share leaves at least one."""
        return int(self.warmup) if self.warmup >= 1 else min(math.ceil(steps * self.warmup), steps - 1)

    def to_json(self) -> dict[str, Any]:
        """As plain data, without what cross-entropy with the data set's text makes no use of."""
        unused = ("divergence", "temperature", "text_temperature") if self.objective == "ce" else ()
        return {name: value for name, value in asdict(self).items() if name not in unused}

    @property
    def loss(self) -> Loss:
        """What is computed per position."""
        return cast(Loss, self.divergence) if self.objective == "distill" and self.divergence != "sampled-ce" else "ce"


def training_arguments(settings: TrainSettings, folder: Path, device: str) -> TrainingArguments:
    """The Trainer's settings; making them also joins the other processes, if a launcher has started some. Raises TrainingError."""
    if device.startswith("cuda:") and device != "cuda:0":
        raise TrainingError(
            f"training runs on cuda:0 or on one GPU per process of a launcher; for {device} set CUDA_VISIBLE_DEVICES={device[5:]}"
        )
    cpu = device == "cpu"
    if not cpu and not torch.cuda.is_available():
        raise TrainingError(f"device {device} was asked for, but this torch ({torch.__version__}) finds no CUDA GPU; use --device cpu")
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
