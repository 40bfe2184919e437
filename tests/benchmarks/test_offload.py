"""The benchmark of offloading compares like with like."""

import pytest
import torch

from benchmarks import offload
from benchmarks.inflate import Shape
from treeopt.optimizer.search import OptimizationResult, optimize
from treeopt.profiles.acceptance import AcceptanceProfile
from treespec.data.prompts import PromptSet, load_prompts
from treespec.embedded import DRAFT_FOLDER, TARGET_FOLDER
from treespec.models.loading import load_tokenizer

needs_pair = pytest.mark.skipif(
    not all((folder / "model.safetensors").exists() for folder in (TARGET_FOLDER, DRAFT_FOLDER)),
    reason="the embedded pair is not trained yet",
)


@needs_pair
def test_figures_follow_from_what_was_measured_and_outputs_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(case: offload.Case) -> tuple[OptimizationResult, PromptSet, list[float]]:
        profile = AcceptanceProfile("topk", 0.0, 1.0, (0.6, 0.2), 0.2, (), 100, 4)
        prompts = load_prompts("stdlib", load_tokenizer("embedded-target"), num_prompts=case.prompts, prompt_len=32)
        return optimize(profile, size=case.size, depth=case.depth), prompts, list(profile.rank_probability)

    monkeypatch.setattr(offload, "chosen_tree", chosen)
    target, draft = Shape(384, 13, 3, 320), Shape(192, 2, 3, 400)
    case = offload.Case(torch.device("cpu"), torch.float32, target, draft, size=8, depth=3, prompts=1, gen_len=5, copied=1 << 22)
    data = offload.run(case)
    assert data["equal_outputs"] == {"tree and autoregressive": True, "offloaded and on the device": True}
    assert data["tree"]["size"] == 8
    width, inner = target.hidden_size, target.intermediate_size
    attention = target.num_attention_heads * 128
    layer = 4 * (4 * width * attention + 3 * width * inner + 2 * width)
    assert 0 <= data["streamed_bytes"] - 13 * layer < 13 * 9 * 256
    assert data["bound_seconds"] == data["streamed_bytes"] / data["bandwidth"]
    alone, steps = data["systems"]["autoregressive"], data["systems"]["tree"]
    assert (alone["tokens"], alone["tokens_per_step"]) == (steps["tokens"], 1) == (4, 1)
    assert data["figures"]["x bound, tree"] * data["bound_seconds"] * steps["steps"] == pytest.approx(steps["seconds"])
    faster = alone["seconds"] / steps["seconds"]
    assert data["figures"]["speed-up / tokens per step"] == pytest.approx(faster * steps["steps"] / 4)
    assert set(data["figures"]) == set(data["goals"])
