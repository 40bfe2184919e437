"""Pairs whose vocabularies differ in special tokens and padding: which ids mean the same, and that the target is the same with every draft."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.reference.waits import Waits
from treespec.decoding.drafting import Drafting
from treespec.decoding.engine import Engine
from treespec.decoding.loop import Request, decode_autoregressive, decode_speculative
from treespec.decoding.plans import DynamicBudget
from treespec.decoding.rules import Sampling
from treespec.decoding.sampling import prompt_generator
from treespec.decoding.step import StepSpec
from treespec.errors import ModelError
from treespec.models.pairs import Pair, load_pair, load_target
from treespec.models.text_draft import TextDraft
from treespec.models.tree_model import TreeModel
from treespec.models.vocabularies import SharedIds, shared_ids
from treespec.trees.placement import Prefix
from treespec.trees.tree import SpeculationTree

Build = Callable[..., PreTrainedModel]
NAMES = ("<s>", "</s>", "<unk>")
TREE = SpeculationTree.from_branches([[3], [2, 1, 1], [1, 1, 0, 0]])
PROMPT = (3, 5, 7, 11, 13, 17)


def tokenizer(size: int = 90, names: Sequence[str] = NAMES, added: Sequence[str] = (), prefix: str = "w") -> PreTrainedTokenizerFast:
    """Three special tokens, then words, then added special tokens: `size` tokens without these."""
    vocabulary = {token: index for index, token in enumerate([*names, *(f"{prefix}{i}" for i in range(size - 3))])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=names[2]))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    found = PreTrainedTokenizerFast(tokenizer_object=words, bos_token=names[0], eos_token=names[1], unk_token=names[2])
    found.add_special_tokens({"additional_special_tokens": list(added)})
    return found


CHAT = ("<|im_start|>", "<|im_end|>")
SHARED = {
    "the same": ({}, 97, {}, 97, SharedIds(97)),
    "padded otherwise": ({}, 152, {}, 128, SharedIds(128)),
    "the draft padded more": ({}, 128, {}, 152, SharedIds(128)),
    "padding token of the draft": ({}, 90, {"added": ["<pad>"]}, 91, SharedIds(90)),
    "padding token in the target's padding": ({}, 96, {"added": ["<pad>"]}, 96, SharedIds(96, (90,))),
    "chat tokens of the draft": ({}, 90, {"added": CHAT}, 92, SharedIds(90)),
    "chat tokens of the target": ({"added": CHAT}, 92, {}, 90, SharedIds(90)),
    "chat tokens in another order": ({"added": CHAT}, 92, {"added": CHAT[::-1]}, 92, SharedIds(90, (), ((90, 91), (91, 90)))),
    "other names of the same roles": ({}, 97, {"names": ("<bos>", "<eos>", "[UNK]")}, 97, SharedIds(97)),
    "roles that changed places": ({}, 97, {"names": ("<eos>", "<bos>", "<unk>")}, 97, SharedIds(97)),
    "other added tokens": ({"added": ["<tool>"]}, 97, {"added": ["<mask>"]}, 97, SharedIds(97, (90,))),
    "a draft of fewer words": ({}, 97, {"size": 60}, 64, SharedIds(60)),
    "a draft of more words": ({"added": ["<tool>"]}, 91, {"size": 95}, 95, SharedIds(90)),
    "more ids than rows": ({"added": CHAT}, 90, {"added": ["<pad>"]}, 90, SharedIds(90)),
}


@pytest.mark.parametrize("case", SHARED)
def test_ids_that_mean_the_same_are_shared(case: str) -> None:
    ours, rows, theirs, draft_rows, wanted = SHARED[case]
    assert shared_ids("T", tokenizer(**ours), rows, "D", tokenizer(**theirs), draft_rows) == wanted


@pytest.mark.parametrize("other", [{"prefix": "v"}, {"size": 91, "names": ("<s>", "</s>", "<pad>"), "prefix": "u"}])
def test_other_text_tokens_are_refused(other: dict[str, object]) -> None:
    with pytest.raises(ModelError, match=r"^target T \(90 tokens\) and draft D .* different vocabularies, first at id 3 \('w0'\)"):
        shared_ids("T", tokenizer(), 97, "D", tokenizer(**other), 97)  # type: ignore[arg-type]


def noisy(module: PreTrainedModel, rows: int) -> PreTrainedModel:
    """A copy with other numbers of rows and a little noise: a good draft."""
    other = copy.deepcopy(module)
    torch.manual_seed(5)
    other.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.02 * torch.randn(parameter.shape)
    return other


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_module: Build) -> Callable[[str], tuple[Path, Path]]:
    """Case of SHARED -> folders of a target and a draft."""

    def make(case: str) -> tuple[Path, Path]:
        ours, rows, theirs, draft_rows, _ = SHARED[case]
        root = tmp_path_factory.mktemp("pair")
        target = tiny_module("llama", seed=3, vocab_size=rows, bos_token_id=None, eos_token_id=None, pad_token_id=None)
        for name, module, settings in (("T", target, ours), ("D", noisy(target, draft_rows), theirs)):
            module.save_pretrained(root / name)
            tokenizer(**settings).save_pretrained(root / name)  # type: ignore[arg-type]
        return root / "T", root / "D"

    return make


def decoded(pair: Pair, drafting: Drafting = Drafting(), dynamic: bool = False, sampling: Sampling = Sampling()) -> tuple[list[int], int]:
    """(generated tokens, steps)."""
    plan = DynamicBudget(8, 3, 4) if dynamic else TREE
    request = Request(PROMPT, 24, sampling=sampling)
    records = list(decode_speculative(pair.target, pair.draft, plan, request, prompt_generator(0, 0, "cpu"), drafting=drafting))
    return [token for record in records for token in record.tokens], len(records) - 1


@pytest.mark.parametrize("case", SHARED)
def test_outputs_are_generates_with_every_draft_and_without(case: str, folders: Callable[[str], tuple[Path, Path]]) -> None:
    target, draft = map(str, folders(case))
    alone, pair = load_target(target), load_pair(target, draft)
    assert pair.target.vocabulary_size == alone.target.vocabulary_size == SHARED[case][1]
    ids = torch.tensor([PROMPT])
    wanted = alone.target.module.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, pad_token_id=0)
    expected = wanted[0, len(PROMPT) :].tolist()
    assert [t for record in decode_autoregressive(alone.target, Request(PROMPT, 24)) for t in record.tokens] == expected
    for drafting, dynamic in (
        (Drafting(), False),
        (Drafting(), True),
        (Drafting("swor", 0.7), False),
        (Drafting("swr", 0.7, "traversal"), False),
    ):
        found, steps = decoded(pair, drafting, dynamic)
        assert found == expected
        assert steps < 23, "a draft that is never right tests nothing"
    shared = SHARED[case][4]
    drafted = pair.draft.score(ids).shape[-1]
    assert drafted == pair.draft.vocabulary_size == shared.size
    assert pair.draft.score(ids)[..., list(shared.others)].isneginf().all()


def test_the_draft_reads_its_own_ids_of_tokens_that_are_elsewhere(tiny_module: Build) -> None:
    module = tiny_module("llama", eos_token_id=2)
    draft = TextDraft(module, name="D", shared=SharedIds(90, (4,), ((91, 7),)), vocabulary=120)
    whole = TreeModel(module, name="whole")
    read, wanted = torch.tensor([[5, 4, 91, 119, 6]]), torch.tensor([[5, 2, 7, 2, 6]])
    found = draft.score(read)
    assert torch.equal(found[..., 5:], whole.score(wanted)[..., 5:90])
    draft.allocate(8)
    assert torch.allclose(draft.prefill(read[0])[5:], found[0, -1, 5:], atol=1e-5)
    assert draft.unknown == (4,)


@torch.no_grad()
def test_a_step_with_a_draft_of_a_part_of_the_tokens_waits_for_nothing(tiny_module: Build) -> None:
    """So that it can be captured in a CUDA graph."""
    target, draft = TreeModel(tiny_module("llama")), TextDraft(tiny_module("llama", 1), name="D", shared=SharedIds(80, (9,)), vocabulary=97)
    for model in (target, draft):
        model.allocate(64)
    for plan, drafting in ((TREE, Drafting()), (TREE, Drafting("swor", 1.0, "traversal")), (DynamicBudget(8, 3, 4), Drafting())):
        step = StepSpec(plan, Sampling(1.0), drafting).build(target, draft)
        step.begin(torch.tensor(PROMPT), None)
        last, prefix, generator = torch.tensor([17, 96]), Prefix.of(len(PROMPT), "cpu"), prompt_generator(0, 0, "cpu")
        step.advance(last, prefix, 32, generator)
        with Waits() as waits:
            step.advance(last, prefix, 32, generator)
        assert waits.found == []


@pytest.mark.gpu
def test_captured_steps_take_a_draft_of_a_part_of_the_tokens(tiny_module: Build) -> None:
    module = tiny_module("llama", eos_token_id=None)
    draft = TextDraft(noisy(module, 80).to("cuda"), name="D", shared=SharedIds(80, (9,), ((90, 7),)), vocabulary=97)
    target = TreeModel(module.to("cuda"))
    engine = Engine(target, draft)
    wanted = [t for r in decode_autoregressive(target, Request(PROMPT, 24), engine=engine) for t in r.tokens]
    for plan, drafting in ((TREE, Drafting()), (TREE, Drafting("swor", 1.0)), (DynamicBudget(8, 3, 4), Drafting())):
        generator = prompt_generator(0, 0, "cuda")
        records = decode_speculative(target, draft, plan, Request(PROMPT, 24), generator, drafting=drafting, engine=engine)
        assert [t for r in records for t in r.tokens] == wanted
    assert engine.eager() is None
