"""The functions of `import treeopt`: objects or files in, objects out, the figures of the command line."""

import ast
import inspect
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

import treeopt
from tests.reference.ranked import in_turns, ranked
from treeopt.profiles.acceptance import AcceptanceProfile
from treeopt.profiling.settings import LatencySettings
from treespec.decoding.drafting import Drafting
from treespec.decoding.rules import Sampling
from treespec.decoding.step_rule import StepRule
from treespec.errors import DatasetError, GrowMapError, MissingRuleError, OutputError, ProfileError, SettingsError, TreeoptError
from treespec.models.locating import folder_of
from treespec.trees.library import folder as folder_of_growmaps


@pytest.fixture(scope="module")
def pair() -> Any:
    return treeopt.load_pair("embedded-target", "embedded-draft")


@pytest.fixture(scope="module")
def profiles(pair: Any) -> Any:
    tuning = treeopt.load_prompts("stdlib", pair, num_prompts=4, prompt_len=32)
    acceptance = treeopt.profile_acceptance(pair, tuning, gen_len=16, max_branch=4)
    return acceptance, treeopt.profile_latency(pair, sizes=[1, 2, 4, 8], widths=[1, 2, 4], contexts=[48], repetitions=4)


def test_the_public_names_are_those_that_type_checkers_see() -> None:
    tree = ast.parse(inspect.getsource(treeopt))
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname or alias.name for node in checked.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == set(treeopt.__all__) == set(treeopt._HOME)
    assert set(treeopt.__all__) <= set(dir(treeopt))
    assert all(getattr(treeopt, name) is not None for name in treeopt.__all__)
    with pytest.raises(AttributeError, match="no attribute 'tree'"):
        _ = treeopt.tree


def test_the_import_alone_loads_nothing_heavy() -> None:
    code = "import sys, treeopt; dir(treeopt); print([name for name in ('torch', 'transformers', 'numpy', 'click') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_loop_takes_objects_and_files_alike(pair: Any, profiles: Any, tmp_path: Path) -> None:
    acceptance, latency = profiles
    acceptance.write(tmp_path / "acceptance.json")
    latency.write(tmp_path / "latency.json")
    grown = treeopt.grow(acceptance, latency, max_size=8)
    of_files = treeopt.grow(tmp_path / "acceptance.json", str(tmp_path / "latency.json"), max_size=8)
    assert (of_files.tree, of_files.metadata) == (grown.tree, grown.metadata), "the digests of the profiles among them"
    assert grown.promise.tokens_per_step == grown.metadata["expected_tokens_per_step"]
    grown.write(tmp_path / "tree.pt")
    tuning, held_out = treeopt.load_prompts("stdlib", pair, num_prompts=5, prompt_len=32).split(4)
    assert [len(tuning), len(held_out)] == [4, 1]
    assert tuning.end == held_out.start == held_out.prompts[0].row
    of_object, of_file = (treeopt.evaluate(pair, plan, held_out, gen_len=8, save_tokens=True) for plan in (grown, tmp_path / "tree.pt"))
    assert of_object.lossless == "match"
    assert [r.output for r in of_object.results] == [r.output for r in of_file.results]
    assert of_object.predicted == of_file.predicted
    assert of_object.predicted.tokens_per_step == grown.promise.tokens_per_step


@pytest.mark.parametrize("plan", [treeopt.SpeculationTree.k_ary(2, 2), treeopt.DynamicBudget.of(4, 2), "68m_7b-16", None], ids=str)
def test_every_kind_of_plan_is_evaluated(pair: Any, plan: Any, caplog: pytest.LogCaptureFixture) -> None:
    report = treeopt.evaluate(pair, plan, [[5, 6, 7]], gen_len=8)
    assert report.lossless == ("not-applicable" if plan is None else "match")
    assert ("was made for the target meta-llama" in caplog.text) == (plan == "68m_7b-16")


def test_a_trace_is_written_beside_the_profile_and_replayed(pair: Any, tmp_path: Path) -> None:
    given = treeopt.load_prompts("stdlib", pair, num_prompts=3, prompt_len=16)
    tree, path = treeopt.SpeculationTree.k_ary(2, 3), tmp_path / "trace.json"
    profile = treeopt.profile_acceptance(pair, given, gen_len=12, max_branch=4, trace=path)
    report = treeopt.evaluate(pair, tree, given, gen_len=12)
    (found,) = treeopt.replay(tree, path, profile).trees
    assert found.replay.steps.tolist() == [result.steps for result in report.results]
    p = sum(profile.rank_probability[:2])
    assert found.predicted == pytest.approx(1 + p + p**2 + p**3)
    for options in ({"method": "teacher-forced"}, {"drafting": "swr"}):
        with pytest.raises(SettingsError, match="leave `trace` out"):
            treeopt.profile_acceptance(pair, given, trace=path, **options)
    profile.write(tmp_path / "acceptance.json")
    with pytest.raises(OutputError, match="would be overwritten but is no treeopt.trace file"):
        treeopt.profile_acceptance(pair, given, trace=tmp_path / "acceptance.json")


def test_a_trace_tells_which_acceptance_model_finds_the_faster_tree(
    profiles: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    trace = ranked([in_turns(rng, 12) for _ in range(30)])
    trace.write(tmp_path / "trace.json")
    grown = treeopt.grow(trace=trace, size=12, depth=4)
    of_file = treeopt.grow(trace=tmp_path / "trace.json", size=12, depth=4)
    assert (of_file.tree, of_file.metadata["acceptance_model"]) == (grown.tree, grown.metadata["acceptance_model"])
    assert grown.metadata["acceptance_model"]["chosen"] in ("by-depth", "replay")
    assert "the acceptance model" in caplog.text
    assert treeopt.replay(grown, trace).trees[0].replay.tokens_per_step.mean == pytest.approx(5)
    told: list[tuple[str, int, int]] = []
    treeopt.grow(trace=trace, size=12, depth=4, progress=lambda *one: told.append(one))
    assert told == [("cross-validating", done, 6) for done in range(7)]
    vector = AcceptanceProfile("unknown", None, None, (0.6, 0.2), 0.1, (), 0, 0)  # taken for one of the trace's rule
    assert treeopt.grow(vector, trace=trace, size=8, depth=6).metadata["drafting"] == "topk"
    with pytest.raises(SettingsError, match="`trace` is of one drafting rule"):
        treeopt.grow([profiles[0], profiles[0]], profiles[1], trace=trace)
    with pytest.raises(SettingsError, match="leave one of the two out"):
        treeopt.grow(None, profiles[1], trace=trace, objective=lambda tokens, seconds: seconds)
    with pytest.raises(SettingsError, match="`trace` is 3, but it must be a Trace or the path of its file"):
        treeopt.grow(trace=3, size=4, depth=2)  # type: ignore[arg-type]


def test_settings_are_those_of_the_command_line(pair: Any) -> None:
    given = treeopt.prompts(["def f(x):\n"], pair)
    tree = treeopt.SpeculationTree.k_ary(2, 2)
    report = treeopt.evaluate(
        pair, tree, given, gen_len=8, temperature=0.7, top_p=0.9, drafting=treeopt.Drafting("swor", verifier="traversal")
    )
    assert {key: report.settings[key] for key in ("temperature", "top_p", "drafting", "verifier", "gen_len")} == {
        "temperature": 0.7,
        "top_p": 0.9,
        "drafting": "swor",
        "verifier": "traversal",
        "gen_len": 8,
    }
    with pytest.raises(SettingsError, match="`temperature`"):
        treeopt.evaluate(pair, tree, given, temperature=-1)


def test_trees_are_converted_from_objects_files_names_and_lists(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    growmap = treeopt.read_growmap(folder_of_growmaps() / "68m_7b-16.pt")
    for given in (growmap, growmap.tree, "68m_7b-16", folder_of_growmaps() / "68m_7b-16.pt", [list(path) for path in growmap.tree.paths]):
        out = tmp_path / f"{type(given).__name__}-{len(list(tmp_path.iterdir()))}.txt"
        assert treeopt.convert(given, out, "vllm").tree == growmap.tree
        assert ast.literal_eval(out.read_text()) == list(growmap.tree.paths)
        assert treeopt.read_growmap(out).tree == growmap.tree
    assert "vLLM's string holds the tree alone: the growmap's metadata and provenance stay behind" in caplog.text
    assert treeopt.convert([np.array([0]), (np.int64(0), 0)], tmp_path / "chain.pt").tree == treeopt.SpeculationTree.chain(2)
    assert treeopt.read_growmap(tmp_path / "chain.pt").tree.depth == 2


@pytest.mark.parametrize(
    ("given", "name", "to", "error", "said"),
    [
        ([[0], [1, 0]], "o", "medusa", GrowMapError, "path [1, 0] has no parent: [1] is missing; add it"),
        ([[0], [2]], "o", "medusa", GrowMapError, "path [2] has no elder sibling: [1] is missing; add it, or lower the rank"),
        ([0, 1], "o", "medusa", SettingsError, "`tree` is [0, 1], but it must be a tree, a file or a list of choices"),
        ([["0"]], "o", "medusa", SettingsError, "`tree` is [['0']], but it must be"),
        (7, "o", "medusa", SettingsError, "`tree` is 7, but it must be"),
        (
            treeopt.DynamicBudget(4, 2, 2),
            "o",
            "medusa",
            SettingsError,
            "`tree` is DynamicBudget(size=4, depth=2, width=2), but it must be a tree",
        ),
        ([[0]], "o", None, SettingsError, "the name o does not say the format to write; pass `to` sequoia"),
        ([[0]], "o", "eagle3", SettingsError, "`to` is 'eagle3', but it must be one of sequoia"),
        ("none-such", "o", "vllm", GrowMapError, "there is no file none-such"),
    ],
)
def test_what_cannot_be_converted_is_one_line(tmp_path: Path, given: Any, name: str, to: Any, error: type[TreeoptError], said: str) -> None:
    with pytest.raises(error) as caught:
        treeopt.convert(given, tmp_path / name, to)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_tree_needs_a_latency_or_its_size(profiles: Any) -> None:
    with pytest.raises(SettingsError, match="pass `latency`, or `size` and `depth`"):
        treeopt.grow(profiles[0], size=4)
    assert treeopt.grow(profiles[0], size=4, depth=2).tree.size == 4


def test_prompts_of_a_list_are_whole_and_keep_their_kind(pair: Any) -> None:
    import torch

    text = "def f(x):\n    return x\n"
    ids = treeopt.prompts([text], pair).prompts[0].ids
    given = treeopt.prompts([text, list(ids), torch.tensor(ids), {"text": text}, torch.tensor([ids])], pair)
    assert {prompt.ids for prompt in given} == {ids}
    assert given.whole
    assert given.label == "in memory[0:5]"


@pytest.mark.parametrize(
    ("items", "error", "said"),
    [
        ([], SettingsError, "must be a list of one prompt or more"),
        ("a text", SettingsError, "put a single prompt into a list"),
        ({"input_ids": [1, 2]}, SettingsError, "`items` is {'input_ids': .1, 2.}, but it must be a list"),
        ((text for text in ["a"]), SettingsError, "but it must be a list of one prompt or more"),
        (None, SettingsError, "`items` is None, but it must be a list"),
        (torch.tensor([1, 2]), DatasetError, "row 0: the row is a number"),
        ([3], DatasetError, "row 0: the row is a number"),
        ([["a", 3]], DatasetError, 'row 0: "input_ids" must be a list of whole numbers'),
        (["a", [{"role": "user", "content": "b"}]], SettingsError, "1 of 2 prompts are lists of messages and the others are not"),
        ([[{"role": "user", "content": "b"}]], DatasetError, "`chat` needs a chat template"),
        ([[10**9]], DatasetError, "row 0"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_prompt_is_named(pair: Any, items: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        treeopt.prompts(items, pair)


def test_torchs_own_names_of_devices_and_dtypes_are_taken(pair: Any) -> None:
    target = treeopt.load_target("embedded-target", device=torch.device("cpu"), dtype=torch.bfloat16).target
    assert (target.device.type, target.dtype) == ("cpu", torch.bfloat16)
    with pytest.raises(TreeoptError, match="this is a LlamaForCausalLM; for modules, use `pair` of treeopt"):
        treeopt.load_pair(pair.target.module, "embedded-draft")


def test_numbers_of_numpy_are_token_ids(pair: Any) -> None:
    assert [prompt.ids for prompt in treeopt.prompts([[np.int64(5), 6], np.array([7, 8])], pair)] == [(5, 6), (7, 8)]


def test_what_is_no_prompt_set_and_what_is_no_pair_is_named(pair: Any) -> None:
    prompts, api = treeopt.prompts(["a text", "another"], pair), cast(Any, treeopt)
    wrong: list[tuple[Callable[[], Any], str]] = [
        (lambda: api.evaluate(pair, None, "a"), "put a single prompt into a list"),
        (lambda: api.profile_acceptance(pair.alone(), prompts), "`pair` is a Target, but profiles are of a target and its draft"),
        (lambda: api.profile_latency(pair.alone()), "`pair` is a Target, but profiles are of a target and its draft"),
        (lambda: api.profile_latency(pair, sizes=4), "`sizes` is 4, but it must be a tuple"),
        (lambda: cast(Any, prompts).split(1.0), "`count` is 1.0, but it must be a whole number"),
        (lambda: api.generate("embedded-target", "a"), "`pair` is a str, but it must be a Pair or a Target"),
        (lambda: api.prompts(["a"], pair, chat_options={"system": "b"}), "`chat_options` is .*, but it must be a ChatOptions"),
    ]
    for call, said in wrong:
        with pytest.raises(TreeoptError, match=said):
            call()


def test_settings_of_the_generation_config_that_are_not_followed_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    pair = treeopt.load_pair("embedded-target", "embedded-draft")
    pair.target.module.generation_config.num_beams = 3
    for _ in range(2):
        treeopt.generate(pair, "def f(", max_new_tokens=2, stop=None)
    said = "not applied of the generation config of embedded-target: num_beams 3; `generate` of transformers would"
    assert [record.message for record in caplog.records] == [said]
    treeopt.evaluate(pair, None, treeopt.prompts(["def f("], pair), gen_len=2)
    assert [record.message for record in caplog.records] == [said] * 2


def test_modules_of_the_caller_make_a_pair() -> None:
    from transformers import AutoModelForCausalLM

    modules = [AutoModelForCausalLM.from_pretrained(folder_of(name)) for name in ("embedded-target", "embedded-draft")]
    pair = treeopt.pair(*modules)
    report = treeopt.evaluate(pair, treeopt.SpeculationTree.k_ary(2, 2), treeopt.prompts([[5, 6, 7]], pair), gen_len=8)
    assert report.lossless == "match"


def test_what_is_no_profile_and_empty_lists_are_refused(pair: Any, profiles: Any) -> None:
    for given, message in (
        (None, "`acceptance` is None, but it must be an AcceptanceProfile"),
        ([3], "`acceptance` is 3"),
        ([], "no profile"),
    ):
        with pytest.raises(SettingsError, match=message):
            treeopt.grow(given, profiles[1])
    with pytest.raises(SettingsError, match="`latency` is 3, but it must be a LatencyProfile or the path of its file"):
        treeopt.grow(profiles[0], 3)  # type: ignore[arg-type]
    for empty in ("temperature", "top_p", "drafting"):
        with pytest.raises(SettingsError, match=f"`{empty}` is an empty list"):
            treeopt.profile_latency(pair, **{empty: []})
    with pytest.raises(SettingsError, match="`draftings` is empty"):
        LatencySettings(draftings=())


def test_rules_are_timed_by_name_and_the_fastest_is_taken(pair: Any, profiles: Any) -> None:
    few: dict[str, Any] = {"sizes": [1, 2, 4], "widths": [1, 2], "contexts": [8], "repetitions": 1}
    latency = treeopt.profile_latency(pair, **few, temperature=0.6, drafting=["topk", Drafting("swor")])
    assert [rule.name for rule in latency.held] == [
        "topk, temperature 0",
        "topk, temperature above 0",
        "swor, sequential, temperature above 0",
    ]
    greedy = profiles[0]
    topk = replace(greedy, temperature=0.6)
    swor = replace(topk, drafting="swor", draft_temperature=0.6)
    grown = treeopt.grow([topk, swor], latency)
    alone = {profile.drafting: treeopt.grow(profile, latency) for profile in (topk, swor)}
    best = min(alone.values(), key=lambda made: made.promise.seconds_per_step / made.promise.tokens_per_step)
    assert (grown.tree, grown.metadata["drafting"]) == (best.tree, best.metadata["drafting"])
    assert alone["swor"].metadata["timed_rule"] == StepRule.of(Sampling(0.6), Drafting("swor")).to_json()
    with pytest.raises(
        MissingRuleError, match="profile the latency with `temperature` 0.6 and `drafting` swor and `verifier` traversal too"
    ):
        treeopt.grow(swor, latency, verifier="traversal")
    with pytest.raises(SettingsError, match="pass `latency` as well"):
        treeopt.grow([topk, swor], size=4, depth=2)
    with pytest.raises(ProfileError, match="differ in temperature: 0.0 and 0.6"):
        treeopt.grow([greedy, swor], latency)
    for profile in (topk, swor, replace(greedy, drafting="unknown", temperature=None)):
        with pytest.raises(SettingsError, match="`verifier` is 'rising', but it must be one of sequential, matching, traversal"):
            treeopt.grow(profile, size=4, depth=2, verifier="rising")
