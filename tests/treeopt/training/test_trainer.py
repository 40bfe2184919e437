"""The Trainer for drafts: one gradient however a step is cut, and the acceptance that profiling measures."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

from tests.reference.pairs import VOCABULARY, prompt_set, tiny_pair
from treeopt.profiling.acceptance import profile_acceptance
from treeopt.profiling.continuation import continue_prompts
from treeopt.profiling.settings import AcceptanceSettings
from treeopt.training.texts import Texts, own_windows
from treeopt.training.trainer import DraftTrainer, Watch
from treespec.decoding.rules import Sampling
from treespec.errors import TrainingError


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    settings: dict[str, Any] = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "max_steps": 1, "save_strategy": "no"}
    settings |= {"max_grad_norm": 0.0, "label_names": ["labels"], "remove_unused_columns": False, "log_level": "error"}
    return TrainingArguments(output_dir=str(folder), **{**settings, **changes})


class Gradients(TrainerCallback):
    """Keeps what the optimizer is about to be given."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for name, parameter in kwargs["model"].named_parameters():
            self.found[name] = parameter.grad.clone()


def uneven_texts(rows: int = 8, length: int = 12) -> Texts:
    """Random rows of which ever more tokens count."""
    tokens = torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(1))
    counts = torch.arange(length)[None] >= torch.arange(rows)[:, None] + 2
    return Texts(tokens.int(), counts)


def trained(folder: Path, draft: PreTrainedModel, texts: Texts, target: PreTrainedModel, **changes: Any) -> dict[str, torch.Tensor]:
    """Gradients of the first step of distilling a copy of the draft."""
    kept = Gradients()
    trainer = DraftTrainer(
        copy.deepcopy(draft),
        texts,
        arguments(folder, **changes),
        loss="forward-kl",
        vocabulary=VOCABULARY - 5,
        teacher=target,
        temperature=0.8,
        callbacks=[kept],
    )
    trainer.train()
    return kept.found


def test_a_step_has_one_gradient_however_it_is_cut(tmp_path: Path) -> None:
    """Against the mean over all tokens that count, by plain torch; rows count between 10 and 3 tokens."""
    pair, texts = tiny_pair(0.2), uneven_texts()
    draft, target, plain = pair.draft.module, pair.target.module, copy.deepcopy(pair.draft.module)
    cut = VOCABULARY - 5
    p, q = ((module(input_ids=texts.tokens[:, :-1].long()).logits[..., :cut] / 0.8).log_softmax(-1) for module in (target, plain))
    divergence = (p.exp() * (p - q)).sum(-1)[texts.counts[:, 1:]].mean()
    divergence.backward()
    for batch, accumulation in ((8, 1), (4, 2), (2, 4), (1, 8)):
        found = trained(tmp_path, draft, texts, target, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)
        for name, parameter in plain.named_parameters():
            assert parameter.grad is not None
            assert torch.allclose(found[name], parameter.grad, atol=1e-6), (batch, accumulation, name)
    assert max(float(g.abs().max()) for g in found.values()) > 1e-3


def test_first_choice_acceptance_is_that_of_the_profile(tmp_path: Path) -> None:
    eos = frozenset(range(0, VOCABULARY, 9))
    pair, prompts = tiny_pair(eos=eos), prompt_set(7)
    settings = AcceptanceSettings(gen_len=20, max_branch=1)
    profile = profile_acceptance(pair, prompts, settings)
    ids = torch.tensor([p.ids for p in prompts])
    tokens, valid = continue_prompts(pair.target.module, ids, 20, Sampling(), [], eos, VOCABULARY)
    counts = torch.cat([torch.zeros(len(ids), ids.shape[1] + 1, dtype=torch.bool), valid[:, 1:]], dim=1)
    trainer = DraftTrainer(
        pair.draft.module, uneven_texts(), arguments(tmp_path), loss="ce", vocabulary=VOCABULARY, held_out=Texts(tokens, counts)
    )
    found = trainer.evaluate()
    assert found["rank1_acceptance"] == pytest.approx(profile.rank_probability[0], abs=1e-9)
    assert found["rank1_standard_error"] == pytest.approx(profile.standard_error[0], abs=1e-9)
    assert 0 < found["rank1_acceptance"] < 1
    assert trainer.state.log_history[-1]["rank1_acceptance"] == found["rank1_acceptance"]


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    pair = tiny_pair()
    with torch.no_grad():
        pair.draft.module.lm_head.weight[0] = float("nan")
    watch = Watch(None, lambda what, done, total: None, lambda message: None)
    trainer = watch.trainer = DraftTrainer(
        pair.draft.module,
        uneven_texts(),
        arguments(tmp_path, logging_steps=1, logging_nan_inf_filter=False),
        loss="ce",
        vocabulary=VOCABULARY,
        callbacks=[watch],
    )
    with pytest.raises(TrainingError, match="the loss is nan at step 1"):
        trainer.train()


def test_windows_are_the_rows_in_a_row_with_their_ends_marked() -> None:
    rows = [torch.tensor([1, 2, 3], dtype=torch.int32), torch.tensor([4], dtype=torch.int32), torch.tensor([5, 6, 7, 8, 9])]
    found = own_windows(rows, 4, end_of_text=0)
    assert found.tokens.tolist() == [[1, 2, 3, 0], [4, 0, 5, 6], [7, 8, 9, 0]]
    assert found.counts.tolist() == [[False, True, True, True]] * 3
    assert own_windows(rows, 4, None).tokens.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert len(own_windows([], 4, None)) == len(own_windows(rows, 13, 0)) == 0
