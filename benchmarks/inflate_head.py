"""Put a small trained EAGLE-3 head inside a large one, for a target that `benchmarks.inflate` made large: the same proposals at the large head's cost.

The target's new dimensions and layers are silent, so the head reads the same layers as before, by their numbers, and the small states lie in
the first dimensions of the large ones. Weights are placed and filled up as `inflate` does it: what writes into the head's residual stream is zero
beyond the small weights, and the rest is random.
"""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig

from benchmarks.inflate import Shape
from treespec.errors import ModelError
from treespec.files.writing import make_folder, write_json

_NOISE = 0.02
_SILENT = ("fc.weight", "midlayer.self_attn.o_proj.weight", "midlayer.mlp.down_proj.weight", "lm_head.weight")
"""Matrices whose rows beyond the small ones write into the residual stream, or into logits."""
_READS = {
    "fc.weight": 3,
    "midlayer.self_attn.q_proj.weight": 2,
    "midlayer.self_attn.k_proj.weight": 2,
    "midlayer.self_attn.v_proj.weight": 2,
}
"""Matrices that read several vectors of the hidden size side by side, and how many."""


def inflate_head(
    folder: Path, target: LlamaConfig, shape: Shape, out: Path, dtype: torch.dtype, device: torch.device | str, seed: int = 2
) -> Path:
    """Write the head of a folder, grown to a shape, into the folder `out`, and return that.

    `target` is the configuration of the small target, `shape` that of the large one. Raises ModelError for a head that is not in the authors' layout,
    has not one key/value head per query head, or is larger than the shape.
    """
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors", device=str(device))
    small, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    if "midlayer.self_attn.q_proj.weight" not in weights or config.get("num_key_value_heads", heads) != heads:
        raise ModelError(f"{folder} holds no head that can be grown; train one with `python -m treeopt.training.embedded_pair`")
    if small > shape.hidden_size or heads > shape.num_attention_heads or int(config["intermediate_size"]) > shape.intermediate_size:
        raise ModelError(f"{folder} holds a head of {small} x {heads} heads, and the shape to grow it to is smaller; take a larger shape")
    random = torch.Generator(device).manual_seed(seed)
    sizes = _Sizes(small, int(config["head_dim"]), shape)
    grown = {
        name: _grown(name, tensor, sizes, random).to(dtype) if tensor.is_floating_point() else tensor for name, tensor in weights.items()
    }
    layers = target.num_hidden_layers
    changes = {
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_attention_heads,
        "rms_norm_eps": config["rms_norm_eps"] * small / shape.hidden_size,
        "eagle_aux_hidden_state_layer_ids": [2, layers // 2, layers - 3],
        "dtype": str(dtype).removeprefix("torch."),
    }
    made = make_folder(out)
    save_file({name: tensor.contiguous().cpu() for name, tensor in grown.items()}, made / "model.safetensors", metadata={"format": "pt"})
    write_json(made / "config.json", config | changes)
    return made


class _Sizes:
    """The sizes of the large tensors."""

    def __init__(self, small: int, head_dim: int, shape: Shape) -> None:
        self.small, self.hidden, self.inner = small, shape.hidden_size, shape.intermediate_size
        self.heads = shape.num_attention_heads * head_dim

    def of(self, name: str, rows: int) -> tuple[int, int]:
        """Return rows and columns of the large matrix, for a small one of so many rows."""
        reads = _READS.get(name, 1) * self.hidden
        if name.endswith(("gate_proj.weight", "up_proj.weight")):
            return self.inner, reads
        if name.endswith("down_proj.weight"):
            return self.hidden, self.inner
        if name.endswith("o_proj.weight"):
            return self.hidden, self.heads
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            return self.heads, reads
        return (rows if name == "lm_head.weight" else self.hidden), reads


def _grown(name: str, old: Tensor, sizes: _Sizes, random: torch.Generator) -> Tensor:
    """Return the large tensor of a small one, in float32."""
    old = old.float()
    if old.dim() == 1:
        new = torch.ones(sizes.hidden, device=old.device)
        new[: sizes.small] = old * math.sqrt(sizes.small / sizes.hidden)
        return new
    rows, columns = sizes.of(name, len(old))
    new = torch.randn(rows, columns, device=old.device, generator=random) * _NOISE
    if name in _SILENT:
        new.zero_()
    parts = _READS.get(name, 1)
    for part, block in enumerate(old.chunk(parts, dim=1)):
        start = part * columns // parts
        new[: len(old), start : start + block.shape[1]] = block
    return new
