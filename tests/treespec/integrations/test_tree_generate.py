"""A tree inside transformers' `generate`: greedy outputs are its own, token for token; sampled ones have its distribution."""

import copy
import gc
import logging
import weakref
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
    T5Config,
    T5ForConditionalGeneration,
    TextStreamer,
)

from tests.reference import wrappers
from tests.reference.tiny import CONFIGS, config_of, known, module_of
from treespec.decoding.drafting import Drafting
from treespec.decoding.plans import DynamicBudget, Plan
from treespec.errors import CapacityError, GrowMapError, ModelError, SettingsError
from treespec.integrations.transformers import folder, release, tree_generate
from treespec.integrations.transformers.keeping import kept_of
from treespec.models import families
from treespec.models.loading import load_tokenizer
from treespec.text.engines import engine_of
from treespec.trees.growmap import GrowMap
from treespec.trees.library import find_growmap, load_growmap, names
from treespec.trees.tree import SpeculationTree

PROMPT = (5, 17, 3, 44, 61, 8, 20, 33, 90, 12, 7)
IDS = torch.tensor([PROMPT])
TREE = SpeculationTree.from_paths([(0, 0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 2), (1, 0, 0), (1, 1), (2,)])
PLANS: list[Plan] = [TREE, DynamicBudget.of(12, 4)]
FAMILIES = [family for family in CONFIGS if known(family)]


def worse(module: PreTrainedModel, noise: float = 0.04) -> PreTrainedModel:
    """A draft that often, but not always, agrees."""
    draft = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter += noise * parameter.std() * torch.randn(parameter.shape, generator=generator) if parameter.numel() > 1 else 0.0
    return draft


@pytest.fixture(scope="module")
def models() -> tuple[PreTrainedModel, PreTrainedModel]:
    module = module_of(config_of("llama"))
    return module, worse(module)


def both(models: tuple[PreTrainedModel, PreTrainedModel], plan: Plan = TREE, ids: Tensor = IDS, **settings: Any) -> tuple[Tensor, Tensor]:
    """What `generate` writes without the tree and with it."""
    module, draft = models
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 24, "do_sample": False, "pad_token_id": 0} | settings
    plain = module.generate(ids, **settings)
    return plain, module.generate(ids, custom_generate=tree_generate, draft=draft, plan=plan, **settings)


def require_equal(models: tuple[PreTrainedModel, PreTrainedModel], plan: Plan = TREE, ids: Tensor = IDS, **settings: Any) -> Tensor:
    plain, found = both(models, plan, ids, **settings)
    assert torch.equal(plain, found), settings
    return plain


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_writes_what_generate_writes(family: str) -> None:
    module = module_of(config_of(family))
    plain = require_equal((module, worse(module)), max_new_tokens=16, eos_token_id=None)
    assert plain.shape == (1, len(PROMPT) + 16)


WRAPPERS = [name for name in wrappers.WRAPPERS if wrappers.known(name) and not families.refusal(wrappers.config_of(name))]


@pytest.mark.parametrize("name", WRAPPERS)
def test_text_is_written_by_the_text_model_inside_a_wrapper(name: str) -> None:
    try:
        module = wrappers.module_of(name)
    except ImportError as missing:
        pytest.skip(str(missing).strip().splitlines()[0])
    require_equal((module, worse(module)), max_new_tokens=12, eos_token_id=None)


def steered(input_ids: Tensor, scores: Tensor) -> Tensor:
    """A processor of the user's own."""
    return scores.scatter_add(1, (input_ids.sum(-1, keepdim=True) % 97), torch.full((len(scores), 1), 3.0))


def alternating(batch: int, ids: Tensor) -> list[int]:
    """Row 0 goes from even to odd tokens and back, row 1 uses the first 40; asked about what breaks the rule, they have no answer."""
    new = ids[len(PROMPT) :].tolist()
    if batch == 0:
        return [] if any((a - b) % 2 == 0 for a, b in pairwise(new)) else [*range((int(ids[-1]) + 1) % 2, 97, 2)]
    return [] if any(token >= 40 for token in new) else [*range(40)]


SETTINGS: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 1.3},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "bad_words_ids": {"bad_words_ids": [[11], [17, 42], [50, 50]]},
    "suppress_tokens": {"suppress_tokens": [6, 50], "begin_suppress_tokens": [10]},
    "min_length": {"min_length": 30, "eos_token_id": [2, 73]},
    "min_new_tokens": {"min_new_tokens": 15, "eos_token_id": [2, 73]},
    "forced_eos": {"forced_eos_token_id": 60},
    "sequence_bias": {"sequence_bias": [[[50], -2.0], [[27, 40], 20.0]]},
    "own": {"logits_processor": LogitsProcessorList([steered])},
    "grammar": {"prefix_allowed_tokens_fn": alternating},
    "eos list": {"eos_token_id": [2, 73]},
    "max_length": {"max_length": 20, "max_new_tokens": None},
    "config": {"generation_config": GenerationConfig(repetition_penalty=1.2, max_new_tokens=9, eos_token_id=73)},
}


@pytest.mark.parametrize("plan", PLANS, ids=["static", "dynamic"])
@pytest.mark.parametrize("case", SETTINGS)
def test_settings_are_honoured(case: str, plan: Plan, models: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    require_equal(models, plan, **SETTINGS[case])


def test_a_batch_is_padded_as_generate_pads_it(models: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    """Processors see the padding on the left, too, as they do there."""
    ids = torch.tensor([PROMPT, [0, 0, *PROMPT[:-2]], [0, *PROMPT[::-1][:-1]]])
    mask = (ids > 0).long()
    for settings in ({}, {"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2}, {"min_length": 16}):
        found = require_equal(models, ids=ids, attention_mask=mask, eos_token_id=[2, 73, 42], **settings)
        assert (found[:, -1] == 0).any(), "texts of different lengths"
    require_equal(models, ids=ids[:2], attention_mask=mask[:2], prefix_allowed_tokens_fn=alternating)
    require_equal(models, ids=ids, attention_mask=None, max_new_tokens=5)


def stops_at(*tokens: int) -> Any:
    """A criterion of the user's own, with an answer per row."""
    return lambda ids, scores, **_: torch.isin(ids[:, -1], torch.tensor(tokens))


@pytest.mark.parametrize("eos", [None, 2])
def test_criteria_cut_where_generate_stops(eos: int | None, models: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    criteria = StoppingCriteriaList([stops_at(42, 75)])
    found = require_equal(models, stopping_criteria=criteria, eos_token_id=eos)
    assert int(found[0, -1]) == 42
    assert found.shape[1] < len(PROMPT) + 24
    ids = torch.tensor([PROMPT, PROMPT[::-1]])  # without an EOS, `generate` goes on with a text that ended until all have
    require_equal(models, ids=ids, stopping_criteria=criteria, eos_token_id=eos)
    require_equal(models, stopping_criteria=StoppingCriteriaList([lambda ids, scores, **_: ids.shape[1] >= 15]), eos_token_id=eos)


def test_the_whole_result_is_given_where_it_is_asked_for(models: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    plain, found = both(models, return_dict_in_generate=True)
    assert type(plain) is type(found)
    assert torch.equal(plain.sequences, found.sequences)


class Listener:
    """A streamer that keeps what it gets."""

    def __init__(self) -> None:
        self.got: list[list[Any] | str] = []

    def put(self, value: Tensor) -> None:
        self.got.append(value.tolist())

    def end(self) -> None:
        self.got.append("end")


def test_a_streamer_gets_what_generate_gives(models: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    module, draft = models
    there, here, third = Listener(), Listener(), Listener()
    module.generate(IDS, max_new_tokens=9, pad_token_id=0, streamer=there)
    module.generate(IDS, max_new_tokens=9, pad_token_id=0, custom_generate=tree_generate, draft=draft, plan=TREE, tree_streamer=here)
    by_folder = {"custom_generate": folder(), "trust_remote_code": True, "assistant_model": draft, "plan": TREE, "streamer": third}
    module.generate(IDS, max_new_tokens=9, pad_token_id=0, **by_folder)
    assert here.got == there.got == third.got
    with pytest.raises(SettingsError, match="`tree_streamer` streams one text, but there are 2 prompts"):
        module.generate(torch.cat([IDS, IDS]), max_new_tokens=9, custom_generate=tree_generate, draft=draft, plan=TREE, tree_streamer=here)


def test_without_a_draft_the_model_decodes_alone(models: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    plain = models[0].generate(IDS, max_new_tokens=9, pad_token_id=0, repetition_penalty=1.2)
    found = models[0].generate(IDS, max_new_tokens=9, pad_token_id=0, repetition_penalty=1.2, custom_generate=tree_generate)
    assert torch.equal(plain, found)


# -- the tree ---------------------------------------------------------------------------------------------------------


def test_a_growmap_comes_as_one_as_a_file_and_by_its_name(models: tuple[PreTrainedModel, PreTrainedModel], tmp_path: Path) -> None:
    module, draft = models
    GrowMap(TREE).write(tmp_path / "tree.pt")
    plain = module.generate(IDS, max_new_tokens=12, pad_token_id=0)
    for growmap in (GrowMap(TREE), tmp_path / "tree.pt", str(tmp_path / "tree.pt"), "68m_7b-64"):
        found = module.generate(IDS, max_new_tokens=12, pad_token_id=0, custom_generate=tree_generate, draft=draft, growmap=growmap)
        assert torch.equal(found, plain), growmap
    assert "68m_7b-64" in names()
    assert load_growmap("68m_7b-64") is load_growmap(find_growmap("68m_7b-64"))
    assert load_growmap("68m_7b-64").tree.size == 64
    GrowMap(SpeculationTree.chain(2)).write(tmp_path / "tree.pt")
    assert load_growmap(tmp_path / "tree.pt").tree.size == 3, "a file that has changed is read again"
    with pytest.raises(GrowMapError, match="no file 68m_7b-65, and no growmap of that name comes along; did you mean 68m_7b-64"):
        find_growmap("68m_7b-65")
    with pytest.raises(GrowMapError, match="check the path$"):
        find_growmap("zzz")


# -- sampling ---------------------------------------------------------------------------------------------------------


def small() -> tuple[PreTrainedModel, PreTrainedModel]:
    """A pair of 5 tokens."""
    module = module_of(config_of("llama", vocab_size=5, hidden_size=16, intermediate_size=16, num_hidden_layers=1, pad_token_id=None))
    return module, worse(module, 0.3)


def exact(module: PreTrainedModel, prompt: list[int], process: Callable[[Tensor, Tensor], Tensor]) -> dict[tuple[int, ...], float]:
    """The chance of each two tokens after a prompt."""
    chances = {(): 1.0}
    for _ in range(2):
        longer = {}
        for said, chance in chances.items():
            ids = torch.tensor([[*prompt, *said]])
            with torch.no_grad():
                row = process(ids, module(input_ids=ids).logits[:, -1].float()).softmax(-1)[0]
            longer |= {(*said, token): chance * float(row[token]) for token in range(5)}
        chances = longer
    return chances


@pytest.mark.parametrize("drafting", ["topk", "swor", Drafting("swr"), Drafting("swor", verifier="traversal")], ids=str)
@pytest.mark.parametrize("processed", [False, True], ids=["plain", "processed"])
def test_samples_have_the_distribution_of_generate(processed: bool, drafting: Any) -> None:
    from scipy.stats import chisquare
    from transformers import NoRepeatNGramLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    module, draft = small()
    settings: dict[str, Any] = {"temperature": 0.8, "top_k": 0}
    chain: list[Any] = [TemperatureLogitsWarper(0.8)]
    if processed:
        settings = {"temperature": 1.4, "top_k": 4, "top_p": 0.95, "no_repeat_ngram_size": 2}
        chain = [NoRepeatNGramLogitsProcessor(2), TemperatureLogitsWarper(1.4), TopKLogitsWarper(4), TopPLogitsWarper(0.95)]
    prompt, count = [1, 4, 3, 1], 400
    ids = torch.tensor([prompt] * 2)
    torch.manual_seed(0)
    found: Counter[tuple[int, ...]] = Counter()
    for _ in range(count // len(ids)):
        rows = module.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=2,
            do_sample=True,
            eos_token_id=None,
            custom_generate=tree_generate,
            draft=draft,
            plan=SpeculationTree.k_ary(2, 2),
            drafting=drafting,
            **settings,
        )
        found.update(tuple(row) for row in rows[:, 4:].tolist())

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        for each in chain:
            scores = each(ids, scores)
        return scores

    wanted = exact(module, prompt, process)
    assert all(wanted[said] > 0 for said in found)
    often = [said for said, chance in wanted.items() if chance * count > 5]
    observed = [*(found[said] for said in often), count - sum(found[said] for said in often)]
    expected = [*(wanted[said] * count for said in often), count * (1 - sum(wanted[said] for said in often))]
    if expected[-1] < 1e-6:
        observed, expected = observed[:-1], expected[:-1]
    assert float(chisquare(observed, [e * sum(observed) / sum(expected) for e in expected]).pvalue) > 1e-3


def test_seeds_reproduce_samples(models: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    module, draft = models

    def sample(**more: Any) -> list[int]:
        settings = {"max_new_tokens": 12, "do_sample": True, "pad_token_id": 0, "custom_generate": tree_generate}
        return module.generate(IDS, draft=draft, plan=TREE, **settings, **more)[0].tolist()  # type: ignore[no-any-return]

    assert sample(seed=4) == sample(seed=4) != sample(seed=5)
    torch.manual_seed(7)
    first = sample()
    assert sample() != first
    torch.manual_seed(7)
    assert sample() == first
    state = torch.get_rng_state()
    require_equal(models)
    assert torch.equal(torch.get_rng_state(), state), "greedy decoding leaves torch's own stream alone"


def test_temperature_and_top_p_alone_are_left_to_the_steps(models: tuple[PreTrainedModel, PreTrainedModel], caplog: Any) -> None:
    def said(**settings: Any) -> str:
        caplog.clear()
        with caplog.at_level(logging.INFO, "treespec"):
            models[0].generate(IDS, max_new_tokens=3, pad_token_id=0, custom_generate=tree_generate, draft=models[1], plan=TREE, **settings)
        return str(caplog.text)

    assert "eagerly" not in said(do_sample=False)
    assert "eagerly" not in said(do_sample=True, temperature=0.7, top_p=0.9, top_k=0, renormalize_logits=True)
    assert "run path by path (TopKLogitsWarper)" in said(do_sample=True)
    assert "run path by path (RepetitionPenaltyLogitsProcessor)" in said(repetition_penalty=1.2)


# -- what is kept -----------------------------------------------------------------------------------------------------


def test_models_are_kept_as_long_as_they_serve(models: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    module, draft = copy.deepcopy(models[0]), copy.deepcopy(models[1])
    pair = (module, draft)
    require_equal(pair)
    first = kept_of(module).pair
    require_equal(pair, max_new_tokens=9)
    module.generate(IDS, max_new_tokens=3, pad_token_id=0, custom_generate=tree_generate)
    assert kept_of(module).pair is first
    with torch.no_grad():
        module.lm_head.weight.copy_(module.lm_head.weight.roll(1, 0))
    require_equal(pair)
    assert kept_of(module).pair is first, "changes in place take effect"
    require_equal((module, worse(module)))
    assert kept_of(module).pair is not first
    assert kept_of(copy.deepcopy(module)).pair is None, "copies have a cache of their own"
    module.double(), draft.double()
    require_equal(pair)
    assert kept_of(module).pair.target.dtype == torch.float64  # type: ignore[union-attr]
    release(module)
    assert kept_of(module).pair is None
    require_equal(pair)
    gone = weakref.ref(module)
    del module, draft, pair, first
    gc.collect()
    assert gone() is None, "nothing keeps a module alive"


# -- n-grams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside"])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_ngrams_draft_alone_and_beside_a_module(family: str, beside: bool) -> None:
    module = module_of(config_of(family))
    draft = worse(module) if beside else "ngram"
    for settings in ({}, {"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 5}):
        for plan in PLANS:
            settings = {"attention_mask": torch.ones_like(IDS), "max_new_tokens": 40, "do_sample": False, "pad_token_id": 0} | settings
            plain = module.generate(IDS, **settings)
            found = module.generate(IDS, custom_generate=tree_generate, draft=draft, ngrams=beside, plan=plan, **settings)
            assert torch.equal(found, plain), (settings, plan)
    kept = kept_of(module).pair
    assert kept is not None
    assert kept.models["draft"].describe()["name"].endswith("+ngram" if beside else "ngram")
    how: dict[str, Any] = {"custom_generate": folder(), "trust_remote_code": True, "plan": TREE, "assistant_model": draft, "ngrams": beside}
    assert torch.equal(
        module.generate(IDS, max_new_tokens=12, pad_token_id=0, **how), module.generate(IDS, max_new_tokens=12, pad_token_id=0)
    )
    assert kept_of(module).pair is kept
    release(module)


def test_ngrams_sample_from_seeds(models: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 12, "do_sample": True, "top_k": 0, "pad_token_id": 0, "drafting": "swor", "plan": TREE}
    first, again, other = (
        models[0].generate(IDS, custom_generate=tree_generate, draft="ngram", seed=seed, **settings) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_other_names_and_ngrams_beside_nothing_are_refused(models: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    how: dict[str, Any] = {"custom_generate": tree_generate, "plan": TREE, "max_new_tokens": 4, "pad_token_id": 0}
    with pytest.raises(ModelError, match="the draft is 'ngrams'; pass a loaded module, or \"ngram\""):
        models[0].generate(IDS, draft="ngrams", **how)
    for draft in (None, "ngram"):
        with pytest.raises(ModelError, match="`ngrams` are counted beside a draft; pass its module"):
            models[0].generate(IDS, draft=draft, ngrams=True, **how)


# -- the folder -------------------------------------------------------------------------------------------------------


def test_the_folder_takes_the_names_of_generate(models: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    module, draft = models
    how: dict[str, Any] = {"custom_generate": folder(), "trust_remote_code": True, "plan": TREE}
    more: list[dict[str, Any]] = [{"repetition_penalty": 1.2}, {"prefix_allowed_tokens_fn": alternating}, {}]
    for settings in ({"max_new_tokens": 12} | each for each in more):
        plain = module.generate(IDS, pad_token_id=0, **settings)
        for name in ("assistant_model", "draft"):
            assert torch.equal(module.generate(IDS, pad_token_id=0, **settings, **how, **{name: draft}), plain), settings
    with pytest.raises(SettingsError, match="`assistant_model` and `draft` are two names"):
        module.generate(IDS, **how, assistant_model=draft, draft=draft)
    with pytest.raises(SettingsError, match="`stop_strings` are found by a tokenizer"):
        module.generate(IDS, **how, assistant_model=draft, stop_strings="x")


def test_stop_strings_and_a_text_streamer_work_in_the_folder(capsys: Any) -> None:
    from treespec.models.pairs import load_pair

    pair, tokenizer = load_pair("embedded-target", "embedded-draft"), load_tokenizer("embedded-target")
    module, draft = pair.target.module, pair.draft.module
    inputs = tokenizer("def main(args):\n    return", return_tensors="pt")
    inputs = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "max_new_tokens": 40}
    whole = tokenizer.decode(module.generate(**inputs)[0, inputs["input_ids"].shape[1] :])
    stop = whole[len(whole) // 2 :][:3]
    plain = module.generate(**inputs, tokenizer=tokenizer, stop_strings=[stop])
    how = {"custom_generate": folder(), "trust_remote_code": True, "assistant_model": draft, "growmap": "embedded-h200-16"}
    found = module.generate(**inputs, tokenizer=tokenizer, stop_strings=[stop], streamer=TextStreamer(tokenizer, skip_prompt=True), **how)
    assert torch.equal(plain, found)
    assert capsys.readouterr().out.strip() in tokenizer.decode(found[0])
    module.generation_config.stop_strings = [stop]
    assert torch.equal(module.generate(**inputs, tokenizer=tokenizer, **how), plain)
    module.generation_config.stop_strings = None


# -- what is refused --------------------------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"num_beams": 2}, "`num_beams` is 2, but a tree verifies one text at a time"),
    ({"guidance_scale": 1.5}, r"guidance reads a second \(negative\) prompt"),
    ({"output_scores": True, "return_dict_in_generate": True}, "`output_scores` asks for what a step of a tree does not give"),
    ({"position_ids": torch.arange(11)[None] + 1}, "`position_ids` are not those of whole texts"),
    ({"attention_mask": torch.tensor([[1] * 10 + [0]])}, "pad prompts on the left"),
    ({"plan": None}, "a draft needs a tree; pass `growmap`"),
    ({"growmap": "68m_7b-16"}, "`growmap` and `plan` both say what to draft"),
    ({"draft": None}, "a tree needs a draft model; pass `draft`"),
    ({"drafting": "swap"}, "`drafting` is 'swap'"),
    ({"plan": DynamicBudget.of(8, 3), "drafting": "swor"}, "`dynamic` drafts tokens that are not sampled"),
]


@pytest.mark.parametrize(("change", "said"), REFUSED)
def test_what_a_tree_cannot_follow_is_refused_in_a_line(
    change: dict[str, Any], said: str, models: tuple[PreTrainedModel, PreTrainedModel]
) -> None:
    settings = {"max_new_tokens": 4, "pad_token_id": 0, "draft": models[1], "plan": TREE, "custom_generate": tree_generate} | change
    with pytest.raises(SettingsError, match=said) as caught:
        models[0].generate(IDS, **settings)
    assert "\n" not in str(caught.value)


def test_modules_that_cannot_decode_are_named(models: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    """By the checks of `pair_of`, also where they were in order at an earlier call."""
    pair = copy.deepcopy(models)
    require_equal(pair, max_new_tokens=3)
    for index, role in enumerate(("target", "draft")):
        pair[index].train()
        with pytest.raises(ModelError, match=f"the {role} is in training mode"):
            both(pair, max_new_tokens=3)
        pair[index].eval()
    require_equal(pair, max_new_tokens=3)
    with pytest.raises(ModelError, match="is no model of transformers"):
        both((pair[0], torch.nn.Linear(2, 2)))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="the draft is the target itself"):
        both((pair[0], pair[0]))


def test_an_encoder_decoder_is_refused(models: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    config = T5Config(vocab_size=97, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    with pytest.raises((ModelError, SettingsError), match="encoder"):
        T5ForConditionalGeneration(config).eval().generate(IDS, max_new_tokens=4, custom_generate=tree_generate, draft=models[1], plan=TREE)


def test_a_text_ends_with_the_positions_that_the_model_has(caplog: Any) -> None:
    module = module_of(config_of("llama", max_position_embeddings=16))
    settings: dict[str, Any] = {"max_new_tokens": 40, "pad_token_id": 0, "eos_token_id": None}
    plain = module.generate(IDS, **settings)
    with caplog.at_level(logging.WARNING, "treespec"):
        found = module.generate(IDS, custom_generate=tree_generate, draft=worse(module), plan=SpeculationTree.chain(30), **settings)
    assert found.shape == (1, 17), "the last token is never read"
    assert torch.equal(found, plain[:, :17])
    assert "knows no more positions" in caplog.text
    with pytest.raises(CapacityError, match="a prompt has 22 tokens, but .* knows 16 positions; pass shorter `input_ids`"):
        module.generate(torch.cat([IDS, IDS], dim=1), custom_generate=tree_generate, **settings)


def test_a_processor_with_a_state_is_named(models: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    class Counting:
        calls = 0

        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            self.calls += 1
            return scores + torch.arange(97) * (self.calls % 5)

    with pytest.raises(ModelError, match="the logits processor Counting gives other scores when asked again"):
        both(models, logits_processor=LogitsProcessorList([Counting()]))


@pytest.mark.gpu
def test_captured_steps_are_used_again_on_cuda(models: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    module, draft = (copy.deepcopy(each).to("cuda") for each in models)
    generations = []
    for length in (24, 12, 48, 64):
        require_equal((module, draft), ids=IDS.cuda(), max_new_tokens=length)
        kept = kept_of(module)
        assert kept.pair is not None
        generations.append([model.generation for model in kept.pair.models.values()])
    assert generations[0] == generations[1]
    assert generations[2] == generations[3] != generations[0], "caches that grow grow by more than is needed"
    engine = engine_of(kept.pair.target, kept.pair.models["draft"])
    assert engine is not None
    assert engine.eager() is None
    require_equal((module, draft), ids=IDS.cuda(), repetition_penalty=1.3, no_repeat_ngram_size=2)
    with pytest.raises(ModelError, match="`input_ids` are on cpu, but"):
        module.generate(IDS, max_new_tokens=3, custom_generate=tree_generate, draft=draft, plan=TREE)


def test_the_folder_is_said_to_be_there() -> None:
    assert (Path(folder()) / "custom_generate" / "generate.py").is_file()
