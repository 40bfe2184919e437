"""Vision-language pairs: what a tree decodes is what transformers' own generate says, and pictures are really seen."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chi2

from tests.reference import vision as v
from treeopt.profiling.acceptance import profile_acceptance
from treeopt.profiling.potential import measure_potential
from treeopt.profiling.settings import AcceptanceSettings, PotentialSettings
from treespec.data.prompts import PromptSet, load_prompts
from treespec.decoding.drafting import Drafting
from treespec.decoding.engine import Engine
from treespec.decoding.loop import Request, decode_autoregressive, decode_speculative
from treespec.decoding.plans import DynamicBudget
from treespec.decoding.rules import Sampling
from treespec.decoding.sampling import prompt_generator
from treespec.errors import CapacityError, ModelError
from treespec.evaluation.runner import evaluate
from treespec.evaluation.settings import EvaluationSettings
from treespec.models.loading import load_model
from treespec.models.offload.streaming import offload, streamed_bytes
from treespec.models.pairs import Target, load_drafts, load_pair, load_target, tree_model
from treespec.models.text_draft import TextDraft
from treespec.models.tree_model import TreeModel
from treespec.models.vision import Vision, text_module
from treespec.trees.placement import Placement, Prefix
from treespec.trees.tree import SpeculationTree

GEN_LEN = 14
EOS = frozenset({2})
TREE = SpeculationTree.from_branches([[3], [2, 1, 0], [1, 0, 1], [1, 1]])
PLANS = {"static": TREE, "dynamic": DynamicBudget.of(10, 4), "chains": SpeculationTree.k_chains(2, 5)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`target`, a well taught `draft`, a text-only `blind` one, and 8 unseen `scenes`."""
    from transformers import LlamaForCausalLM

    home = tmp_path_factory.mktemp("vision")
    target, draft, blind = v.llava(1), v.llava(2, layers=1), v.llava(3, layers=1)
    assert v.train(target, 150, range(2000, 2512)) < 0.1
    v.train(draft, 60, range(2000, 2512))
    v.train(blind, 60, range(2000, 2512))
    v.save(target, home / "target")
    v.save(draft, home / "draft")
    text = LlamaForCausalLM(blind.config.text_config)
    text.model.load_state_dict(blind.model.language_model.state_dict())
    text.lm_head.load_state_dict(blind.lm_head.state_dict())
    text.resize_token_embeddings(v.IMAGE_TOKEN)
    v.save(text, home / "blind", picture=False)
    v.write_scenes(home / "scenes", range(8))
    return home


def load(folders: Path, draft: str | None, device: str = "cpu") -> tuple[Any, PromptSet]:
    """The pair, or the target alone where `draft` is None, and prompts with pictures."""
    where = {"device": device, "dtype": "float32"}
    target = str(folders / "target")
    pair = load_target(target, **where) if draft is None else load_pair(target, str(folders / draft), **where)
    prompts = load_prompts(
        str(folders / "scenes"), pair.tokenizer, num_prompts=8, prompt_len=64, pictures=pair.pictures, picture_prompt=v.ASKED
    )
    return pair, prompts


def generated(folders: Path, pair: Target, prompts: PromptSet) -> list[list[int]]:
    """By transformers' own generate on the whole vision-language module."""
    module = load_model(str(folders / "target"), dtype="float32").module
    found = []
    for prompt in prompts:
        pixels = pair.pixels(prompt)
        assert pixels is not None
        ids = torch.tensor([prompt.ids])
        out = module.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels.cpu(), max_new_tokens=GEN_LEN, do_sample=False
        )
        found.append(out[0, len(prompt.ids) :].tolist())
    return found


def request(pair: Target, prompts: PromptSet, index: int, temperature: float = 0.0) -> Request:
    prompt = prompts.prompts[index]
    return Request(prompt.ids, GEN_LEN, EOS, Sampling(temperature), pixels=pair.pixels(prompt))


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("draft", ["draft", "blind"])
def test_greedy_output_is_that_of_generate_and_drafts_are_accepted_sometimes(folders, draft, plan):
    pair, prompts = load(folders, draft)
    wanted = generated(folders, pair, prompts)
    accepted = offered = 0
    for index in range(len(prompts)):
        records = list(decode_speculative(pair.target, pair.draft, plan, request(pair, prompts, index)))
        assert [token for record in records for token in record.tokens] == wanted[index]
        accepted += sum(len(record.accepted or ()) for record in records)
        offered += plan.depth * (len(records) - 1)
    assert 0.1 < accepted / offered < 0.99


def test_the_target_alone_decodes_what_generate_does(folders):
    pair, prompts = load(folders, None)
    for index, wanted in enumerate(generated(folders, pair, prompts)):
        assert [t for r in decode_autoregressive(pair.target, request(pair, prompts, index)) for t in r.tokens] == wanted


def test_captions_depend_on_the_picture(folders):
    pair, prompts = load(folders, None)
    said = {tuple(t for r in decode_autoregressive(pair.target, request(pair, prompts, i)) for t in r.tokens) for i in range(8)}
    truth = {(*tuple(pair.tokenizer.encode(v.scene(i)[1])), 2) for i in range(8)}
    assert len(said) == len({v.scene(i)[1] for i in range(8)})
    assert len(said & truth) >= 4, "the target has learnt to see"


@pytest.mark.parametrize("rule", ["topk", "swor", "swr"])
@pytest.mark.parametrize("draft", ["draft", "blind"])
def test_nearly_greedy_sampling_decodes_the_same(folders, draft, rule):
    pair, prompts = load(folders, draft)
    wanted = generated(folders, pair, prompts)
    for index in range(4):
        cold = request(pair, prompts, index, 0.01)
        records = decode_speculative(
            pair.target, pair.draft, TREE, cold, prompt_generator(0, index, torch.device("cpu")), drafting=Drafting(rule, 1.0)
        )
        assert [t for r in records for t in r.tokens] == wanted[index]


def test_logits_of_a_prompt_are_those_of_the_whole_module(folders):
    pair, prompts = load(folders, "draft")
    module = load_model(str(folders / "target"), dtype="float32").module
    for prompt in prompts.prompts[:3]:
        pixels, ids = pair.pixels(prompt), torch.tensor(prompt.ids)
        with torch.inference_mode():
            wanted = module(input_ids=ids[None], pixel_values=pixels).logits[0]
        pair.target.allocate(64)
        assert torch.allclose(pair.target.prefill(ids, pixels, chunk=7), wanted[-1], atol=1e-5)
        assert torch.allclose(pair.target.score(ids[None], 3, pixels)[0], wanted[3:], atol=1e-5)
        assert not torch.allclose(pair.target.prefill(ids, torch.zeros_like(pixels)), wanted[-1], atol=1e-2)


def test_kernels_read_pictures_as_the_module_does(folders, device):
    module = load_model(str(folders / "target"), device=device, dtype="float32").module
    text, vision = text_module(module), Vision(module, "target")
    pixels = torch.randn(1, 3, v.SIDE, v.SIDE, generator=torch.Generator().manual_seed(0)).to(device)
    ids = torch.tensor([1, 4, *[v.IMAGE_TOKEN] * 16, 5, 6, 7], device=device)
    plain, fast = TreeModel(text, vision=vision, kernels=False), TreeModel(text, vision=vision, kernels=True)
    for model in (plain, fast):
        model.allocate(64)
    assert not fast.eager_reason
    for chunk in (8, 64):
        assert torch.allclose(plain.prefill(ids, pixels, chunk=chunk), fast.prefill(ids, pixels, chunk=chunk), atol=2e-4)


def test_a_text_only_draft_reads_the_words_and_nothing_else(folders):
    pair, prompts = load(folders, "blind")
    assert isinstance(pair.draft, TextDraft)
    module = load_model(str(folders / "blind"), dtype="float32").module
    ids = torch.tensor(prompts.prompts[0].ids)
    words = ids[ids != v.IMAGE_TOKEN]
    assert len(words) == len(ids) - 16
    with torch.inference_mode():
        wanted = module(input_ids=torch.cat([words, torch.tensor([8, 9])])[None]).logits[0]
    pair.draft.allocate(64)
    found = pair.draft.prefill(ids, pair.pixels(prompts.prompts[0]))
    assert torch.allclose(found[: v.IMAGE_TOKEN], wanted[-3], atol=1e-5)
    assert len(found) == v.IMAGE_TOKEN, "a token that it does not know is never drafted"
    rows = torch.arange(2)
    place = Placement(Prefix.of(len(ids), "cpu"), rows, rows, torch.tensor([[True, False], [True, True]]))
    assert torch.allclose(pair.draft.forward(torch.tensor([8, 9]), place)[:, : v.IMAGE_TOKEN], wanted[-2:], atol=1e-5)
    scored = pair.draft.score(torch.cat([ids, torch.tensor([8, 9])])[None], len(ids) - 1)[0]
    assert torch.allclose(scored[:, : v.IMAGE_TOKEN], wanted[-3:], atol=1e-5)
    unknown = pair.draft.forward(torch.tensor([v.IMAGE_TOKEN, 9]), place)
    assert torch.equal(unknown, pair.draft.forward(torch.tensor([2, 9]), place)), "it reads EOS where it does not know the token"


def test_profiled_acceptance_is_what_generate_and_the_drafts_own_ranking_say(folders):
    for name in ("draft", "blind"):
        pair, prompts = load(folders, name)
        profile = profile_acceptance(pair, prompts, AcceptanceSettings(gen_len=GEN_LEN, max_branch=4, batch_size=3))
        draft = load_model(str(folders / name), dtype="float32").module
        hits, positions = [0] * 4, 0
        for prompt, wanted in zip(prompts, generated(folders, pair, prompts), strict=True):
            ids, extra = [*prompt.ids, *wanted], {"pixel_values": pair.pixels(prompt)}
            if name == "blind":
                ids, extra = [i for i in ids if i != v.IMAGE_TOKEN], {}
            with torch.inference_mode():
                logits = draft(input_ids=torch.tensor([ids]), **extra).logits[0]
            for back in range(len(wanted) - 1, 0, -1):
                ranked = logits[-back - 1].topk(4).indices.tolist()
                positions += 1
                if wanted[-back] in ranked:
                    hits[ranked.index(wanted[-back])] += 1
        assert profile.positions == positions
        assert profile.rank_probability == pytest.approx([h / positions for h in hits], abs=1e-9)
        assert 0 < profile.rank_probability[0] < 1


def test_potential_ranks_drafts_that_see_and_drafts_that_do_not(folders):
    pair, prompts = load(folders, None)
    drafts = load_drafts(pair, [str(folders / name) for name in ("draft", "blind", "target")])
    report = measure_potential(pair, drafts, prompts, PotentialSettings(method="on-policy", gen_len=GEN_LEN))
    whole = [load_model(str(folders / name), dtype="float32").module for name in ("draft", "blind", "target")]
    sums, positions = [0.0] * 3, 0
    for prompt, wanted in zip(prompts, generated(folders, pair, prompts), strict=True):
        ids, pixels = torch.tensor([*prompt.ids, *wanted]), pair.pixels(prompt)
        with torch.inference_mode():
            rows = [
                module(
                    input_ids=(ids[ids != v.IMAGE_TOKEN] if name == "blind" else ids)[None],
                    **({} if name == "blind" else {"pixel_values": pixels}),
                )
                for module, name in zip(whole, ("draft", "blind", "target"), strict=True)
            ]
        logs = [row.logits[0, -len(wanted) : -1, : v.IMAGE_TOKEN].double().log_softmax(-1) for row in rows]
        positions += len(wanted) - 1
        for i in range(3):
            sums[i] += float((logs[2].exp() * (logs[2] - logs[i])).sum())
    found = {draft.draft.rpartition("/")[2]: sum(draft.sums["kl"]) for draft in report.drafts}
    assert sum(report.positions) == positions
    assert [found[name] for name in ("draft", "blind", "target")] == pytest.approx(sums, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_token_id": 5}, "the picture token is .* for target .*, but 5 for draft"),
        ({"vision_feature_select_strategy": "full"}, "a picture is 16 rows .* but 17 rows"),
    ],
)
def test_a_draft_that_sees_pictures_otherwise_is_refused(folders, tmp_path, changes, message):
    v.save(v.llava(5, layers=1, **changes), tmp_path / "other")
    with pytest.raises(ModelError, match=message):
        load_pair(str(folders / "target"), str(tmp_path / "other"))


def test_a_draft_that_sees_is_refused_for_a_target_that_does_not(folders):
    with pytest.raises(ModelError, match="sees pictures, but target .* reads text only"):
        load_pair(str(folders / "blind"), str(folders / "draft"))


def test_a_target_without_the_settings_of_its_pictures_is_named(folders, tmp_path):
    for path in (folders / "target").iterdir():
        if "processor" not in path.name:
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(ModelError, match="has no preprocessor_config.json, by which its pictures are read; copy it"):
        load_target(str(tmp_path))


def test_an_unknown_vision_tower_is_named():
    module = v.llava(1)
    module.config.vision_config.model_type = "telescope"
    with pytest.raises(ModelError, match="its vision tower is telescope"):
        tree_model(module, "far")


def test_pixels_and_picture_tokens_must_go_together(folders):
    pair, prompts = load(folders, "blind")
    pair.target.allocate(64)
    with pytest.raises(ModelError, match="0 picture tokens stand for 1 picture of"):
        pair.target.prefill(torch.tensor([4, 5, 6]), pair.pixels(prompts.prompts[0]))
    with pytest.raises(CapacityError, match="1 token besides its picture"):
        pair.draft.prefill(torch.tensor([4, *[v.IMAGE_TOKEN] * 16]))
    with pytest.raises(ModelError, match="reads text only"):
        TreeModel(load_model(str(folders / "blind")).module).embed(torch.tensor([[1, 2]]), torch.zeros(1, 3, v.SIDE, v.SIDE))


@pytest.mark.parametrize("draft", ["draft", "blind"])
def test_a_picture_token_that_the_target_writes_is_a_token_like_others(folders, draft):
    """Random targets write one now and then; profiling reads such texts as decoding does."""
    pair, prompts = load(folders, draft)
    prompt = prompts.prompts[0]
    ids, pixels = torch.tensor([*prompt.ids, 8, v.IMAGE_TOKEN, 9]), pair.pixels(prompt)
    for model in (pair.target, pair.draft):
        model.allocate(64)
        scored = model.score(ids[None], len(prompt.ids) - 1, pixels)[0]
        found = [model.prefill(ids[: len(prompt.ids)], pixels)]
        rows = torch.arange(3)
        place = Placement(Prefix.of(len(prompt.ids), "cpu"), rows, rows, rows <= rows[:, None])
        found += model.forward(ids[-3:], place)
        for one, other in zip(scored, found, strict=True):
            assert torch.allclose(one[: v.IMAGE_TOKEN], other[: v.IMAGE_TOKEN], atol=1e-5)


def test_a_text_only_draft_knows_no_more_tokens_than_it_has_logits(folders, tmp_path):
    module = load_model(str(folders / "blind"), dtype="float32").module
    module.resize_token_embeddings(20)
    v.save(module, tmp_path / "small")
    pair = load_pair(str(folders / "target"), str(tmp_path / "small"), dtype="float32")
    assert isinstance(pair.draft, TextDraft)
    assert pair.draft.vocabulary_size == 20
    pair.draft.allocate(16)
    assert pair.draft.prefill(torch.tensor([4, 5, 22, 24])).shape == (20,)


def test_positions_of_a_text_only_draft_count_words(folders):
    pair, prompts = load(folders, "blind")
    prompt = prompts.prompts[0].ids
    assert pair.target.positions_of(prompt) == len(prompt) == pair.draft.positions_of(prompt) + 16
    pair.draft.max_positions = pair.draft.positions_of(prompt) + GEN_LEN
    report = evaluate(pair, TREE, replace(prompts, prompts=prompts.prompts[:1]), EvaluationSettings(gen_len=GEN_LEN))
    assert report.lossless == "match"
    assert report.undrafted == 0
    pair.draft.max_positions -= 4
    report = evaluate(pair, TREE, replace(prompts, prompts=prompts.prompts[:1]), EvaluationSettings(gen_len=GEN_LEN))
    assert report.lossless == "match"
    assert 0 < report.undrafted < GEN_LEN


@pytest.mark.parametrize("draft", ["draft", "blind"])
def test_sampled_output_follows_the_targets_distribution(folders, draft):
    """The second token, whatever the first was, by the chi-square statistic."""
    pair, prompts = load(folders, draft)
    prompt = prompts.prompts[0]
    pixels, hot, count = pair.pixels(prompt), Sampling(1.5), 300
    first = torch.tensor([prompt.ids])
    with torch.inference_mode():
        start = pair.target.score(first, len(prompt.ids) - 1, pixels)[0, -1].double().div(1.5).softmax(-1)
    for rule in ("topk", "swor"):
        seen = torch.zeros_like(start)
        for index in range(count):
            stream = prompt_generator(index, 0, torch.device("cpu"))
            request = Request(prompt.ids, 3, frozenset(), hot, pixels=pixels)
            tokens = [
                t for r in decode_speculative(pair.target, pair.draft, TREE, request, stream, drafting=Drafting(rule)) for t in r.tokens
            ]
            seen[tokens[1]] += 1
        following = torch.zeros_like(start)
        for token in range(len(start)):
            ids = torch.tensor([[*prompt.ids, token]])
            following += start[token] * pair.target.score(ids, len(prompt.ids), pixels)[0, -1].double().div(1.5).softmax(-1)
        often = following * count > 5
        expected = torch.cat([following[often], following[~often].sum()[None]]) * count
        found = torch.cat([seen[often], seen[~often].sum()[None]])
        statistic, freedom = float(((found - expected) ** 2 / expected.clamp_min(1e-9)).sum()), len(expected) - 1
        assert chi2.sf(statistic, freedom) > 1e-3, (rule, statistic, freedom)


@pytest.mark.parametrize("draft", ["draft", "blind"])
def test_an_offloaded_target_sees_the_same(folders, draft):
    pair, prompts = load(folders, draft)
    streamed = tree_model(offload(load_model(str(folders / "target"), dtype="float32").module, "cpu"), "target")
    assert streamed.loaded.streamed == streamed_bytes(streamed.module) > 0
    for index in range(3):
        wanted = [r.tokens for r in decode_speculative(pair.target, pair.draft, TREE, request(pair, prompts, index))]
        assert [r.tokens for r in decode_speculative(streamed, pair.draft, TREE, request(pair, prompts, index))] == wanted


@pytest.mark.gpu
@pytest.mark.parametrize("draft", ["draft", "blind"])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_captured_steps_decode_what_generate_does(folders, draft, plan):
    pair, prompts = load(folders, draft, "cuda")
    engine = Engine(pair.target, pair.draft, notice=pytest.fail)
    for index, wanted in enumerate(generated(folders, pair, prompts)):
        records = decode_speculative(pair.target, pair.draft, plan, request(pair, prompts, index), engine=engine)
        assert [t for r in records for t in r.tokens] == wanted
