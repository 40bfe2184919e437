"""Put a small trained Llama inside a large one, which then gives the small one's answers at the large one's cost.

Acceptance needs trained models, and speed needs large ones. If no large weights are at hand, `inflate` puts the embedded
pair inside models of Llama-2-7B and llama-68m shape, which are then read, multiplied and cached like real ones.

The small weights take the first rows and columns of the large matrices. The rest of every matrix that writes into the
residual stream is zero, so that new dimensions, heads and layers stay silent; the rest of the others is random, so that
the work is real. RMSNorm averages over the width: its weights and its epsilon are rescaled to match.

`python -m benchmarks.inflate --out DIR` writes DIR/target and DIR/draft as plain model folders.
"""

import argparse
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from treespec.embedded import DRAFT_FOLDER, TARGET_FOLDER
from treespec.errors import ModelError, TreeoptError
from treespec.files.writing import make_folder

_WRITES_TO_RESIDUAL = ("o_proj", "down_proj", "embed_tokens", "lm_head")
_NOISE = 0.02


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama that decide the cost of a pass."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int


SHAPES = {
    "llama-68m": Shape(768, 2, 12, 3072),
    "llama-160m": Shape(768, 12, 12, 3072),
    "llama-2-7b": Shape(4096, 32, 32, 11008),
    "llama-2-13b": Shape(5120, 40, 40, 13824),
}


@dataclass(frozen=True)
class InflatedPair:
    """An inflated target and draft, with their common tokenizer."""

    target: LlamaForCausalLM
    draft: LlamaForCausalLM
    tokenizer: Any


def inflate(small: LlamaForCausalLM, big: LlamaForCausalLM, seed: int = 0) -> LlamaForCausalLM:
    """Overwrite the weights of `big` so that it computes the same as `small`. Return `big`, on its own device and in its own dtype.

    At most one parameter at a time exists in fp32 beside the models. Raises ModelError for pairs that cannot match:
    `big_config` makes a configuration that can.
    """
    weights = {device: Inflated(small, big.config, device, seed) for device in {p.device for p in big.parameters()}}
    with torch.no_grad():
        for name, parameter in big.named_parameters():
            parameter.copy_(weights[parameter.device].weight(name, tuple(parameter.shape)))
    return big


class Inflated:
    """The weights of a large model that computes the same as a small one, one after another. Ask for them in the order of the model's parameters."""

    def __init__(self, small: LlamaForCausalLM, big: LlamaConfig, device: torch.device | str, seed: int = 0) -> None:
        """Take the small model and the configuration of the large one. Raises ModelError for pairs that cannot match."""
        _require_compatible(small.config, big)
        self._small = dict(small.state_dict())
        self._small.setdefault("lm_head.weight", self._small["model.embed_tokens.weight"])
        self._scale = math.sqrt(small.config.hidden_size / big.hidden_size)
        self._device, self._generator = device, torch.Generator(device).manual_seed(seed)

    def weight(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Return the next weight, by its name and shape, in fp32."""
        if "norm" in name:
            new = torch.ones(shape, device=self._device)
        elif any(part in name for part in _WRITES_TO_RESIDUAL):
            new = torch.zeros(shape, device=self._device)
        else:
            new = torch.randn(shape, device=self._device, generator=self._generator) * _NOISE
        if name in self._small:
            old = self._small[name].to(self._device, torch.float32)
            new[tuple(slice(length) for length in old.shape)] = old * self._scale if "norm" in name else old
        return new


def big_config(small: LlamaConfig, shape: Shape) -> LlamaConfig:
    """Return the configuration of a model of the given shape that `inflate` can fill with `small`."""
    changes = asdict(shape) | {
        "num_key_value_heads": shape.num_attention_heads,
        "rms_norm_eps": small.rms_norm_eps * small.hidden_size / shape.hidden_size,
        "tie_word_embeddings": False,
    }
    return LlamaConfig.from_dict(small.to_dict() | changes)


def inflated(folder: Path, shape: Shape | str, device: torch.device | str, dtype: torch.dtype, seed: int = 0) -> LlamaForCausalLM:
    """Load the model of a folder and inflate it. It is built on the device in the wanted dtype, so 7B takes only 13 GB in fp16.

    Raises ModelError for an unknown shape, an incompatible one, or a folder without weights.
    """
    if isinstance(shape, str):
        if shape not in SHAPES:
            raise ModelError(f"there is no shape {shape!r}; the shapes are {', '.join(SHAPES)}")
        shape = SHAPES[shape]
    if not (folder / "model.safetensors").exists():
        raise ModelError(f"{folder.name} has no weights: train the embedded pair with `python -m treeopt.training.embedded_pair`")
    small = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = big_config(small.config, shape)
    _require_compatible(small.config, config)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            big = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    big.generation_config = small.generation_config
    inflate(small, big, seed).train(False)
    return big


def inflated_pair(
    device: torch.device | str,
    dtype: torch.dtype,
    target_shape: Shape | str = "llama-2-7b",
    draft_shape: Shape | str = "llama-68m",
) -> InflatedPair:
    """Inflate the embedded pair to two shapes: head_dim is 128 in the target's, 64 in the draft's. Raises ModelError."""
    return InflatedPair(
        target=inflated(TARGET_FOLDER, target_shape, device, dtype, seed=0),
        draft=inflated(DRAFT_FOLDER, draft_shape, device, dtype, seed=1),
        tokenizer=AutoTokenizer.from_pretrained(TARGET_FOLDER),
    )


def _require_compatible(small: LlamaConfig, big: LlamaConfig) -> None:
    """Raise ModelError for two configurations that no choice of weights makes equal."""
    for key in ("head_dim", "vocab_size", "rope_parameters", "hidden_act"):
        if getattr(small, key) != getattr(big, key):
            raise ModelError(
                f"inflating needs equal {key}, but the small model has {getattr(small, key)} and the big one {getattr(big, key)}"
            )
    for key in asdict(SHAPES["llama-68m"]):
        if getattr(small, key) > getattr(big, key):
            raise ModelError(
                f"inflating needs room, but {key} is {getattr(small, key)} in the small model and {getattr(big, key)} in the big one"
            )
    for config in (small, big):
        if config.num_key_value_heads != config.num_attention_heads or config.attention_bias or config.mlp_bias:
            raise ModelError("inflating needs one key/value head per query head and no biases in either model")
    eps = small.rms_norm_eps * small.hidden_size / big.hidden_size
    if big.tie_word_embeddings or not math.isclose(big.rms_norm_eps, eps, rel_tol=1e-6):
        raise ModelError(f"the big model needs tie_word_embeddings=False and rms_norm_eps={eps:g}; make its configuration with big_config")


def main() -> None:
    """Write the inflated pair as plain model folders."""
    parser = argparse.ArgumentParser(description="Write the embedded pair, inflated to large shapes, as plain model folders.")
    parser.add_argument("--out", type=Path, required=True, help="folder to hold target/ and draft/")
    parser.add_argument("--target-shape", choices=SHAPES, default="llama-2-7b")
    parser.add_argument("--draft-shape", choices=SHAPES, default="llama-68m")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16")
    arguments = parser.parse_args()
    tasks = (("target", TARGET_FOLDER, arguments.target_shape, 0), ("draft", DRAFT_FOLDER, arguments.draft_shape, 1))
    try:
        for role, folder, shape, seed in tasks:
            out = make_folder(arguments.out / role)
            model = inflated(folder, shape, arguments.device, getattr(torch, arguments.dtype), seed)
            model.save_pretrained(out)
            AutoTokenizer.from_pretrained(TARGET_FOLDER).save_pretrained(out)
            print(f"{role}: {sum(p.numel() for p in model.parameters()) / 1e6:.0f} M parameters, {shape} shape -> {out}", file=sys.stderr)
            del model  # before the next one is built
    except (TreeoptError, OSError) as e:
        raise SystemExit(f"error: {e}") from e


if __name__ == "__main__":
    main()
