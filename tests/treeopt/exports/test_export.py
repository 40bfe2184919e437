"""Every export is parsed as its engine documents it, and holds the best numbers of the profiles."""

import argparse
import ast
import json
import re
import shlex
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import yaml

from tests.reference.pairs import tiny_pair
from treeopt.budget_making import make_budget
from treeopt.exports.budgets import seconds
from treeopt.exports.choosing import chain, dynamic, fixed
from treeopt.exports.engines import COUNTED, ENGINES, GUESSED, SCHEDULED, ranges
from treeopt.exports.export import HEAD, export
from treeopt.growmap_making import generate
from treeopt.optimizer.search import optimize
from treeopt.profiles.acceptance import AcceptanceProfile, read_acceptance
from treeopt.profiles.budget_grid import BudgetGrid
from treeopt.profiles.dynamic import DynamicAcceptance
from treeopt.profiles.latency import LatencyProfile, read_latency
from treeopt.profiles.rule_latency import RuleLatency, StepSample
from treeopt.profiles.samples import LatencySample
from treespec.decoding.chosen import ChosenBudget
from treespec.decoding.plans import DynamicBudget
from treespec.decoding.step_rule import StepRule
from treespec.errors import ProfileError, SettingsError
from treespec.files.provenance import Provenance
from treespec.trees.tree import SpeculationTree

P = (0.55, 0.18, 0.09, 0.04)
ACCEPTANCE = AcceptanceProfile("topk", 0.0, 1.0, P, 0.14, (0.01, 0.01, 0.005, 0.004), 4000, 40)
SIZES, WIDTHS = (1, 2, 4, 8, 16, 32), (1, 4, 16)


def times(engine="sglang", batch=1, samples=24, names=None):
    """Times of an engine: a pass costs a fixed part, and more the more tokens it reads in all."""

    def many(seconds):
        return tuple(seconds * (1 + 0.01 * np.sin(np.arange(samples))))

    return LatencyProfile(
        tuple(LatencySample(n, 256, many(0.010 + 0.0001 * batch * n)) for n in SIZES),
        tuple(LatencySample(w, 256, many(0.0006 + 0.00001 * batch * w)) for w in WIDTHS),
        many(0.0003),
        {"models": names} if names else None,
        engine=engine,
        batch=batch,
    )


OPTIONS = {
    "sglang": {
        "speculative-algorithm": ("EAGLE", "EAGLE3", "STANDALONE", "NGRAM", "DFLASH"),
        "speculative-draft-model-path": str,
        "speculative-num-steps": int,
        "speculative-eagle-topk": int,
        "speculative-num-draft-tokens": int,
        "page-size": int,
    },
    "vllm": {"speculative-config": json.loads},
    "llama.cpp": {"model-draft": str, "draft-max": int, "draft-min": int, "draft-p-min": float},
}
"""The options that engines document, with what parses their values."""


def options(engine, text):
    """The options of a command line as the engine reads them: anything that it does not know, or a value of another type, ends the test."""
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    for name, kind in OPTIONS[engine].items():
        parser.add_argument(f"--{name}", dest=name, **({"choices": kind} if isinstance(kind, tuple) else {"type": kind}))
    found, unknown = parser.parse_known_args(shlex.split(text.replace("\\\n", " ")))
    assert unknown == []
    return {name: value for name, value in vars(found).items() if value is not None}


def test_sglang_takes_three_numbers_and_a_page_size():
    found = export("sglang", ACCEPTANCE, [times(batch=1), times(batch=16)])
    assert [setting.batch for setting in found.settings] == [1, 16]
    for setting, (title, text) in zip(found.settings, found.pastes, strict=True):
        assert title.endswith(f"batch {setting.batch}")
        read = options("sglang", text)
        steps, topk, nodes = (read[f"speculative-{name}"] for name in ("num-steps", "eagle-topk", "num-draft-tokens"))
        assert (steps, topk, nodes) == (setting.depth, setting.width, setting.size)
        assert steps + 1 <= nodes <= 1 + steps * topk
        assert (topk > 1) == (read.get("page-size") == 1)
        assert topk > 1 or nodes == steps + 1
        assert read["speculative-algorithm"] == "STANDALONE", "the draft is a model of its own"
        assert read["speculative-draft-model-path"] == "DRAFT"
    small, large = found.settings
    assert large.size < small.size, "a larger batch has less to spare"


def test_tensorrt_llm_takes_yaml_within_its_limits():
    found = export("tensorrt-llm", ACCEPTANCE, [times("tensorrt-llm", batch) for batch in (8, 1)])
    *trees, (_, whole) = found.pastes
    for setting, (_, text) in zip(found.settings, trees, strict=True):
        read = yaml.safe_load(text)
        assert read.keys() == {"speculative_config"}
        config = read["speculative_config"]
        assert config["decoding_type"] == "Eagle3"
        assert config["speculative_model"] == "HEAD"
        assert config["use_dynamic_tree"] is True
        deep, total, topk = (config[key] for key in ("max_draft_len", "max_total_draft_tokens", "dynamic_tree_max_topK"))
        assert deep <= total <= topk * deep
        assert (deep, topk, total) == (setting.depth, setting.width, setting.size - 1)
    config = yaml.safe_load(whole)["speculative_config"]
    lengths = {batch: chain(ACCEPTANCE, times("tensorrt-llm", batch), None).depth for batch in (1, 8)}
    assert config["decoding_type"] == "DraftTarget"
    assert config["draft_len_schedule"] == lengths
    assert config["max_draft_len"] == max(lengths.values())
    assert found.lossy[-1] == SCHEDULED
    one = export("tensorrt-llm", ACCEPTANCE, [times("tensorrt-llm")])
    assert "draft_len_schedule" not in one.text
    assert one.lossy == found.lossy[:-1], "there is no schedule to speak of"


def test_vllm_takes_json_with_a_schedule_and_rates():
    batches = (1, 8, 64, 512)
    found = export("vllm", ACCEPTANCE, [times("vllm", batch) for batch in batches])
    (_, served), (_, tested) = found.pastes
    config = options("vllm", served)["speculative-config"]
    lengths = [setting.depth for setting in found.settings]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[-1] == 0
    assert config["method"] == "draft_model"
    assert config["num_speculative_tokens"] == lengths[0]
    spans = config["num_speculative_tokens_per_batch_size"]
    assert spans[0][0] == 1
    assert all(first <= last for first, last, _ in spans)
    assert all(after[0] == before[1] + 1 for before, after in pairwise(spans))
    at = {batch: next(length for first, last, length in spans if first <= batch <= last) for batch in batches}
    assert list(at.values()) == lengths
    load = options("vllm", tested)["speculative-config"]
    assert load["rejection_sample_method"] == "synthetic"
    rates = load["synthetic_acceptance_rates"]
    assert len(rates) == load["num_speculative_tokens"]
    assert rates == sorted(rates, reverse=True)
    assert rates == pytest.approx([P[0] ** (at + 1) for at in range(len(rates))], abs=1e-6)
    assert 1 + sum(rates) == pytest.approx(found.settings[0].tokens_per_step, abs=1e-4)


def test_llama_cpp_takes_the_length_of_a_chain():
    found = export("llama.cpp", ACCEPTANCE, times("llama.cpp"))
    read = options("llama.cpp", found.pastes[0][1])
    best = optimize(ACCEPTANCE, latency=times("llama.cpp"), max_branch=1)
    assert best.tree == SpeculationTree.chain(best.tree.depth)
    assert read["draft-max"] == read["draft-min"] == best.tree.depth == found.settings[0].depth
    assert found.settings[0].speedup == pytest.approx(best.predicted_speedup)


@pytest.mark.parametrize(("draft", "file"), [("folder/draft", "draft.gguf"), ("files/a draft.GGUF", "files/a draft.GGUF")])
def test_llama_cpp_is_given_a_gguf_file(draft, file):
    named = replace(ACCEPTANCE, provenance={"models": {"draft": draft, "target": "big"}})
    ((title, text),) = export("llama.cpp", named, times("llama.cpp", names={"draft": draft, "target": "big"})).pastes
    assert options("llama.cpp", text)["model-draft"] == file
    assert ("where draft.gguf is folder/draft as a GGUF file" in title) == (file != draft)


def test_transformers_takes_python_that_holds_the_best_tree():
    found = export("transformers", ACCEPTANCE, times("treeopt"))
    code = found.pastes[0][1]
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    keywords = {keyword.arg for call in calls for keyword in call.keywords}
    assert {"custom_generate", "draft", "growmap"} <= keywords
    scope: dict = {}
    exec(code.partition("output =")[0], scope)
    best = generate(ACCEPTANCE, latency=times("treeopt"))
    assert scope["growmap"].tree == best.growmap.tree
    assert found.settings[0].intervals == best.result.certainty.intervals
    assert found.notes == ()


@torch.inference_mode()
def test_the_python_for_transformers_runs_as_it_stands_and_gives_the_models_own_text():
    pair = tiny_pair()
    scope = {
        "model": pair.target.module,
        "draft": pair.draft.module,
        "inputs": {"input_ids": torch.tensor([[5, 6, 7]]), "max_new_tokens": 9},
    }
    exec(export("transformers", ACCEPTANCE, times("treeopt")).pastes[0][1], scope)
    assert scope["output"].tolist() == scope["model"].generate(**scope["inputs"]).tolist()


@pytest.mark.parametrize("engine", ["sglang", "tensorrt-llm"])
def test_a_budget_of_width_1_is_a_chain(engine):
    """With a top-k of 1 SGLang wants steps + 1 tokens and no page size, and TensorRT-LLM no dynamic tree."""
    sure = AcceptanceProfile("topk", 0.0, 1.0, (0.9,), 0.1, (), 100, 2)
    found = export(engine, sure, times(engine))
    (setting,) = found.settings
    assert setting.width == 1
    assert setting.size == setting.depth + 1 > 2
    if engine == "sglang":
        read = options("sglang", found.pastes[0][1])
        assert "page-size" not in read
        assert read["speculative-num-draft-tokens"] == read["speculative-num-steps"] + 1 == setting.size
    else:
        config = yaml.safe_load(found.pastes[0][1])["speculative_config"]
        assert config == {"decoding_type": "Eagle3", "max_draft_len": setting.depth, "speculative_model": "HEAD"}


@pytest.mark.parametrize("to", ENGINES)
def test_where_speculation_does_not_pay_nothing_is_to_be_set(to):
    useless = AcceptanceProfile("topk", 0.0, 1.0, (0.001,), 0.999, (), 100, 2)
    found = export(to, useless, times("treeopt"))
    assert [setting.size for setting in found.settings] == [1]
    assert all(text.startswith("# speculation does not pay") and "\n" not in text for _, text in found.pastes)
    assert found.settings[0].speedup == 1.0


def test_what_is_expected_comes_with_intervals_where_the_profiles_have_them():
    for choose in (chain, dynamic, fixed):
        setting = choose(ACCEPTANCE, times(), None)
        for name, (low, high) in setting.intervals.items():
            assert low < setting.to_json()[name] < high
        assert len(setting.intervals) == 3
        assert choose(ACCEPTANCE, times(samples=3), None).intervals.keys() == {"expected_tokens_per_step"}


def test_a_dynamic_budget_gives_no_more_than_the_best_fixed_tree_and_no_less_than_the_best_chain():
    per_token = {kind: choose(ACCEPTANCE, times(), None) for kind, choose in (("chain", chain), ("dynamic", dynamic), ("fixed", fixed))}
    cost = {kind: setting.seconds_per_step / setting.tokens_per_step for kind, setting in per_token.items()}
    assert cost["dynamic"] <= cost["chain"] * (1 + 1e-12)
    assert cost["fixed"] < cost["chain"]


def test_times_of_treeopt_are_taken_and_said_to_be_none_of_the_engines():
    found = export("sglang", ACCEPTANCE, times("treeopt"))
    assert any("the times are those of treeopt with one sequence, and not those of sglang" in note for note in found.notes)
    assert not any("the times are" in note for note in export("sglang", ACCEPTANCE, times()).notes)
    assert found.text.startswith(HEAD + "sglang")
    for title, text in found.pastes:
        assert f"# {title}\n{text}\n" in found.text


@pytest.mark.parametrize(
    ("to", "latencies", "batch", "error", "words"),
    [
        ("sglang", [times("vllm")], None, ProfileError, "was measured in vllm, but the numbers are for sglang; pass times of sglang"),
        ("sglang", [times(), times(batch=4)], (1, 8), SettingsError, "`batch` 8 was not measured, only 1 and 4: each needs"),
        ("sglang", [times(), times()], None, ProfileError, "is of batch size 1, and so is another one"),
        ("sglang", [times("treeopt"), times(batch=4)], None, ProfileError, "pass times of one engine"),
        ("transformers", [times("treeopt")], (4,), SettingsError, "decodes the prompts of a batch one by one"),
        ("sglang", [], None, SettingsError, "`latency` names no profile"),
        ("mlc", [times()], None, SettingsError, "`to` is 'mlc', but it must be one of sglang"),
        ("sglang", [times()], (), SettingsError, "`batch` names no batch size"),
        ("sglang", [times()], 1, SettingsError, "`batch` is 1, but it must be a list of batch sizes, such as [1, 8]"),
        ("sglang", [times()], (0,), SettingsError, "`batch` is 0, but it must be 1 or more"),
        ("sglang", [times()], (1.0,), SettingsError, "`batch` is 1.0, but it must be a whole number"),
    ],
)
def test_what_does_not_go_together_is_one_line(to, latencies, batch, error, words):
    with pytest.raises(error) as caught:
        export(to, ACCEPTANCE, latencies, batch=batch)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def tuned(folder, draft, kind=None):
    """The profiles of a draft as files, and the growmap that was made of them, which promises less by replay than the chances expect."""
    folder.mkdir(parents=True, exist_ok=True)
    models = {"target": "t", "draft": draft}
    replace(ACCEPTANCE, provenance=Provenance(models=models, draft_kind=kind).to_json()).write(folder / "acceptance.json")
    times("treeopt", names=models).write(folder / "latency.json")
    grown = generate(folder / "acceptance.json", latency=folder / "latency.json").growmap
    ends = {"expected_tokens_per_step": [1.8, 2.2]}
    promise = {"expected_tokens_per_step": 2.0, "predicted_speedup": 1.25, "intervals_95": ends, "acceptance_model": {"chosen": "by-rank"}}
    replace(grown, metadata={**grown.metadata, **promise}).write(folder / "tree.pt")
    return folder / "acceptance.json", folder / "latency.json"


def test_a_growmap_of_the_same_tree_beside_the_profiles_gives_its_promise_by_replay(tmp_path):
    acceptance, latency = tuned(tmp_path, "me/small")
    (alone,) = export("transformers", read_acceptance(acceptance), latency).settings
    found = export("transformers", acceptance, latency)
    (setting,) = found.settings
    assert (setting.tree, setting.seconds_per_step) == (alone.tree, alone.seconds_per_step)
    assert (setting.tokens_per_step, setting.speedup, setting.intervals) == (2.0, 1.25, {"expected_tokens_per_step": [1.8, 2.2]})
    assert alone.tokens_per_step > 2.1
    said = (
        f"{tmp_path / 'tree.json'} was made of these profiles and has this tree: promised are the tokens per step that trees of by-rank gave when "
        f"replayed on prompts held out; of its tree for all prompts, the chances alone expect {alone.tokens_per_step:.3f}"
    )
    assert found.notes[0] == said
    assert export("vllm", acceptance, latency).settings[0].tokens_per_step == chain(ACCEPTANCE, times("treeopt"), None).tokens_per_step
    latency.write_text(latency.read_text() + "\n")
    assert export("transformers", acceptance, latency).settings[0] == alone, "the growmap is of another file"


@torch.inference_mode()
@pytest.mark.parametrize(("draft", "given"), [("ngram", {}), ("me/small+ngram", {"draft": True})])
def test_ngrams_run_in_transformers(tmp_path, draft, given):
    pair = tiny_pair()
    inputs = {"input_ids": torch.tensor([[5, 6, 7]]), "max_new_tokens": 9}
    scope = {"model": pair.target.module, "inputs": inputs} | ({"draft": pair.draft.module} if given else {})
    ((_, code),) = export("transformers", *tuned(tmp_path, draft, "ngram")).pastes
    assert ("ngrams=True" in code) == bool(given)
    exec(code, scope)
    assert scope["output"].tolist() == scope["model"].generate(**inputs).tolist()


def test_a_draft_that_an_engine_lacks_is_refused_with_the_profiles_of_a_tuning_runs_other_drafts(tmp_path):
    acceptance, latency = tuned(tmp_path, "ngram", "ngram")
    refused = "the profile is of treeopt's own n-grams (ngram), which vllm does not have; pass one of a draft model"
    with pytest.raises(ProfileError) as caught:
        export("vllm", acceptance, latency)
    assert str(caught.value) == refused
    for number, draft, kind in ((1, "ngram", "ngram"), (2, "me/small", None), (3, "me/head", "eagle3")):
        own = tmp_path / f"candidates/{number}/topk-t0"
        _, times_of = tuned(own, draft, kind)
        times_of.rename(own.parent / "latency.json")
    where = tmp_path / "candidates"
    one, other = (f"{where / n / 'topk-t0/acceptance.json'} with {where / n / 'latency.json'}" for n in "23")
    for engine, named in (("vllm", f"{one} (of me/small) and {other} (of me/head)"), ("llama.cpp", f"{one} (of me/small)")):
        with pytest.raises(ProfileError) as caught:
            export(engine, acceptance, latency)
        assert str(caught.value) == f"{refused.replace('vllm', engine)}, such as {named}"
    corpus, same = tuned(tmp_path, "ngram+3f21c0a97be4", "ngram")
    with pytest.raises(
        ProfileError, match="counted in a corpus too .* but `tree_generate` counts them in the text alone; pass a profile without"
    ):
        export("transformers", corpus, same)


@pytest.mark.parametrize("context", [-1, 64.0, "64", True])
def test_a_context_is_a_whole_number_wherever_times_are_taken(context):
    for take in (
        lambda: export("sglang", ACCEPTANCE, times(), context=context),
        lambda: generate(ACCEPTANCE, latency=times("treeopt"), context=context),
    ):
        with pytest.raises(SettingsError, match=f"^`context` is {context!r}, but it must be "):
            take()


def test_times_must_reach_the_context_and_hold_a_step_without_speculation(tmp_path):
    with pytest.raises(ProfileError) as caught:
        export("vllm", ACCEPTANCE, times("vllm"), context=4096)
    beyond = "in the latency profile the target was not measured at context 4096 or beyond, only at 256; profile it there, or ask for at most 256"
    assert str(caught.value) == beyond, "an export cannot extrapolate"
    times("vllm").write(tmp_path / "l1.json")
    with pytest.raises(ProfileError, match=f"^in {tmp_path / 'l1.json'} the target was not measured at context 4096"):
        export("vllm", ACCEPTANCE, tmp_path / "l1.json", context=4096)
    for what, field in (("target size 2", "target"), ("draft width 4", "draft")):
        lacking = replace(times("vllm", 16), **{field: getattr(times("vllm", 16), field)[1:]})
        with pytest.raises(ProfileError, match=f"of batch size 16 begins at {what} at context 256, but .* 1 must be there; measure it too"):
            export("vllm", ACCEPTANCE, lacking)
        lacking.write(tmp_path / "l16.json")
        with pytest.raises(ProfileError) as caught:
            export("vllm", ACCEPTANCE, [times("vllm"), tmp_path / "l16.json"])
        assert str(caught.value).startswith(f"{tmp_path / 'l16.json'} of batch size 16 begins at {what} at context 256")


def test_a_busy_machine_and_what_cannot_be_told_are_said():
    calm = export("vllm", ACCEPTANCE, times("vllm"))
    assert not any("cannot tell" in note for note in calm.notes)
    shaken = tuple(np.repeat(0.004 + 0.0025 * np.arange(6), 4))
    busy = replace(times("vllm", 16), target=tuple(replace(sample, seconds=shaken) for sample in times().target))
    notes = export("vllm", ACCEPTANCE, [times("vllm"), busy], context=100).notes
    said = [note for note in notes if note.startswith("batch size 16: the latency profile was taken while the machine did other work")]
    assert len(said) == 1
    assert any("cannot tell whether speculation is faster than plain decoding at batch size 16: the interval" in note for note in notes)
    assert not any("at batch size 1:" in note for note in notes)
    assert "batch size 1: the latency was not profiled at context 100: the times at 256, the next larger one, are taken" in notes


def test_profiles_of_other_models_are_refused_and_the_draft_is_named():
    named = AcceptanceProfile(
        "topk", 0.0, 1.0, P, 0.1, (), 100, 2, provenance={"models": {"draft": "me/small draft@abc", "target": "me/big"}}
    )
    with pytest.raises(ProfileError, match="pass profiles of the same models"):
        export("sglang", named, times(names={"draft": "other", "target": "big"}))
    read = options("sglang", export("sglang", named, times()).pastes[0][1])
    assert read["speculative-draft-model-path"] == "me/small draft"


def test_batch_sizes_between_two_take_the_larger_ones_length():
    settings = export("vllm", ACCEPTANCE, [times("vllm", batch) for batch in (2, 4, 64)]).settings
    lengths = [setting.depth for setting in settings]
    found = ranges(settings)
    assert [next(length for first, last, length in found if first <= batch <= last) for batch in (1, 2, 3, 4, 5, 64)] == [
        lengths[0],
        lengths[0],
        lengths[1],
        lengths[1],
        lengths[2],
        lengths[2],
    ]


def test_the_file_keeps_the_engine_and_the_batch_size(tmp_path):
    times("vllm", 4).write(tmp_path / "l.json")
    found = read_latency(tmp_path / "l.json")
    assert (found.engine, found.batch) == ("vllm", 4)
    assert found == times("vllm", 4)
    assert "measured in vllm with 4 sequences per pass" in str(found)
    with pytest.raises(
        ProfileError, match=re.escape("was measured in vllm, but a growmap runs in treeopt; pass one of `treeopt profile latency`")
    ):
        generate(ACCEPTANCE, latency=tmp_path / "l.json")
    with pytest.raises(ProfileError, match="batch is 2, but treeopt decodes one"):
        times("treeopt", 2)
    with pytest.raises(ProfileError, match="batch is 0, but it counts sequences"):
        times("vllm", 0)


def counted(steps=None):
    """A profile whose dynamic trees took so many steps for 4000 tokens of each of two prompts; budgets that are not named took one for each token."""
    grid = BudgetGrid((2, 4), 3, 9)
    found = np.where(grid.met[..., None], 4000, 0).repeat(2, axis=-1).astype(np.uint32)
    for (size, depth, width), each in (steps or {}).items():
        found[grid.widths.index(width), depth - 1, size - 1] = each
    return replace(ACCEPTANCE, dynamic=DynamicAcceptance(grid, (4000, 4000), found))


@pytest.mark.parametrize("engine", ["sglang", "tensorrt-llm"])
def test_counted_steps_decide_where_there_are_any(engine):
    """The best budget is the one that was counted, though the chances of ranks say another one."""
    profile = counted({(5, 2, 4): (1600, 1500), (9, 3, 4): (1590, 1500), (9, 3, 2): (4000, 4000)} | {(4, 2, 2): (2500, 2500)})
    guessed, found = (export(engine, one, times(engine)) for one in (ACCEPTANCE, profile))
    (setting,) = found.settings
    assert (setting.size, setting.depth, setting.width) == (5, 2, 4)
    assert setting.tokens_per_step == pytest.approx(8000 / 3100)
    assert setting.to_json()["counted"] is True
    model = times(engine).at_context(None)
    assert setting.seconds_per_step == pytest.approx(seconds(model, 5, 2, 4))
    assert setting.speedup == pytest.approx(model.autoregressive_seconds() * setting.tokens_per_step / setting.seconds_per_step)
    for name, (low, high) in setting.intervals.items():
        assert low < setting.to_json()[name] < high
    assert len(setting.intervals) == 3
    assert guessed.settings[0].size > 9
    assert not guessed.settings[0].counted
    assert found.lossy == (COUNTED, *guessed.lossy[1:])
    assert guessed.lossy[0] == GUESSED


def test_counted_steps_that_do_not_pay_leave_speculation_out():
    found = export("sglang", counted(), times())
    assert [(setting.size, setting.speedup) for setting in found.settings] == [(1, 1.0)]
    assert found.pastes[0][1].startswith("# speculation does not pay")


def test_times_of_dynamic_trees_are_taken_where_the_steps_are_treeopts():
    """The export has the very budget and promise of `grow --dynamic`."""
    own = times("treeopt")
    rule = StepRule("dynamic")
    steps = tuple(
        StepSample(DynamicBudget(*limits), 256, (0.0112 + 0.0001 * limits[0],))
        for limits in ((2, 1, 2), (4, 3, 2), (8, 2, 4), (8, 4, 2), (8, 1, 8))
    )
    held = RuleLatency(rule, own.draft, own.draft, (0.0002,), steps)
    both = replace(own, rules=(RuleLatency(StepRule()), held))
    profile = counted({(5, 2, 4): (1600, 1500), (9, 3, 4): (1590, 1500)})
    (setting,) = export("sglang", profile, both).settings
    made = make_budget(profile, both)
    assert (setting.size, setting.depth, setting.width) == (made.chosen.plan.size, made.chosen.plan.depth, made.chosen.plan.width)
    assert setting.seconds_per_step == made.choice.best.predicted_seconds_per_step
    again = export("sglang", budget=made.chosen)
    assert again.settings[0].to_json() == setting.to_json()
    head = make_budget(replace(profile, provenance=of_draft("eagle3").provenance), both).chosen
    assert "--speculative-algorithm EAGLE3" in export("sglang", budget=head).text, "the budget says what it is of"
    assert again.lossy == export("sglang", profile, both).lossy


def chosen(speedup=1.4, **more):
    promise = {"expected_tokens_per_step": 2.8, "predicted_seconds_per_step": 0.02, "predicted_speedup": speedup}
    known = {"intervals_95": {"expected_tokens_per_step": [2.5, 3.1]}, "drafting": "topk", "temperature": 0.0}
    record = Provenance.collect(models={"target": "me/big", "draft": "me/small@abc"})
    return ChosenBudget(DynamicBudget(12, 4, 6), promise | known | more, record)


def test_a_chosen_budget_is_exported_with_its_promise(tmp_path):
    chosen().write(tmp_path / "budget.json")
    for budget in (chosen(), tmp_path / "budget.json"):
        found = export("sglang", budget=budget)
        read = options("sglang", found.pastes[0][1])
        assert [read[f"speculative-{name}"] for name in ("num-steps", "eagle-topk", "num-draft-tokens")] == [4, 6, 12]
        assert read["speculative-draft-model-path"] == "me/small"
        (setting,) = found.settings
        assert (setting.batch, setting.tokens_per_step, setting.seconds_per_step, setting.speedup) == (1, 2.8, 0.02, 1.4)
        assert setting.intervals == {"expected_tokens_per_step": [2.5, 3.1]}
        assert any("the times are those of treeopt" in note for note in found.notes)
        assert "2.800" in str(found)
    config = yaml.safe_load(export("tensorrt-llm", budget=chosen()).pastes[0][1])["speculative_config"]
    limits = [config[key] for key in ("max_draft_len", "max_total_draft_tokens", "dynamic_tree_max_topK")]
    assert limits == [4, 11, 6]
    assert len(export("tensorrt-llm", budget=chosen()).pastes) == 1, "nothing is known of chains"
    slow = export("sglang", budget=chosen(0.9))
    assert [(setting.size, setting.speedup) for setting in slow.settings] == [(1, 1.0)]
    assert slow.settings[0].seconds_per_step == pytest.approx(0.9 * 0.02 / 2.8)


@pytest.mark.parametrize(
    ("to", "given", "error", "words"),
    [
        (
            "vllm",
            {"budget": chosen()},
            SettingsError,
            "`budget` is of dynamic trees, but vllm takes a chain; pass `acceptance` and `latency`, or `to` sglang or t",
        ),
        ("transformers", {"budget": chosen()}, SettingsError, "but transformers takes a fixed tree"),
        (
            "sglang",
            {"budget": chosen(), "acceptance": ACCEPTANCE},
            SettingsError,
            "`budget` stands in the place of profiles; pass it alone",
        ),
        ("sglang", {"budget": chosen(), "latency": [times()]}, SettingsError, "`budget` stands in the place of profiles; pass it alone"),
        ("sglang", {"budget": chosen(), "batch": (1, 8)}, SettingsError, "`batch` 8 was not measured, only 1"),
        (
            "sglang",
            {"budget": ChosenBudget(DynamicBudget(4, 2, 2))},
            ProfileError,
            "the budget does not say its tokens and seconds per step",
        ),
        ("sglang", {}, SettingsError, "pass `acceptance` and `latency`, or a `budget`"),
        ("sglang", {"latency": [times()]}, SettingsError, "pass `acceptance` and `latency`, or a `budget`"),
    ],
)
def test_what_does_not_go_with_a_budget_is_one_line(to, given, error, words):
    with pytest.raises(error) as caught:
        export(to, **given)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def of_draft(kind):
    """The acceptance profile of a draft of this kind."""
    return replace(ACCEPTANCE, provenance=Provenance(models={"target": "t", "draft": "me/head"}, draft_kind=kind).to_json())


@pytest.mark.parametrize(("kind", "algorithm"), [("eagle3", "EAGLE3"), ("eagle", "EAGLE"), ("dflash", "DFLASH"), (None, "STANDALONE")])
def test_sglang_is_told_the_kind_of_the_draft(kind, algorithm):
    found = export("sglang", of_draft(kind), [times()])
    read = options("sglang", found.pastes[0][1])
    assert (read["speculative-algorithm"], read["speculative-draft-model-path"]) == (algorithm, "me/head")
    (setting,) = found.settings
    assert read["speculative-num-draft-tokens"] == setting.size
    if kind == "dflash":
        assert (setting.width, setting.size) == (1, setting.depth + 1)
        assert setting.depth > chain(ACCEPTANCE, times(), None).depth, "all of its levels take one pass"
        assert found.kind == "chain"
        assert "speculative-eagle-topk" not in read, "blocks are verified as chains"
        assert found.lossy[0].startswith("the tree is not used: a DFlash draft's block is verified as a chain")


@pytest.mark.parametrize(
    ("kind", "decoding"),
    [("eagle3", ["Eagle3"]), ("dflash", ["DFlash"]), (None, ["Eagle3", "DraftTarget"])],
    ids=["eagle3", "dflash", "model"],
)
def test_tensorrt_llm_is_told_the_kind_of_the_draft(kind, decoding):
    found = export("tensorrt-llm", of_draft(kind), [times("tensorrt-llm")])
    configs = [yaml.safe_load(text)["speculative_config"] for _, text in found.pastes]
    assert [config["decoding_type"] for config in configs] == decoding
    assert [config["speculative_model"] for config in configs] == [
        "HEAD" if kind is None and what == "Eagle3" else "me/head" for what in decoding
    ], "a whole model is no head"
    assert configs[-1]["max_draft_len"] == found.settings[0].depth or kind is None


@pytest.mark.parametrize("kind", ["eagle3", "eagle", "medusa", "dflash"])
def test_vllm_is_told_the_kind_of_the_draft(kind):
    found = export("vllm", of_draft(kind), [times("vllm")])
    for _, text in found.pastes:
        config = options("vllm", text)["speculative-config"]
        assert (config["method"], config["model"]) == (kind, "me/head")


@pytest.mark.parametrize(
    ("engine", "kind", "have"),
    [
        ("sglang", "medusa", "a model of its own, an EAGLE head, an EAGLE-3 head and a DFlash draft"),
        ("tensorrt-llm", "eagle", "a model of its own, an EAGLE-3 head and a DFlash draft"),
        ("llama.cpp", "eagle3", "a model of its own"),
        ("transformers", "dflash", "a model of its own"),
    ],
)
def test_a_draft_that_an_engine_does_not_have_is_refused(engine, kind, have):
    with pytest.raises(
        ProfileError, match=rf"the profile is of .* \(me/head\), but exports to {engine} are for {have}; pass a profile of such"
    ):
        export(engine, of_draft(kind), [times("treeopt" if engine == "transformers" else engine)])


def test_a_budget_of_a_block_is_no_chain():
    budget = ChosenBudget(DynamicBudget(8, 3, 4), {}, Provenance(models={"draft": "me/head"}, draft_kind="dflash"))
    with pytest.raises(ProfileError, match="`budget` is of a DFlash draft, whose blocks sglang verifies as chains"):
        export("sglang", budget=budget)


@pytest.mark.parametrize(("engine", "kind"), [("sglang", "dflash"), ("vllm", "medusa")])
def test_a_draft_that_proposes_all_levels_at_once_takes_one_pass(engine, kind):
    """By hand: the target takes 10 ms and more, a pass of the draft 6 ms, so a level more is nearly free or never pays."""
    slow = replace(times(engine), draft=tuple(LatencySample(w, 256, (0.006,) * 24) for w in WIDTHS))
    (once,) = export(engine, of_draft(kind), [slow]).settings
    (each,) = export(engine, of_draft("eagle3"), [slow]).settings
    assert once.depth > each.depth
    one = replace(slow, rules=(RuleLatency(StepRule(), below=(LatencySample(1, 256, (1e-12,) * 24),)),))
    assert once == chain(ACCEPTANCE, one, None)
    assert once.seconds_per_step == pytest.approx(0.010 + 0.006 + 0.0003, rel=0.2)
