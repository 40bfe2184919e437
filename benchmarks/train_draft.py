"""Train a deliberately weak draft of the embedded target by each objective; compare first-choice acceptance and tokens per step.

The weak draft is the embedded one with noise on its weights (`--noise`, in standard deviations of each matrix). It is trained on
modules of the standard library (`stdlib-train`) and measured on others (`stdlib`), which neither target nor draft has seen.

`python -m benchmarks.train_draft --out FILE` uses a GPU if there is one; `--steps 20 --rows 64 --prompts 16` is enough to try it on a CPU.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from treeopt.optimizer.search import optimize
from treeopt.profiling.acceptance import profile_acceptance
from treeopt.profiling.settings import AcceptanceSettings
from treeopt.training.settings import TrainSettings, TrainSources
from treeopt.training.train import train_draft
from treespec.data.prompts import load_prompts
from treespec.files.writing import make_folder, write_json
from treespec.models.loading import load_model, load_tokenizer
from treespec.models.pairs import load_pair

WAYS: dict[str, dict[str, Any]] = {
    "ce, own text": {"objective": "ce"},
    "forward-kl, own text": {},
    "forward-kl, target's text": {"text": "target"},
    "reverse-kl, target's text": {"text": "target", "divergence": "reverse-kl"},
    "sampled-ce, target's text": {"text": "target", "divergence": "sampled-ce"},
}
"""The ways of training by name, with the settings that differ from the default."""


@dataclass(frozen=True)
class Outcome:
    """A draft's greedy acceptance on held-out prompts, and the promise of the exact tree of one size and depth for it."""

    name: str
    rank1_acceptance: float
    standard_error: float
    tokens_per_step: float
    loss_first: float | None = None
    loss_last: float | None = None
    seconds: float | None = None


def weak_draft(folder: Path, noise: float, seed: int = 0) -> None:
    """Write the embedded draft with noise on its matrices; norms stay."""
    module = load_model("embedded-draft", dtype="float32").module
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 2:
                parameter.add_(noise * float(parameter.std()) * torch.randn(parameter.shape, generator=generator))
    module.save_pretrained(folder)
    load_tokenizer("embedded-draft").save_pretrained(folder)


def measure(name: str, draft: Path, arguments: argparse.Namespace, **trained: float) -> Outcome:
    """Profile a draft on held-out rows and take the best tree for it."""
    pair = load_pair("embedded-target", str(draft), device=arguments.device, dtype=arguments.dtype)
    prompts = load_prompts("stdlib", pair.tokenizer, num_prompts=arguments.prompts, prompt_len=128)
    profile = profile_acceptance(pair, prompts, AcceptanceSettings(gen_len=arguments.gen_len, batch_size=arguments.prompts))
    tree = optimize(profile, size=arguments.size, depth=arguments.depth)
    return Outcome(name, profile.rank_probability[0], profile.standard_error[0], tree.expected_tokens_per_step, **trained)


def train(name: str, weak: Path, folder: Path, texts: Path, arguments: argparse.Namespace) -> Outcome:
    """Train by one of WAYS and measure. Texts that the target has written for another way are used again."""
    make_folder(folder)
    for path in texts.glob("*.jsonl"):
        shutil.copy(path, folder)
    settings = TrainSettings(
        **WAYS[name],
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        seq_len=256,
        learning_rate=arguments.learning_rate,
        eval_prompts=arguments.prompts,
        gen_len=arguments.gen_len,
        eval_steps=max(1, arguments.steps // 4),
        save_steps=arguments.steps,
        save_limit=1,
        text_batch=512,
    )
    sources = TrainSources("embedded-target", "stdlib-train", draft=str(weak), eval_dataset="stdlib", num_rows=arguments.rows)
    result = train_draft(
        sources, settings, folder, device=arguments.device, notice=lambda message: print(f"{name}: {message}", file=sys.stderr)
    )
    for path in folder.glob("*.jsonl"):
        shutil.copy(path, make_folder(texts))
    return measure(name, folder, arguments, loss_first=result.loss_first, loss_last=result.loss_last, seconds=result.seconds)


def table_of(found: Sequence[Outcome], size: int, depth: int) -> Table:
    """Return a table with a row per draft."""
    table = Table(title=f"held-out prompts, greedy; tokens per step of the exact tree of {size} nodes and depth {depth}")
    for column in ("draft", "first-choice acceptance", "tokens per step", "loss, first step", "loss, last steps", "seconds"):
        table.add_column(column, justify="left" if column == "draft" else "right")
    for one in found:
        rest = ("-" if value is None else f"{value:.3f}" for value in (one.loss_first, one.loss_last, one.seconds))
        table.add_row(one.name, f"{one.rank1_acceptance:.4f} ± {one.standard_error:.4f}", f"{one.tokens_per_step:.3f}", *rest)
    return table


def main() -> None:
    """Train, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", help="of the pair that is measured")
    parser.add_argument("--noise", type=float, default=0.3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--rows", type=int, default=1500, help="rows of stdlib-train")
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--gen-len", type=int, default=128)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        weak = Path(work) / "weak"
        weak_draft(weak, arguments.noise)
        found = [measure("weak, before training", weak, arguments)]
        for number, name in enumerate(arguments.ways):
            found.append(train(name, weak, Path(work) / str(number), Path(work) / "texts", arguments))
        pair = load_pair("embedded-target", "embedded-draft", device=arguments.device, dtype=arguments.dtype)
        found.append(measure("embedded draft, as it comes", Path("embedded-draft"), arguments))
    if arguments.out:
        settings = {key: value for key, value in vars(arguments).items() if key != "out"}
        provenance = pair.provenance(dataset=f"stdlib[0:{arguments.prompts}]", temperature=0.0)
        write_json(arguments.out, {"rows": [asdict(one) for one in found], "settings": settings, "provenance": provenance})
    Console(width=140).print(table_of(found, arguments.size, arguments.depth))


if __name__ == "__main__":
    main()
