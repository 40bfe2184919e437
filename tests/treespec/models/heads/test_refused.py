"""Heads that cannot be run beside a target are refused with one clear line, before a weight is used."""

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.reference.head_files import EAGLE3, HT, SHARED, VD, WIDTH, Change, V, refusal, target, tensors, write
from treespec.errors import CapacityError, ModelError
from treespec.models.heads.loading import load_head
from treespec.trees.placement import Placement


def refused(folder: Path, layout: str, change: Change, **sizes: int) -> str:
    """The message for a published layout after a change of its config and its weights."""
    published = EAGLE3[layout]
    return refusal(folder, published.config, tensors(published.shapes, published.dtype), published.file, change, **sizes)


BAD: dict[str, tuple[str, Change, str]] = {
    "lacks a matrix": ("official", lambda c, w: w.pop("fc.weight"), " lacks fc.weight, which an EAGLE-3 head has; "),
    "lacks norms": (
        "official",
        lambda c, w: [w.pop(f"midlayer.{name}.weight") for name in ("hidden_norm", "input_layernorm")],
        " lacks layers.0.hidden_norm.weight and layers.0.input_layernorm.weight, which",
    ),
    "lacks one bias": ("biased", lambda c, w: w.pop("midlayer.self_attn.k_proj.bias"), " lacks layers.0.self_attn.k_proj.bias, which"),
    "lacks a state's norm": ("eagle-3.1", lambda c, w: w.pop("fc_norm.2.weight"), " lacks fc_norm.2.weight, which"),
    "lacks a layer": (
        "speculators-two-layers",
        lambda c, w: [w.update({k.replace(".1.", ".2."): w.pop(k)}) for k in [*w] if k.startswith("layers.1.")],
        " holds 2 layers up to number 2, but not number 1; ",
    ),
    "an unknown tensor": (
        "official",
        lambda c, w: w.update({"midlayer.self_attn.q_norm.weight": torch.ones(WIDTH)}),
        " holds midlayer.self_attn.q_norm.weight, which an EAGLE-3 head has not: ",
    ),
    "a tensor of another shape": (
        "official",
        lambda c, w: w.update({"midlayer.self_attn.v_proj.weight": torch.ones(3, 4)}),
        rf" holds midlayer.self_attn.v_proj.weight of the shape \[3, 4\], but .* ask for \[{SHARED * WIDTH}, {2 * HT}\]; ",
    ),
    "a vector for a matrix": (
        "official",
        lambda c, w: w.update({"fc.weight": torch.ones(3)}),
        r" holds fc.weight of the shape \[3\], but it must be a matrix; ",
    ),
    "a tensor twice": (
        "official",
        lambda c, w: w.update({"model.norm.weight": torch.ones(HT)}),
        " holds (model.norm.weight and norm.weight|norm.weight and model.norm.weight), which are the same tensor; ",
    ),
    "packed weights": (
        "specforge",
        lambda c, w: w.update({"fc.weight": torch.ones(HT, 3 * HT, dtype=torch.int8)}),
        " holds fc.weight as int8; use the head with plain weights",
    ),
    "another hidden size in config.json": (
        "official",
        lambda c, w: c.update(hidden_size=HT * 2),
        f": hidden_size in config.json is {2 * HT}, but fc.weight has {HT}; ",
    ),
    "another inner size": ("official", lambda c, w: c.update(intermediate_size=7), ": intermediate_size in config.json is 7, but mlp"),
    "other heads": (
        "official",
        lambda c, w: c.update(num_attention_heads=8),
        ": num_attention_heads in config.json is 8, but it must be that",
    ),
    "other shared heads": (
        "official",
        lambda c, w: c.update(num_key_value_heads=1),
        ": num_key_value_heads in config.json is 1, but it must",
    ),
    "heads that cannot be shared": (
        "official",
        lambda c, w: c.update(num_key_value_heads=3),
        ": .* a multiple of num_key_value_heads, which is 3",
    ),
    "no heads": (
        "official",
        lambda c, w: c.pop("num_attention_heads"),
        ": no config.json says num_attention_heads, which must be a whole",
    ),
    "heads of odd width": ("official", lambda c, w: c.update(head_dim=3, num_attention_heads=8), ": head_dim .* an even number"),
    "text for a number": (
        "official",
        lambda c, w: c.update(rms_norm_eps="small"),
        ": rms_norm_eps in config.json is 'small', but it must be a",
    ),
    "text for a flag": (
        "speculators",
        lambda c, w: c.update(norm_output="no"),
        ": norm_output in config.json is 'no', but it must be true or",
    ),
    "a list for an object": (
        "speculators",
        lambda c, w: c.update(transformer_layer_config=[1]),
        r": .* is \[1\], but it must be an object",
    ),
    "another activation": (
        "official",
        lambda c, w: c.update(hidden_act="gelu"),
        ": hidden_act in config.json is 'gelu', but it must be silu",
    ),
    "biases that are not there": (
        "official",
        lambda c, w: c.update(attention_bias=True),
        ": attention_bias .* is true, but its files lack b",
    ),
    "biases that are denied": ("biased", lambda c, w: c.update(attention_bias=False), ": attention_bias .* is false, but its files hold b"),
    "norms that are not there": ("official", lambda c, w: c.update(fc_norm=True), ": fc_norm .* is true, but its files lack fc_norm.0"),
    "norms that are denied": ("eagle-3.1", lambda c, w: c.update(fc_norm=False), ": fc_norm .* is false, but its files hold fc_norm.0"),
    "a joint norm that is not there": ("speculators", lambda c, w: c.update(norm_before_fc=True), ": norm_before_fc .* lack input_norm"),
    "positions that change": (
        "official",
        lambda c, w: c.update(rope_scaling={"type": "dynamic", "factor": 2.0}),
        ": its rotary positions are of the kind 'dynamic', but heads are run with default, linear, llama3, yarn only; ",
    ),
    "positions without a number": (
        "official-llama3",
        lambda c, w: c["rope_scaling"].pop("low_freq_factor"),
        ": rope_scaling in config.json lacks low_freq_factor, which the kind llama3 needs; ",
    ),
    "positions by text": (
        "official",
        lambda c, w: c.update(rope_theta="big"),
        ": rope_theta in config.json is 'big', but it must be a number",
    ),
    "other draft tokens": (
        "official",
        lambda c, w: c.update(draft_vocab_size=32000),
        f": draft_vocab_size .* 32000, but lm_head.weight has {VD}",
    ),
    "no table of draft tokens": (
        "official",
        lambda c, w: [w.pop("d2t"), w.pop("t2d")],
        f" is an EAGLE-3 head of {VD} draft tokens without a d2t that says which of the {V} tokens of target the-target they are; ",
    ),
    "a draft token outside": (
        "official",
        lambda c, w: w["d2t"].__setitem__(VD - 1, V),
        f" is an EAGLE-3 head whose d2t leads to the token {V + VD - 1}, but target the-target has the tokens 0 to {V - 1}; ",
    ),
    "a draft token below": (
        "official",
        lambda c, w: w["d2t"].__setitem__(0, -1),
        " is an EAGLE-3 head whose d2t leads to the token -1, but target",
    ),
    "two draft tokens of one": (
        "official",
        lambda c, w: w["d2t"].__setitem__(1, int(w["d2t"][0]) - 1),
        ": d2t leads from two draft tokens to the token ",
    ),
    "tables that differ": (
        "official",
        lambda c, w: w["t2d"].logical_not_(),
        ": t2d and d2t do not agree on whether the token 0 is a draft",
    ),
    "a table of numbers with a point": (
        "official",
        lambda c, w: w.update(d2t=w["d2t"].float()),
        " holds d2t as float32, but it must be int64",
    ),
    "no states": (
        "specforge",
        lambda c, w: c["eagle_config"].update(use_aux_hidden_state=False),
        ": use_aux_hidden_state in config.json is False, but it must be true: ",
    ),
    "layers that do not rise": (
        "speculators",
        lambda c, w: c.update(eagle_aux_hidden_state_layer_ids=[6, 2, 9]),
        r": eagle_aux_hidden_state_layer_ids in config.json is \[6, 2, 9\], but it must be a list of layers, ",
    ),
    "two layers for three states": (
        "speculators",
        lambda c, w: c.update(eagle_aux_hidden_state_layer_ids=[2, 6]),
        f" is an EAGLE-3 head whose fc.weight reads {3 * HT} numbers, but 2 states of target the-target have {2 * HT} ",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_head_that_contradicts_itself_is_refused(bad: str, tmp_path: Path) -> None:
    import re

    layout, change, said = BAD[bad]
    message = refused(tmp_path, layout, change)
    assert re.match(said, message), message


def unchanged(config: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """Leave a layout as it was published."""


def test_a_head_for_another_target_is_refused_by_name(tmp_path: Path) -> None:
    message = refused(tmp_path / "width", "official", unchanged, width=HT + 8)
    assert (
        f" is an EAGLE-3 head for a target of hidden size {HT} (fc.weight), but target the-target has {HT + 8}; use a head made for it"
        in message
    )
    message = refused(tmp_path / "layers", "speculators", unchanged, layers=8)
    assert (
        " is an EAGLE-3 head that reads the state that enters layer 9 (eagle_aux_hidden_state_layer_ids), but target the-target has 8 layers; "
        in message
    )
    message = refused(tmp_path / "left", "specforge", unchanged, layers=8)
    assert (
        " is an EAGLE-3 head that reads the state that leaves layer 8 (eagle_aux_hidden_state_layer_ids), but target the-target has 8 layers; "
        in message
    )
    message = refused(tmp_path / "few", "official", unchanged, layers=6)
    assert " is an EAGLE-3 head that names no layers (eagle_aux_hidden_state_layer_ids), " in message
    assert " exist in targets of 7 layers or more, but target the-target has 6; " in message
    message = refused(tmp_path / "target", "narrower-than-its-target", lambda c, w: c.update(target_hidden_size=9))
    assert f": target_hidden_size in config.json is 9, but an EAGLE-3 head for target the-target has {HT}; " in message


def test_a_head_for_another_vocabulary_is_refused_by_name(tmp_path: Path) -> None:
    message = refused(tmp_path / "config", "official", lambda c, w: c.update(vocab_size=V + 4))
    assert (
        f": vocab_size in config.json is {V + 4}, but an EAGLE-3 head for target the-target has {V}; use a head made for this target, "
        in message
    )
    message = refused(tmp_path / "table", "official", lambda c, w: w.update(t2d=torch.ones(V + 4, dtype=torch.bool)))
    assert f" is an EAGLE-3 head for a target of {V + 4} tokens (t2d), but target the-target has {V}; " in message
    message = refused(tmp_path / "embedding", "narrower-than-its-target", lambda c, w: w.pop("embed_tokens.weight"))
    assert f" is an EAGLE-3 head and lacks embed_tokens.weight, and that of target the-target is {HT} wide, but the head 16; " in message


def test_an_embedding_that_is_not_the_targets_must_be_chosen(tmp_path: Path) -> None:
    layout = EAGLE3["official"]
    weights = {**tensors(layout.shapes), "embed_tokens.weight": torch.ones(V, HT)}
    name = write(tmp_path, layout.config, weights)
    with pytest.raises(
        ModelError, match=r"that is not that of target the-target, .*give `embedding`: \"own\" if it was trained, else \"target\""
    ):
        load_head(name, target())
    assert load_head(name, target(), embedding="own").borrowed.embedding.equal(torch.ones(V, HT))
    assert load_head(name, target(), embedding="target").borrowed.embedding.equal(target().embedding)
    trained = write(tmp_path / "trained", {**layout.config, "embed_requires_grad": True}, weights)
    assert load_head(trained, target()).borrowed.embedding.equal(torch.ones(V, HT))
    of = target()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        copied = {**weights, "embed_tokens.weight": of.embedding.to(dtype, copy=True)}
        same = load_head(write(tmp_path / str(dtype), layout.config, copied), of)
        assert same.borrowed.embedding is of.embedding, "not copied"
    narrow = EAGLE3["narrower-than-its-target"]
    narrow.write(tmp_path / "narrow")
    with pytest.raises(
        ModelError, match=f"is an EAGLE-3 head whose embedding is 16 wide, but that of target the-target {HT}; leave out `embedding`"
    ):
        load_head(str(tmp_path / "narrow"), target(), embedding="target")


@pytest.mark.parametrize(
    ("config", "shapes", "said"),
    [
        (
            {"architectures": ["DeepSeekMTPModel"], "model_type": "deepseek_mtp"},
            {"fc.weight": (HT, HT)},
            r"is a multi-token prediction \(MTP\) head, and only heads of the kinds dflash, eagle, eagle3 and medusa are run; use one of these",
        ),
        ({"hydra_num_heads": 4}, {"a.weight": (2, 2)}, "is a set of Hydra heads, and only heads of the kinds"),
        (
            {"speculators_model_type": "peagle"},
            {"a.weight": (2, 2)},
            r"is a draft in the speculators format \(speculators_model_type 'peagle'\), and",
        ),
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, {"model.embed_tokens.weight": (V, HT)}, "is no head that reads"),
    ],
)
def test_other_kinds_are_refused(config: dict[str, Any], shapes: dict[str, tuple[int, ...]], said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=said):
        load_head(write(tmp_path, config, tensors(shapes)), target())


def test_a_folder_without_weights_or_without_a_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(EAGLE3["official"].config))
    with pytest.raises(ModelError, match="holds no weights: no model.safetensors, no pytorch_model.bin"):
        load_head(str(tmp_path), target())
    (tmp_path / "config.json").unlink()
    save_file(tensors(EAGLE3["official"].shapes), tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=": no config.json says num_attention_heads, which must be a whole number"):
        load_head(str(tmp_path), target())
    with pytest.raises(ModelError, match="there is no folder"):
        load_head(str(tmp_path / "nowhere" / "at" / "all"), target())


class Runs:
    """What a hostile pickle builds."""

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return exec, ("import os; os.environ['A_HEAD_RAN'] = '1'",)


def test_a_pickle_never_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.delenv("A_HEAD_RAN", raising=False)
    layout = EAGLE3["official"]
    write(tmp_path, layout.config, {**tensors(layout.shapes), "extra": Runs()}, "pytorch_model.bin")  # type: ignore[dict-item]
    with pytest.raises(ModelError, match="asks to run .*exec when loaded; refused"):
        load_head(str(tmp_path), target())
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Runs()))
    with pytest.raises(ModelError, match="no file of torch.save"):
        load_head(str(tmp_path), target())
    assert "A_HEAD_RAN" not in os.environ


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    EAGLE3["specforge"].write(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="ends behind the end of the file"):
        load_head(str(tmp_path), target())


def test_a_full_cache_is_said(tmp_path: Path) -> None:
    EAGLE3["official"].write(tmp_path)
    head = load_head(str(tmp_path), target())
    head.allocate(3)
    states = torch.zeros(4, 3, HT)
    with pytest.raises(CapacityError, match="has 3 slots, but 4 are needed"):
        head.forward(torch.zeros(4, dtype=torch.int64), head.features(states), Placement.causal(1, 4, "cpu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_has_the_type_of_its_target_and_is_not_trained(dtype: torch.dtype, tmp_path: Path) -> None:
    layout = EAGLE3["official"]
    layout.write(tmp_path)
    of = target()
    head = load_head(str(tmp_path), replace(of, embedding=of.embedding.to(dtype), lm_head=of.lm_head.to(dtype)))
    assert {tensor.dtype for tensor in head.state_dict().values()} == {dtype}
    assert not any(tensor.requires_grad for tensor in head.parameters())
    head.allocate(4)
    level = head.forward(torch.arange(4), head.features(torch.ones(4, 3, HT, dtype=dtype)), Placement.causal(1, 4, "cpu"))
    assert {level.logits.dtype, level.features.dtype} == {dtype}
    assert level.logits.isfinite().all()
