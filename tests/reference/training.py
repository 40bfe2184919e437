"""Settings of short training runs on the tiny pair, and the weights that they leave."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from treeopt.training.settings import TrainSettings

SETTINGS = TrainSettings(
    text="target",
    steps=60,
    batch_size=16,
    seq_len=24,
    learning_rate=3e-3,
    prompt_len=8,
    gen_len=16,
    eval_prompts=12,
    eval_steps=30,
    save_steps=20,
    text_batch=64,
)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Those of a model folder."""
    return load_file(folder / "model.safetensors")


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
