"""Tiny heads in exactly the layouts that were published: every key, shape and dtype, and config.json with what is wrong in published ones."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.reference.heads import DFlash, Eagle, Eagle3, Sizes
from treespec.decoding.protocol import FINAL_STATE
from treespec.errors import ModelError
from treespec.models.heads.loading import load_head
from treespec.models.heads.target import HeadTarget

Change = Callable[[dict[str, Any], dict[str, Tensor]], object]
"""A change of a config and of the weights beside it."""

V, VD, HT, H, INNER, HEADS, SHARED, WIDTH, LAYERS = 60, 25, 24, 16, 20, 4, 2, 6, 12
"""Sizes, by the letters of `treespec.models.heads.eagle3`. No two are equal by chance, but for Ht and heads times width."""
EPSILON = 1e-5


def target(width: int = HT, *, layers: int = LAYERS, seed: int = 0) -> HeadTarget:
    random = torch.Generator().manual_seed(seed)
    return HeadTarget("the-target", layers, torch.randn(V, width, generator=random), torch.randn(V, width, generator=random))


def layer(prefix: str, hidden: int, inputs: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (HEADS * WIDTH, inputs),
        "self_attn.k_proj.weight": (SHARED * WIDTH, inputs),
        "self_attn.v_proj.weight": (SHARED * WIDTH, inputs),
        "self_attn.o_proj.weight": (hidden, HEADS * WIDTH),
        "mlp.gate_proj.weight": (INNER, hidden),
        "mlp.up_proj.weight": (INNER, hidden),
        "mlp.down_proj.weight": (hidden, INNER),
        "post_attention_layernorm.weight": (hidden,),
    }
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


def eagle3_shapes(prefix: str, hidden: int = HT, width: int = HT, states: int = 3) -> dict[str, tuple[int, ...]]:
    return {
        "fc.weight": (hidden, states * width),
        **layer(prefix, hidden, 2 * hidden),
        f"{prefix}.hidden_norm.weight": (hidden,),
        f"{prefix}.input_layernorm.weight": (hidden,),
        "norm.weight": (hidden,),
        "lm_head.weight": (VD, hidden),
        "d2t": (VD,),
        "t2d": (V,),
    }


def tensors(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype = torch.float32, scale: float = 1.5) -> dict[str, Tensor]:
    """Random tensors of these shapes; `d2t` and `t2d` name the same tokens. Matrices enlarge what they read by `scale`."""
    random = torch.Generator().manual_seed(1)
    found = {}
    ids = torch.randperm(V, generator=random)[:VD].sort().values
    for name, shape in shapes.items():
        if name == "d2t":
            found[name] = ids - torch.arange(VD)
        elif name == "t2d":
            found[name] = torch.zeros(V, dtype=torch.bool).index_fill_(0, ids, True)
        elif name.endswith("norm.weight") or name.startswith("fc_norm"):
            found[name] = (1 + torch.randn(shape, generator=random) / 2).to(dtype)
        else:
            found[name] = (torch.randn(shape, generator=random) / shape[-1] ** 0.5 * scale).to(dtype)
    return found


def flat(hidden: int = HT, **changes: Any) -> dict[str, Any]:
    """config.json of the authors' files, with what theirs have wrong: the class, the number of layers, the positions, the tie."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": INNER,
        "head_dim": WIDTH,
        "max_position_embeddings": 8,
        "model_type": "llama",
        "num_attention_heads": HEADS,
        "num_hidden_layers": 40,
        "num_key_value_heads": SHARED,
        "rms_norm_eps": EPSILON,
        "rope_scaling": None,
        "rope_theta": 5000.0,
        "tie_word_embeddings": True,
        "vocab_size": V,
        "draft_vocab_size": VD,
        **changes,
    }


def nested(hidden: int = HT, **changes: Any) -> dict[str, Any]:
    """config.json of speculators."""
    inner = {name: value for name, value in flat(hidden).items() if name not in ("draft_vocab_size", "rope_theta", "rope_scaling")}
    inner |= {"num_hidden_layers": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}
    return {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "speculators_version": "0.4.0",
        "draft_vocab_size": VD,
        "norm_before_residual": True,
        "norm_before_fc": False,
        "fc_norm": False,
        "norm_output": False,
        "target_hidden_size": None,
        "eagle_aux_hidden_state_layer_ids": [2, 6, 9],
        "transformer_layer_config": inner,
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 3}],
            "verifier": {"name_or_path": "team/target", "architectures": ["LlamaForCausalLM"]},
        },
        **changes,
    }


def write(folder: Path, config: Mapping[str, Any] | None, weights: Mapping[str, Tensor], file: str = "model.safetensors") -> str:
    """Write a head and return the name of its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    if file.endswith(".safetensors"):
        save_file(dict(weights), folder / file)
    else:
        torch.save(dict(weights), folder / file)
    return str(folder)


def refusal(folder: Path, config: Mapping[str, Any], weights: dict[str, Tensor], file: str, change: Change, **sizes: int) -> str:
    """The message for a head after a change of its config and its weights, without the folder's name before it."""
    changed = json.loads(json.dumps(config))
    change(changed, weights)
    write(folder, changed, weights, file)
    with pytest.raises(ModelError) as caught:
        load_head(str(folder), target(**sizes))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(folder))
    assert re.search("[:;] ", message), "a remedy"
    return message.removeprefix(str(folder))


@dataclass(frozen=True)
class Published:
    """One layout: what lies in the folder, and what the slow implementation must be told."""

    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    states: tuple[int, ...]
    layers: tuple[str, ...]
    file: str = "model.safetensors"
    rope: Mapping[str, Any] | None = None
    dtype: torch.dtype = torch.float32
    norm_before_residual: bool = False
    norm_output: bool = False

    def write(self, folder: Path) -> dict[str, Tensor]:
        weights = tensors(self.shapes, self.dtype)
        write(folder, self.config, weights, self.file)
        return weights

    def slow(self, weights: Mapping[str, Tensor], of: HeadTarget) -> Eagle3:
        wide = {name: value.double() for name, value in weights.items()}
        embedding = wide.get("embed_tokens.weight", of.embedding.double())
        sizes = Sizes(HEADS, SHARED, WIDTH, EPSILON, self.rope or {"rope_theta": 5000.0})
        lm_head = wide.get("lm_head.weight", of.lm_head.double())
        return Eagle3(wide, self.layers, sizes, embedding, lm_head, self.norm_before_residual, self.norm_output)


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 12, "rope_type": "llama3"}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
_OFFICIAL, _SPECULATORS = eagle3_shapes("midlayer"), eagle3_shapes("layers.0")
_DEFAULT = (2, 6, 9)


def without(shapes: Mapping[str, tuple[int, ...]], *names: str) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in shapes.items() if name not in names}


EAGLE3: Mapping[str, Published] = {
    "official": Published(flat(), _OFFICIAL, _DEFAULT, ("midlayer",), "pytorch_model.bin", dtype=torch.float16),
    "official-llama3": Published(flat(rope_scaling=LLAMA3), _OFFICIAL, _DEFAULT, ("midlayer",), rope={**LLAMA3, "rope_theta": 5000.0}),
    "official-linear": Published(
        flat(rope_scaling={"type": "linear", "factor": 2.0}),
        _OFFICIAL,
        _DEFAULT,
        ("midlayer",),
        rope={"type": "linear", "factor": 2.0, "rope_theta": 5000.0},
    ),
    "specforge-yarn": Published(
        flat(rope_scaling={**YARN, "type": "yarn"}), _OFFICIAL, _DEFAULT, ("midlayer",), rope={**YARN, "rope_theta": 5000.0}
    ),
    "official-whole-vocabulary": Published(
        flat(draft_vocab_size=V),
        {**without(_OFFICIAL, "d2t", "t2d"), "lm_head.weight": (V, HT)},
        _DEFAULT,
        ("midlayer",),
    ),
    "without-lm-head": Published(
        {name: value for name, value in flat().items() if name != "draft_vocab_size"},
        without(_OFFICIAL, "d2t", "t2d", "lm_head.weight"),
        _DEFAULT,
        ("midlayer",),
    ),
    "biased": Published(
        flat(attention_bias=True),
        {
            **_OFFICIAL,
            "fc.bias": (HT,),
            "midlayer.self_attn.q_proj.bias": (HEADS * WIDTH,),
            "midlayer.self_attn.k_proj.bias": (SHARED * WIDTH,),
            "midlayer.self_attn.v_proj.bias": (SHARED * WIDTH,),
            "midlayer.self_attn.o_proj.bias": (HT,),
        },
        _DEFAULT,
        ("midlayer",),
    ),
    "specforge": Published(
        flat(
            architectures=["LlamaForCausalLMEagle3"],
            num_hidden_layers=1,
            tie_word_embeddings=False,
            eagle_config={"eagle_aux_hidden_state_layer_ids": [0, 3, 8], "use_aux_hidden_state": True},
        ),
        _OFFICIAL,
        (1, 4, 9),
        ("midlayer",),
        dtype=torch.bfloat16,
    ),
    "eagle-3.1": Published(
        flat(architectures=["LlamaForCausalLMEagle3"], fc_norm=True, norm_output=True),
        {**_OFFICIAL, **{f"fc_norm.{state}.weight": (HT,) for state in range(3)}},
        _DEFAULT,
        ("midlayer",),
        norm_output=True,
    ),
    "narrower-than-its-target": Published(
        flat(H, target_hidden_size=HT),
        {**eagle3_shapes("midlayer", H), "embed_tokens.weight": (V, H)},
        _DEFAULT,
        ("midlayer",),
    ),
    "speculators": Published(nested(), _SPECULATORS, _DEFAULT, ("layers.0",), norm_before_residual=True),
    "speculators-two-layers": Published(
        nested(norm_before_fc=True, norm_output=True, eagle_aux_hidden_state_layer_ids=[0, 5, 8, 12]),
        {
            **eagle3_shapes("layers.0", states=4),
            **layer("layers.1", HT, HT),
            "layers.1.input_layernorm.weight": (HT,),
            "input_norm.weight": (4 * HT,),
        },
        (0, 5, 8, 12),
        ("layers.0", "layers.1"),
        norm_before_residual=True,
        norm_output=True,
    ),
}


@dataclass(frozen=True)
class PublishedEagle:
    """One layout of EAGLE-1 and EAGLE-2."""

    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    layers: int = 1
    file: str = "pytorch_model.bin"
    states: tuple[int, ...] = (FINAL_STATE,)

    def write(self, folder: Path) -> dict[str, Tensor]:
        weights = tensors(self.shapes, scale=0.8)  # no norm holds what these heads read of themselves
        write(folder, self.config, weights, self.file)
        return weights

    def slow(self, weights: Mapping[str, Tensor], of: HeadTarget) -> Eagle:
        wide = {name: value.double() for name, value in weights.items()}
        embedding = wide.get("embed_tokens.weight", of.embedding.double())
        return Eagle(wide, self.layers, Sizes(HEADS, SHARED, WIDTH, EPSILON, {"rope_theta": 5000.0}), embedding, of.lm_head.double())


_EAGLE_CONFIG = {name: value for name, value in flat().items() if name not in ("draft_vocab_size", "attention_bias")}
_EAGLE = {"embed_tokens.weight": (V, HT), "fc.weight": (HT, 2 * HT), "fc.bias": (HT,), **layer("layers.0", HT, HT)}
EAGLE: Mapping[str, PublishedEagle] = {
    "official": PublishedEagle(_EAGLE_CONFIG, _EAGLE),
    "without-a-bias": PublishedEagle({**_EAGLE_CONFIG, "bias": False}, without(_EAGLE, "fc.bias"), file="model.safetensors"),
    "without-an-embedding": PublishedEagle(_EAGLE_CONFIG, without(_EAGLE, "embed_tokens.weight")),
    "biased-queries": PublishedEagle(
        {**_EAGLE_CONFIG, "qkv_bias": True},
        {**_EAGLE, **{f"layers.0.self_attn.{part}_proj.bias": ((HEADS if part == "q" else SHARED) * WIDTH,) for part in "qkv"}},
    ),
    "two-layers": PublishedEagle(
        _EAGLE_CONFIG, {**_EAGLE, **layer("layers.1", HT, HT), "layers.1.input_layernorm.weight": (HT,)}, layers=2
    ),
}


def dflash_shapes(layers: int, states: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"fc.weight": (HT, states * HT), "hidden_norm.weight": (HT,), "norm.weight": (HT,)}
    for number in range(layers):
        shapes |= layer(f"layers.{number}", HT, HT)
        shapes |= {f"layers.{number}.{name}.weight": (WIDTH,) for name in ("self_attn.q_norm", "self_attn.k_norm")}
        shapes[f"layers.{number}.input_layernorm.weight"] = (HT,)
    return shapes


BLOCK, MASK = 5, V - 2


def dflash_config(ids: list[int], **changes: Any) -> dict[str, Any]:
    """config.json of the authors' files."""
    inside = {"mask_token_id": MASK, "target_layer_ids": ids}
    common = {name: value for name, value in flat().items() if name != "draft_vocab_size"}
    return {
        **common,
        "architectures": ["DFlashDraftModel"],
        "auto_map": {"AutoModel": "dflash.DFlashDraftModel"},
        "block_size": BLOCK,
        "dflash_config": inside,
        "layer_types": ["full_attention"] * 2,
        "max_window_layers": 2,
        "model_type": "qwen3",
        "num_target_layers": LAYERS,
        "sliding_window": None,
        "use_sliding_window": False,
        **changes,
    }


@dataclass(frozen=True)
class PublishedDFlash:
    """One layout of DFlash."""

    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    states: tuple[int, ...]
    layers: int = 2
    file: str = "model.safetensors"
    rope: Mapping[str, Any] | None = None
    dtype: torch.dtype = torch.float32

    def write(self, folder: Path) -> dict[str, Tensor]:
        weights = tensors(self.shapes, self.dtype)
        write(folder, self.config, weights, self.file)
        return weights

    def slow(self, weights: Mapping[str, Tensor], of: HeadTarget) -> DFlash:
        wide = {name: value.double() for name, value in weights.items()}
        sizes = Sizes(HEADS, SHARED, WIDTH, EPSILON, self.rope or {"rope_theta": 5000.0})
        return DFlash(wide, self.layers, sizes, of.embedding.detach().double(), of.lm_head.detach().double(), BLOCK, MASK)


_DFLASH = dflash_shapes(2, 3)
DFLASH: Mapping[str, PublishedDFlash] = {
    "official": PublishedDFlash(dflash_config([1, 5, 8]), _DFLASH, (2, 6, 9)),
    "as-a-pickle": PublishedDFlash(dflash_config([1, 5, 8]), _DFLASH, (2, 6, 9), file="pytorch_model.bin", dtype=torch.bfloat16),
    "one-layer-yarn": PublishedDFlash(
        dflash_config([0], rope_scaling=YARN, layer_types=None),
        dflash_shapes(1, 1),
        (1,),
        layers=1,
        rope={**YARN, "rope_theta": 5000.0},
    ),
    "to-the-last-layer": PublishedDFlash(dflash_config([2, LAYERS - 2, LAYERS - 1]), _DFLASH, (3, LAYERS - 1, FINAL_STATE)),
    "biased": PublishedDFlash(
        dflash_config([1, 5, 8], attention_bias=True),
        {
            **_DFLASH,
            **{
                f"layers.{number}.self_attn.{part}_proj.bias": (rows,)
                for number in range(2)
                for part, rows in (("q", HEADS * WIDTH), ("k", SHARED * WIDTH), ("v", SHARED * WIDTH), ("o", HT))
            },
        },
        (2, 6, 9),
    ),
    "settings-the-other-way-round": PublishedDFlash(
        {
            **{key: value for key, value in dflash_config([]).items() if key not in ("block_size", "num_target_layers")},
            "mask_token_id": MASK,
            "target_layer_ids": [1, 5, 8],
            "dflash_config": {
                "block_size": BLOCK,
                "num_target_layers": LAYERS,
                "causal": False,
                "attention_mode": "gqa",
                "conv_kernel_size": 0,
            },
        },
        _DFLASH,
        (2, 6, 9),
    ),
}


def medusa_shapes(heads: int, layers: int, *, matrix: bool = True) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for head in range(heads):
        for number in range(layers):
            shapes |= {f"{head}.{number}.linear.weight": (HT, HT), f"{head}.{number}.linear.bias": (HT,)}
        shapes |= {f"{head}.{layers}.weight": (V, HT)} if matrix else {}
    return shapes


MEDUSA_CONFIG = {
    "medusa_num_heads": 2,
    "medusa_num_layers": 1,
    "base_model_name_or_path": "lmsys/vicuna-7b-v1.3",
    "transformers_version": "4.32.0",
}
"""config.json of a published file of five heads."""
