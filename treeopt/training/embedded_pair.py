"""Train the embedded pair from nothing but the standard library: tokenizer, target, then the draft distilled from it, and an EAGLE-3 head.

Run `python -m treeopt.training.embedded_pair --out FOLDER`. A finished stage is kept, and an unfinished one goes on from its last
checkpoint. `--library` takes the source of another Python than the running one. The target learns by cross-entropy, the
draft by KL(target || draft) on the same text (Hinton et al., arXiv 1503.02531), and the head by the same, level by level (`heads`).
Optimizer: AdamW (0.9, 0.95), warm-up, cosine to 5 %, bf16 autocast (the head on a GPU only). It needs no network.
"""

import argparse
import hashlib
import json
import math
import os
import sys
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from treeopt.training.heads import LEVEL_DECAY, HeadLoss, write_head
from treeopt.training.settings import DEFAULT_LEVELS
from treespec.data.stdlib import modules
from treespec.embedded import TARGET_FOLDER
from treespec.models.heads.making import NewEagle3
from treespec.models.heads.target import HeadTarget, text_states

END_OF_TEXT = "<|endoftext|>"
VOCABULARY = 4096
CONTEXT = 512
BATCH = 32
CHECKPOINT_EVERY = 100
Loss = Callable[[torch.Tensor], torch.Tensor]
"""A loss: tokens [batch, context + 1] -> scalar."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The schedule of one stage."""

    steps: int
    learning_rate: float
    warmup: int = 100

    def rate(self, step: int) -> float:
        """Return the learning rate at a step: linear warm-up, then cosine down to 5 %."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


@dataclass(frozen=True, kw_only=True)
class Stage(Schedule):
    """The shape and the schedule of one model."""

    hidden: int
    layers: int
    head_dim: int
    intermediate: int

    def model(self) -> LlamaForCausalLM:
        """Return a freshly initialised model: one K/V head per query head, no biases, rope theta 10,000."""
        heads = self.hidden // self.head_dim
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=self.hidden,
                num_hidden_layers=self.layers,
                num_attention_heads=heads,
                num_key_value_heads=heads,
                head_dim=self.head_dim,
                intermediate_size=self.intermediate,
                max_position_embeddings=2048,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
                tie_word_embeddings=True,
                bos_token_id=0,
                eos_token_id=0,
                pad_token_id=0,
            )
        )


TARGET = Stage(hidden=256, layers=12, head_dim=128, intermediate=256, steps=1500, learning_rate=2e-3)
DRAFT = Stage(hidden=128, layers=1, head_dim=64, intermediate=384, steps=6000, learning_rate=3e-3)
HEAD = Schedule(steps=4500, learning_rate=1e-3)
HEAD_LEVELS = DEFAULT_LEVELS["eagle3"]


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train byte-level BPE on the training modules; the tokenizer adds no token of its own around a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT, model_max_length=2048
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """Return all texts as one stream of token ids, int64 [tokens], with the end-of-text token after each text."""
    stream: list[int] = []
    for encoding in tokenizer.backend_tokenizer.encode_batch(texts):
        stream += [*encoding.ids, 0]
    return torch.tensor(stream)


def batch(stream: torch.Tensor, step: int, seed: int) -> torch.Tensor:
    """Return the tokens of one step, [BATCH, CONTEXT + 1]: windows of a per-epoch shuffle. They depend on (seed, step) alone."""
    windows = (len(stream) - 1) // CONTEXT
    per_epoch = windows // BATCH
    epoch, index = divmod(step, per_epoch)
    generator = torch.Generator().manual_seed(seed * 1000 + epoch)
    order = torch.randperm(windows, generator=generator)[index * BATCH : (index + 1) * BATCH]
    shift = int(torch.randint(0, CONTEXT, (1,), generator=generator)) if epoch else 0
    starts = (order * CONTEXT + shift).clamp(max=len(stream) - CONTEXT - 1)
    return stream[starts[:, None] + torch.arange(CONTEXT + 1)]


def logits(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Return next-token logits under bf16 autocast, [batch, length, vocabulary]."""
    with torch.autocast(ids.device.type, torch.bfloat16):
        return model(input_ids=ids, use_cache=False).logits  # type: ignore[no-any-return]


def fit(
    name: str, model: torch.nn.Module, stage: Schedule, loss_of: Loss, held_out: Loss, stream: torch.Tensor, held: torch.Tensor, out: Path
) -> None:
    """Run a stage to its end. A checkpoint is written every `CHECKPOINT_EVERY` steps, and an interrupted run goes on from its last one."""
    device = next(model.parameters()).device
    decay = [p for p in model.parameters() if p.ndim == 2]
    plain = [p for p in model.parameters() if p.ndim != 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}], betas=(0.9, 0.95), fused=True
    )
    checkpoint = out / f"{name}.checkpoint.pt"
    first = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True, map_location=device)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    started = time.perf_counter()
    for step in range(first, stage.steps):
        for group in optimizer.param_groups:
            group["lr"] = stage.rate(step)
        loss = loss_of(batch(stream, step, seed=1).to(device))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == stage.steps:
            with torch.no_grad():
                quality = sum(float(held_out(batch(held, i, seed=2).to(device))) for i in range(4)) / 4
            seconds = (time.perf_counter() - started) / (step + 1 - first)
            print(
                f"{name} step {step + 1}/{stage.steps} loss {loss.item():.4f} held-out {quality:.4f} {seconds:.2f} s/step",
                file=sys.stderr,
                flush=True,
            )
            partial = checkpoint.with_suffix(".partial")
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, partial)
            os.replace(partial, checkpoint)
    checkpoint.unlink(missing_ok=True)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a plain model folder in fp16 safetensors, tokenizer included."""
    model.half().save_pretrained(folder)  # type: ignore[no-untyped-call]
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Train the stages that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=TARGET_FOLDER.parent)
    parser.add_argument("--library", type=Path, default=Path(sysconfig.get_paths()["stdlib"]))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    device = torch.device(arguments.device)
    train = list(modules("train", arguments.library))
    held = list(modules("held-out", arguments.library))
    texts = [m.text for m in train]
    made = (out / "target" / "model.safetensors").exists()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out / "target") if made else train_tokenizer(texts)
    stream, held_stream = encode(tokenizer, texts), encode(tokenizer, [m.text for m in held])
    print(
        f"{len(train)} modules, {len(stream)} tokens to train on; {len(held)} modules, {len(held_stream)} tokens held out",
        file=sys.stderr,
        flush=True,
    )

    def cross_entropy(model: LlamaForCausalLM) -> Loss:
        return lambda ids: F.cross_entropy(logits(model, ids[:, :-1]).float().flatten(0, 1), ids[:, 1:].flatten())

    if not made:
        torch.manual_seed(0)
        target = TARGET.model().to(device)  # type: ignore[arg-type]
        fit("target", target, TARGET, cross_entropy(target), cross_entropy(target), stream, held_stream, out)
        save(target, tokenizer, out / "target")
    target = LlamaForCausalLM.from_pretrained(out / "target", dtype=torch.float32)
    target.to(device)  # type: ignore[arg-type]

    if not (out / "draft" / "model.safetensors").exists():
        torch.manual_seed(0)
        draft = DRAFT.model().to(device)  # type: ignore[arg-type]

        def divergence(ids: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                teacher = logits(target, ids[:, :-1]).float().log_softmax(-1)
            student = logits(draft, ids[:, :-1]).float().log_softmax(-1)
            return F.kl_div(student.flatten(0, 1), teacher.flatten(0, 1), log_target=True, reduction="batchmean")

        fit("draft", draft, DRAFT, divergence, divergence, stream, held_stream, out)
        save(draft, tokenizer, out / "draft")

    if not (out / "eagle3" / "model.safetensors").exists():
        new = NewEagle3.of("embedded-target", target.config, None)
        head = new.made(HeadTarget.of(target, "embedded-target"), None, seed=0)
        module = HeadLoss(head, HEAD_LEVELS, "forward-kl", temperature=1.0, vocabulary=VOCABULARY).to(device)
        weights = sum(LEVEL_DECAY**level for level in range(HEAD_LEVELS))

        def over_levels(ids: torch.Tensor) -> torch.Tensor:
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):  # many CPUs are slower in it
                with torch.no_grad():
                    states, teacher = text_states(target, ids, head.state_layers)
                return module(ids, states, ids, teacher) / (weights * ids.numel())  # type: ignore[no-any-return]

        fit("eagle3", module, HEAD, over_levels, over_levels, stream, held_stream, out)
        write_head(out / "eagle3", new, head, torch.float16)
    record = {
        "library": arguments.library.name,
        "text_sha256": hashlib.sha256("\0".join(texts).encode()).hexdigest(),
        "train_tokens": len(stream),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "train_modules": [m.name for m in train],
        "held_out_modules": [m.name for m in held],
    }
    if not made:
        (out / "training.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
