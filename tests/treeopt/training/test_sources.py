"""What training starts from: configurations of other models, vision-language drafts, data sets by several spellings."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.reference import vision
from tests.reference.training import SETTINGS, weights
from treeopt.training.settings import TrainSources
from treeopt.training.sources import Target, open_draft
from treeopt.training.train import train_draft
from treespec.errors import ModelError, SettingsError
from treespec.models.loading import load_model, load_picture_reader


def test_a_quantized_models_configuration_gives_a_draft_that_loads(sources: TrainSources, tmp_path: Path) -> None:
    shape = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    other = {
        "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True},
        "_name_or_path": "a/b",
        "_commit_hash": "c0ffee",
    }
    (tmp_path / "config.json").write_text(json.dumps({**shape, **other}))
    made = replace(sources, draft=None, config=str(tmp_path / "config.json"))
    train_draft(made, replace(SETTINGS, objective="ce", text="own", eval_prompts=0, steps=2), tmp_path / "out")
    assert load_model(str(tmp_path / "out")).module.config.hidden_size == 16
    saved = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not set(other) & set(saved)


@pytest.fixture
def seeing(tmp_path: Path) -> TrainSources:
    """A LLaVA draft of a LLaVA target, and rows of their words."""
    target = vision.save(vision.llava(0), tmp_path / "target")
    draft = vision.save(vision.llava(1, layers=1), tmp_path / "draft")
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, vision.IMAGE_TOKEN, (40, 30), generator=generator).tolist()
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in ids))
    return TrainSources(str(target), str(tmp_path / "rows.jsonl"), draft=str(draft))


def test_of_a_llava_draft_the_text_model_is_trained_and_no_parameter_goes_unused(seeing: TrainSources) -> None:
    """Several processes wait for the gradient of every parameter that is to be trained."""
    module = open_draft(seeing, Target(seeing.target, None, "auto", "cpu"), 0).module
    module(input_ids=torch.tensor([[3, 4, 5]])).logits.sum().backward()
    wanted = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert wanted == {name for name, parameter in module.named_parameters() if parameter.grad is not None}
    assert wanted == {name for name, _ in module.named_parameters() if "vision_tower" not in name and "multi_modal_projector" not in name}


def test_a_trained_llava_draft_is_a_whole_llava(seeing: TrainSources, tmp_path: Path) -> None:
    result = train_draft(seeing, replace(SETTINGS, text="own", steps=4, eval_prompts=4, learning_rate=1e-3), tmp_path / "out")
    before, after = weights(Path(seeing.draft)), weights(result.folder)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "vision" not in name and "projector" not in name}
    assert load_picture_reader(str(result.folder)).shape == load_picture_reader(seeing.draft).shape


def test_a_data_set_is_the_same_however_it_is_spelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"text": "a"}\n')
    Path("link.jsonl").symlink_to("rows.jsonl")
    Path("stdlib").mkdir()
    for other in ("rows.jsonl", "./rows.jsonl", str(tmp_path / "rows.jsonl"), "link.jsonl", "x/../rows.jsonl"):
        with pytest.raises(SettingsError, match="is trained on"):
            TrainSources("t", "rows.jsonl", draft="d", eval_dataset=other)
    for one, other in (("rows.jsonl", "other.jsonl"), ("stdlib", "./stdlib"), ("stdlib", "stdlib-train")):
        TrainSources("t", one, draft="d", eval_dataset=other)


@pytest.mark.parametrize("content", ["[" * 200_000, "{"])
def test_a_configuration_that_is_no_json_is_refused(sources: TrainSources, tmp_path: Path, content: str) -> None:
    (tmp_path / "deep.json").write_text(content)
    with pytest.raises(ModelError, match=r"deep.json is no JSON: .*; pass a config.json of transformers"):
        train_draft(replace(sources, draft=None, config=str(tmp_path / "deep.json")), SETTINGS, tmp_path / "out")
