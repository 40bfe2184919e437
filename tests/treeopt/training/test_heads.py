"""Heads trained on the states of a tiny target: what they reach, the files that they leave, how they go on, what is refused."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from tests.reference.folders import names
from tests.reference.pairs import VOCABULARY, prompt_set
from tests.reference.training import SETTINGS, equal
from treeopt.training import heads as heads_to_train
from treeopt.training.folder import newest_checkpoint
from treeopt.training.heads import LEVEL_DECAY, HeadLoss, frequent_tokens, write_head
from treeopt.training.losses import IGNORED, Loss
from treeopt.training.settings import TrainSources
from treeopt.training.sources import Target
from treeopt.training.texts import Texts
from treeopt.training.train import TrainResult, train_draft
from treespec.decoding.loop import Request, decode_autoregressive, decode_speculative
from treespec.decoding.protocol import FINAL_STATE, ScoringHead
from treespec.errors import CapacityError, ModelError, SettingsError, TrainingError
from treespec.models.heads.draft import HeadDraft
from treespec.models.heads.eagle3 import Eagle3Head
from treespec.models.heads.loading import load_head
from treespec.models.heads.making import NewDFlash, NewEagle3, NewMedusa
from treespec.models.heads.medusa import MedusaHead
from treespec.models.heads.target import HeadTarget, text_states
from treespec.models.tree_model import TreeModel
from treespec.trees.placement import Prefix
from treespec.trees.tree import SpeculationTree

LAYERS = 8
HEADS = {kind: {"kind": kind, "levels": 2} for kind in ("eagle3", "medusa", "dflash")}
QUICK = replace(SETTINGS, learning_rate=1e-2)
SHORT = replace(QUICK, steps=12, save_steps=5, eval_prompts=0)


@pytest.fixture(scope="module")
def target() -> LlamaForCausalLM:
    """A random target whose next tokens depend mostly on the last ones."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
        max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )
    module = LlamaForCausalLM(config).eval().requires_grad_(False)
    module.model.embed_tokens.weight.normal_(0, 1)
    module.lm_head.weight.normal_(0, 0.7)
    return module


@pytest.fixture(scope="module")
def sources(target: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> TrainSources:
    """The target on disk, and rows of random token ids; the kind of head is to be replaced."""
    folder = tmp_path_factory.mktemp("rows")
    target.save_pretrained(folder / "target")
    with (folder / "rows.jsonl").open("w") as file:
        for prompt in prompt_set(140, 30):
            file.write(json.dumps({"input_ids": prompt.ids}) + "\n")
    return TrainSources(str(folder / "target"), str(folder / "rows.jsonl"), kind="eagle3")


@pytest.fixture(scope="module", params=HEADS)
def whole(sources: TrainSources, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """An uninterrupted run of each kind."""
    return train_draft(replace(sources, **HEADS[request.param]), QUICK, tmp_path_factory.mktemp("runs") / request.param)


def kind_of(result: TrainResult) -> str:
    return result.folder.name


def loaded(folder: Path, target: LlamaForCausalLM) -> ScoringHead:
    head = load_head(str(folder), HeadTarget.of(target, "the target"))
    assert isinstance(head, ScoringHead)
    return head


def test_training_raises_the_first_choice_acceptance_far_above_chance(whole: TrainResult) -> None:
    assert whole.before is not None
    assert whole.after is not None
    assert whole.before[0] < 6 / VOCABULARY
    assert 12 / VOCABULARY < whole.after[0] < 1
    assert whole.loss_last < 0.6 * whole.loss_first


def test_what_was_written_is_a_head_with_the_acceptance_that_was_logged(whole: TrainResult, target: LlamaForCausalLM) -> None:
    head = loaded(whole.folder, target)
    assert head.kind == kind_of(whole)
    (path,) = whole.folder.glob("held-out-*.jsonl")
    rows = [json.loads(line)["input_ids"] for line in path.read_text().splitlines()]
    hits = positions = 0
    for row in rows:
        ids = torch.tensor([row])
        states, _ = text_states(target, ids, head.state_layers)
        first = next(head.score(ids, states, 1)).argmax(-1)[0].tolist()
        for place in range(SETTINGS.prompt_len + 1, len(row)):  # the first token of the target's own is the root
            hits += first[place - 2] == row[place]
            positions += 1
    assert whole.after is not None
    assert whole.after[0] == pytest.approx(hits / positions, abs=1e-6)


def test_what_was_trained_is_right_now_and_then_and_drafts_the_targets_own_texts(whole: TrainResult, target: LlamaForCausalLM) -> None:
    model = TreeModel(target, name="target")
    head = load_head(str(whole.folder), HeadTarget.of(target, "target"))
    draft, tree = HeadDraft(head, model), SpeculationTree.from_branches([[2], [1, 1]])
    accepted = []
    for prompt in prompt_set(6, 8):
        request = Request(prompt.ids, 20)
        records = list(decode_speculative(model, draft, tree, request))
        own = [token for record in decode_autoregressive(model, request) for token in record.tokens]
        assert [token for record in records for token in record.tokens] == own
        accepted += [len(record.accepted or ()) for record in records[1:]]
    assert set(accepted) == {0, 1, 2}


def test_the_folder_has_the_published_layout_and_the_record_the_kind(whole: TrainResult) -> None:
    kind, record = kind_of(whole), json.loads((whole.folder / "training.json").read_text())
    file = "medusa_lm_head.safetensors" if kind == "medusa" else "model.safetensors"
    assert {file, "config.json", "training.json", "checkpoint-60"} <= set(names(whole.folder))
    assert (record["sources"]["kind"], record["sources"]["levels"], record["finished"]) == (kind, HEADS[kind]["levels"], True)
    config, weights = json.loads((whole.folder / "config.json").read_text()), load_file(whole.folder / file)
    if kind == "medusa":
        assert config["medusa_num_heads"] == 2
        assert config["medusa_num_layers"] == 1
        layer = {"linear.weight": (32, 32), "linear.bias": (32,)}
        shapes = {f"{head}.0.{name}": shape for head in range(2) for name, shape in layer.items()}
        shapes |= {f"{head}.1.weight": (VOCABULARY, 32) for head in range(2)}
    elif kind == "dflash":
        assert (config["architectures"], config["model_type"], config["rope_theta"]) == (["DFlashDraftModel"], "qwen3", 500.0)
        assert (config["block_size"], config["num_target_layers"]) == (3, LAYERS)
        assert config["dflash_config"] == {"mask_token_id": VOCABULARY - 1, "target_layer_ids": [1, 2, 3, 4, 5]}
        shapes = {"fc.weight": (32, 160), "hidden_norm.weight": (32,), "norm.weight": (32,)}
        for layer in range(2):
            inside = {"q_proj": (32, 32), "k_proj": (16, 32), "v_proj": (16, 32), "o_proj": (32, 32), "q_norm": (8,), "k_norm": (8,)}
            shapes |= {f"layers.{layer}.self_attn.{part}.weight": shape for part, shape in inside.items()}
            shapes |= {f"layers.{layer}.mlp.{part}_proj.weight": (48, 32) for part in ("gate", "up")}
            shapes |= {f"layers.{layer}.mlp.down_proj.weight": (32, 48)}
            shapes |= {f"layers.{layer}.{part}.weight": (32,) for part in ("input_layernorm", "post_attention_layernorm")}
    else:
        assert (config["architectures"], config["rope_theta"]) == (["LlamaForCausalLMEagle3"], 500.0)
        assert "draft_vocab_size" not in config
        layer = {"q": (32, 64), "k": (16, 64), "v": (16, 64), "o": (32, 32)}
        shapes = {f"midlayer.self_attn.{part}_proj.weight": shape for part, shape in layer.items()}
        shapes |= {f"midlayer.mlp.{part}_proj.weight": (48, 32) for part in ("gate", "up")} | {"midlayer.mlp.down_proj.weight": (32, 48)}
        shapes |= {f"midlayer.{part}.weight": (32,) for part in ("input_layernorm", "hidden_norm", "post_attention_layernorm")}
        shapes |= {"norm.weight": (32,), "fc.weight": (32, 96)}
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == shapes
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", ["eagle3", "eagle3 with draft tokens", "medusa", "dflash"])
def test_what_is_written_is_read_with_the_same_logits(kind: str, dtype: torch.dtype, target: LlamaForCausalLM, tmp_path: Path) -> None:
    ids = torch.tensor([0, 3, 4, 17, VOCABULARY - 1]) if kind.endswith("tokens") else None
    made: dict[str, Any] = {"medusa": NewMedusa.of("T", target.config, 3), "dflash": NewDFlash.of("T", target.config, 3)}
    new = made.get(kind) or NewEagle3.of("T", target.config, None if ids is None else 5)
    head = new.made(HeadTarget.of(target, "T"), ids, 4)
    with torch.no_grad():
        for weights in head.parameters():
            weights += torch.randn(weights.shape, generator=torch.Generator().manual_seed(weights.numel())) / 4
            weights.copy_(weights.to(dtype))
    write_head(tmp_path, new, head, dtype)
    found = loaded(tmp_path, target)
    read = {"medusa": (FINAL_STATE,), "dflash": (2, 3, 4, 5, 6)}
    assert found.state_layers == head.state_layers == read.get(kind, (2, 4, 5))
    assert (found.target_ids is None) == (ids is None)
    assert ids is None or ids.equal(found.target_ids)
    texts = torch.randint(VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(2))
    states, _ = text_states(target, texts, head.state_layers)
    for one, other in zip(head.score(texts, states, 3), found.score(texts, states, 3), strict=True):
        assert one.equal(other)
        assert one.std() > 0.01, "a difference would show"


def test_states_have_the_numbers_of_the_layers_that_they_enter(target: LlamaForCausalLM) -> None:
    seen: dict[int, torch.Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda module, args, number=number: seen.__setitem__(number, args[0]))
        for number, layer in enumerate(target.model.layers)
    ]
    hooks.append(target.lm_head.register_forward_pre_hook(lambda module, args: seen.__setitem__(FINAL_STATE, args[0])))
    texts = torch.randint(VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(2))
    asked = (0, 2, 7, FINAL_STATE)
    states, logits = text_states(target, texts, asked)
    for hook in hooks:
        hook.remove()
    assert states.shape == (2, 9, 4, 32)
    for place, layer in enumerate(asked):
        assert states[:, :, place].equal(seen[layer])
    assert logits.equal(target(input_ids=texts).logits)
    with pytest.raises(ModelError, match="state 8 leaves the last of the target's 8 layers before its final norm"):
        text_states(target, texts, (LAYERS,))


@pytest.mark.parametrize("loss", ["forward-kl", "ce"])
@pytest.mark.parametrize("draft_tokens", [None, 20])
def test_the_loss_holds_every_level_against_the_target_behind_the_same_tokens(
    loss: Loss, draft_tokens: int | None, target: LlamaForCausalLM
) -> None:
    """Summed one position after another, by the definition."""
    texts = torch.randint(VOCABULARY, (2, 8), generator=torch.Generator().manual_seed(2))
    ids = (
        None
        if draft_tokens is None
        else torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(3))[:draft_tokens].sort().values
    )
    head = NewEagle3.of("T", target.config, draft_tokens).made(HeadTarget.of(target, "T"), ids, 4)
    states, teacher = text_states(target, texts, head.state_layers)
    labels = texts.clone()
    labels[0, :4] = labels[1, 6:] = IGNORED
    known = list(range(VOCABULARY)) if ids is None else ids.tolist()
    wanted, lost = 0.0, 0
    for level, logits in enumerate(head.score(texts, states, 3), start=1):
        for row in range(2):
            for root in range(1, 8 - level):
                place = root + level  # of the token that is proposed
                p, q = teacher[row, place - 1, known].double().softmax(-1), logits[row, root - 1].detach().double().log_softmax(-1)
                decisive = int(texts[row, place]) if loss == "ce" else int(teacher[row, place - 1].argmax())
                if int(labels[row, place]) == IGNORED or decisive not in known:
                    lost += 1
                elif loss == "ce":
                    wanted -= LEVEL_DECAY ** (level - 1) * float(q[known.index(decisive)])
                else:
                    wanted += LEVEL_DECAY ** (level - 1) * float((p * (p.log() - q)).sum())
    found = HeadLoss(head, 3, loss, 1.0, VOCABULARY)(texts, states, labels, teacher)
    assert float(found.detach()) == pytest.approx(wanted, rel=1e-4)
    assert lost >= (9 if draft_tokens is None else 15)


def test_a_draft_vocabulary_holds_the_most_frequent_tokens(sources: TrainSources, target: LlamaForCausalLM, tmp_path: Path) -> None:
    result = train_draft(replace(sources, levels=2, draft_vocabulary=20), replace(QUICK, steps=40), tmp_path)
    rows = [json.loads(line)["input_ids"] for path in tmp_path.glob("texts-*.jsonl") for line in path.read_text().splitlines()]
    counts = torch.bincount(torch.tensor([token for row in rows for token in row[SETTINGS.prompt_len :]]), minlength=VOCABULARY)
    head = loaded(tmp_path, target)
    assert head.target_ids is not None
    inside = set(head.target_ids.tolist())
    assert len(inside) == head.vocabulary_size == 20
    assert min(int(counts[token]) for token in inside) >= max(int(counts[token]) for token in set(range(VOCABULARY)) - inside)
    assert json.loads((tmp_path / "config.json").read_text())["draft_vocab_size"] == 20
    weights = load_file(tmp_path / "model.safetensors")
    assert weights["t2d"].nonzero()[:, 0].tolist() == (weights["d2t"] + torch.arange(20)).tolist() == sorted(inside)
    assert result.after is not None
    assert 0.2 < result.after[0] < 1
    even = Texts(torch.tensor([[5, 9, 9, 7, 1]]).int(), torch.tensor([[False, True, True, True, False]]))
    assert frequent_tokens(even, 3, 12).tolist() == [0, 7, 9], "of equally frequent ones the lower ids"


def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(
    whole: TrainResult, sources: TrainSources, tmp_path: Path
) -> None:
    kind = kind_of(whole)
    chosen = replace(sources, **HEADS[kind])

    def stop(what: str, done: int, total: int) -> None:
        if what == "training" and done == 33:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingError, match="interrupted after step 3[34] of 60, which is saved; run the same with `resume`"):
        train_draft(chosen, QUICK, tmp_path, progress=stop)
    assert newest_checkpoint(tmp_path) is not None
    assert not (tmp_path / "config.json").exists()
    resumed = train_draft(chosen, QUICK, tmp_path, resume=True)
    (file,) = (path.name for path in whole.folder.glob("*.safetensors"))
    assert equal(load_file(tmp_path / file), load_file(whole.folder / file))
    assert (resumed.before, resumed.after) == (whole.before, whole.after)
    with pytest.raises(TrainingError, match="was trained with `levels` "):
        train_draft(replace(chosen, levels=1), QUICK, tmp_path, resume=True)


def test_a_run_of_another_kind_is_refused_before_anything_is_loaded(
    whole: TrainResult, sources: TrainSources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, folder = kind_of(whole), shutil.copytree(whole.folder, tmp_path / "run")
    other = "medusa" if kind != "medusa" else "dflash"
    monkeypatch.setattr("treeopt.training.train.Target", lambda *a: pytest.fail("the target was looked at"))
    said = rf"run holds a run that trains a head of the kind {kind}, but {{}} is asked for; resume with `kind` \"{kind}\", or train into another"
    with pytest.raises(TrainingError, match=said.format(f"a head of the kind {other}")):
        train_draft(replace(sources, **HEADS[other]), QUICK, folder, resume=True)
    with pytest.raises(TrainingError, match=said.format("a model")):
        train_draft(replace(sources, kind=None, levels=None, config="llama-68m"), QUICK, folder, resume=True)


def test_weights_have_the_mode_of_other_files(whole: TrainResult) -> None:
    for folder in (whole.folder, *whole.folder.glob("checkpoint-*")):
        (weights,), config = folder.glob("*.safetensors"), folder / "config.json"
        assert weights.stat().st_mode == config.stat().st_mode
        assert oct(config.stat().st_mode & 0o777) == oct(0o666 & ~umask())


def umask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found


def test_a_run_killed_after_its_last_step_is_saved_without_another(
    sources: TrainSources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*arguments: object) -> None:
        raise MemoryError

    chosen = replace(sources, levels=2)
    with monkeypatch.context() as patched, pytest.raises(MemoryError):
        patched.setattr(heads_to_train.HeadToTrain, "write", die)
        train_draft(chosen, SHORT, tmp_path)
    monkeypatch.setattr(heads_to_train.HeadToTrain, "trainer", lambda *a: pytest.fail("trained again"))
    train_draft(chosen, SHORT, tmp_path, resume=True)
    assert equal(load_file(tmp_path / "model.safetensors"), load_file(tmp_path / "checkpoint-12" / "model.safetensors"))
    assert {"model.safetensors", "config.json", "training.json"} <= set(names(tmp_path))
    assert not [name for name in names(tmp_path) if name.startswith(".")]


def test_a_checkpoint_is_a_head(sources: TrainSources, target: LlamaForCausalLM, tmp_path: Path) -> None:
    train_draft(replace(sources, levels=2), SHORT, tmp_path)
    assert loaded(tmp_path / "checkpoint-12", target).kind == "eagle3"


@pytest.mark.parametrize("kind", HEADS)
def test_cross_entropy_with_the_rows_own_text_trains_a_head_as_well(kind: str, sources: TrainSources, tmp_path: Path) -> None:
    """Random rows teach no more than the frequencies of their tokens."""
    settings = replace(QUICK, objective="ce", text="own", steps=25, eval_prompts=0)
    result = train_draft(replace(sources, **HEADS[kind]), settings, tmp_path)
    assert result.loss_last < 0.95 * result.loss_first
    assert (result.before, result.after) == (None, None)


def test_medusa_heads_begin_as_their_target_and_eagle_heads_with_its_rows(target: LlamaForCausalLM) -> None:
    of = HeadTarget.of(target, "T")
    medusa = NewMedusa.of("T", target.config, 2).made(of, None, 0)
    assert isinstance(medusa, MedusaHead)
    ids, states = torch.tensor([2, 30]), torch.randn(3, 1, 32, generator=torch.Generator().manual_seed(0))
    assert medusa.propose(states, ids[:1], Prefix.of(2, "cpu"))[1].equal(target.lm_head(states[1, 0]))
    head = NewEagle3.of("T", target.config, 2).made(of, ids, 0)
    assert isinstance(head, Eagle3Head)
    assert head.lm_head is not None
    assert head.lm_head.weight.equal(target.lm_head.weight[ids])
    assert all(weights.requires_grad for weights in head.parameters())
    assert not head.borrowed.embedding.requires_grad


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"kind": None}, SettingsError, "pass exactly one of `draft`, .*, `config`, .*, and `kind`, that of a new head$"),
        ({"draft": "x"}, SettingsError, r"pass exactly one of .* \(`draft` and `kind` are given\)$"),
        ({"config": "llama-68m"}, SettingsError, r"\(`config` and `kind` are given\)$"),
        ({"kind": "hydra"}, SettingsError, "`kind` is 'hydra', but heads of the kinds eagle3, medusa and dflash alone are trained"),
        (
            {"kind": None, "draft": "x", "levels": 3},
            SettingsError,
            r"`levels` is for heads; pass `kind` \(eagle3, medusa, dflash\) in place of",
        ),
        ({"kind": None, "draft": "x", "draft_vocabulary": 3}, SettingsError, "`draft_vocabulary` is for heads; "),
        (
            {"kind": "medusa", "draft_vocabulary": 3},
            SettingsError,
            "`draft_vocabulary` is for `kind` eagle3: other heads propose all tokens",
        ),
        ({"kind": "dflash", "draft_vocabulary": 3}, SettingsError, "`draft_vocabulary` is for `kind` eagle3: other heads propose all"),
        ({"levels": 0}, SettingsError, "`levels` is 0, but it must be 1 or more"),
        ({"draft_vocabulary": 0}, SettingsError, "`draft_vocabulary` is 0, but it must be 1 or more"),
        ({"draft_vocabulary": 62}, ModelError, "`draft_vocabulary` is 62, but target .* has 61 tokens; pass at most as many"),
        (
            {"levels": 23},
            CapacityError,
            "`seq_len` 24 leaves no token for level 23 of a head; pass `seq_len` 25 or more, or fewer `levels`",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_targets_weights_are_read(
    changes: dict[str, Any], error: type[Exception], words: str, sources: TrainSources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Target, "load", lambda self: pytest.fail("the target's weights were read"))
    with pytest.raises(error, match=words):
        train_draft(replace(sources, **changes), QUICK, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_target_of_too_few_layers_or_without_weights_is_refused(sources: TrainSources, tmp_path: Path) -> None:
    config = LlamaConfig(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=6, num_attention_heads=4)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "six")
    said = "differ in targets of 7 layers or more, but target .*six has 6 layers; train Medusa heads"
    with pytest.raises(ModelError, match=said):
        train_draft(replace(sources, target=str(tmp_path / "six")), SETTINGS, tmp_path / "out")
    (tmp_path / "six" / "model.safetensors").unlink()
    with pytest.raises(TrainingError, match="six holds no weights; a head reads its states"):
        train_draft(replace(sources, target=str(tmp_path / "six"), kind="medusa"), SHORT, tmp_path / "out")


def test_a_head_that_diverges_says_to_begin_anew(sources: TrainSources, tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match="; a new run cannot begin with a checkpoint of a head; start over with a lower `learning_rate`"
    ):
        train_draft(replace(sources, levels=2), replace(SHORT, learning_rate=1e30, warmup=8, save_steps=1), tmp_path)
