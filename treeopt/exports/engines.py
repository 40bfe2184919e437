"""The engines: what each can be told, in its own words, and what of the numbers is lost there.

The options are those of SGLang, TensorRT-LLM 1.4, vLLM and llama.cpp as of November 2026.
"""

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from treeopt.exports.choosing import Setting
from treeopt.optimizer.frontier import Rows
from treespec.models.ngram import NGRAM, in_records
from treespec.trees.tree import SpeculationTree

MODEL = "model"
"""The kind of a draft that is a model of its own. Other kinds are those of heads (`treespec.models.heads`)."""

DFLASH = "dflash"
"""The kind of a draft whose blocks engines verify as chains."""
MEDUSA = "medusa"
SCHEDULE = "draft_len_schedule"
"""TensorRT-LLM's setting of a chain's length for each batch size."""

Paste = tuple[str, str]
"""A title, and text that is ready to paste."""


@dataclass(frozen=True)
class Told:
    """The material of an engine's words: the settings by batch size, ascending, those of chains too, and the draft's name and kind."""

    settings: Sequence[Setting]
    chains: Sequence[Setting]
    draft: str
    rows: Rows
    kind: str = MODEL
    """`MODEL`, or the kind of a head."""


@dataclass(frozen=True)
class Engine:
    """An engine: the kind of its settings (`choosing.KINDS`), its words, sentences on what is lost there, and the kinds of drafts that it has.

    Its times are its own, unless `own_times` says that it runs treeopt's steps.
    """

    name: str
    kind: str
    words: Callable[[Told], list[Paste]]
    lossy: Sequence[str]
    drafts: Mapping[str, str]
    """The engine's own words for each kind of draft."""
    own_times: bool = False
    ngrams: bool = False
    """Whether it has treeopt's n-grams of the text so far, alone and beside a model."""


def _batch(title: str, told: Told, setting: Setting) -> str:
    return f"{title}, batch {setting.batch}" if len(told.settings) > 1 else title


OWN_HEAD = "HEAD"
"""The name that stands for an EAGLE-3 head where another draft was profiled."""
_SGLANG = {MODEL: "STANDALONE", "eagle": "EAGLE", "eagle3": "EAGLE3", DFLASH: "DFLASH"}
_TENSORRT_LLM = {MODEL: "DraftTarget", "eagle3": "Eagle3", DFLASH: "DFlash"}
_VLLM = {MODEL: "draft_model", "eagle": "eagle", "eagle3": "eagle3", MEDUSA: "medusa", DFLASH: "dflash"}


def _sglang(told: Told) -> list[Paste]:
    found = []
    for setting in told.chains if told.kind == DFLASH else told.settings:
        if not setting.speculates:
            found.append(
                (_batch("SGLang", told, setting), "# speculation does not pay: leave out all options that begin with --speculative")
            )
            continue
        lines = [
            f"--speculative-algorithm {_SGLANG[told.kind]}",
            f"--speculative-draft-model-path {shlex.quote(told.draft)}",
            *([] if told.kind == DFLASH else [f"--speculative-num-steps {setting.depth}", f"--speculative-eagle-topk {setting.width}"]),
            f"--speculative-num-draft-tokens {setting.size}",
            *(["--page-size 1"] if setting.width > 1 else []),
        ]
        found.append((_batch("options of sglang.launch_server", told, setting), " \\\n".join(lines)))
    return found


def _tensorrt_llm(told: Told) -> list[Paste]:
    found = []
    for setting in [] if told.kind == DFLASH else told.settings:
        if not setting.speculates:
            found.append((_batch("TensorRT-LLM", told, setting), "# speculation does not pay: leave speculative_config out"))
            continue
        tree = {
            "use_dynamic_tree": True,
            "dynamic_tree_max_topK": setting.width,
            "max_total_draft_tokens": setting.size - 1,
        }
        words = {
            "decoding_type": "Eagle3",
            "max_draft_len": setting.depth,
            "speculative_model": told.draft if told.kind == "eagle3" else OWN_HEAD,
            **(tree if setting.width > 1 else {}),
        }
        found.append((_batch("YAML for an EAGLE-3 head", told, setting), _yaml(words)))
    longest = max((chain.depth for chain in told.chains), default=0)
    if longest and told.kind != "eagle3":
        words = {"decoding_type": _TENSORRT_LLM[told.kind], "max_draft_len": longest, "speculative_model": told.draft}
        schedule = {chain.batch: chain.depth for chain in told.chains} if len(told.chains) > 1 else None
        what = "a DFlash draft" if told.kind == DFLASH else "a whole draft model"
        found.append((f"YAML for {what}, a chain", _yaml(words, schedule)))
    return found or [("TensorRT-LLM", "# speculation does not pay: leave speculative_config out")]


def _yaml(words: Mapping[str, object], schedule: Mapping[int, int] | None = None) -> str:
    lines = ["speculative_config:", *(f"  {key}: {json.dumps(value)}" for key, value in words.items())]
    if schedule is not None:
        lines += [f"  {SCHEDULE}:", *(f"    {batch}: {length}" for batch, length in schedule.items())]
    return "\n".join(lines)


def ranges(settings: Sequence[Setting]) -> list[list[int]]:
    """Return [first batch size, last batch size, chain length], where a batch size between two measured ones takes the larger one's.

    Neighbours of one length are put together. The settings ascend by batch size.
    """
    found: list[list[int]] = []
    first = 1
    for setting in settings:
        if found and found[-1][2] == setting.depth:
            found[-1][1] = setting.batch
        else:
            found.append([first, setting.batch, setting.depth])
        first = setting.batch + 1
    return found


def _vllm(told: Told) -> list[Paste]:
    longest = max(setting.depth for setting in told.settings)
    if not longest:
        return [("vLLM", "# speculation does not pay: leave --speculative-config out")]
    words: dict[str, object] = {"method": _VLLM[told.kind], "model": told.draft, "num_speculative_tokens": longest}
    spans = {"num_speculative_tokens_per_batch_size": ranges(told.settings)} if len(told.settings) > 1 else {}
    rates = SpeculationTree.chain(longest).path_probabilities(told.rows.tolist())[1:]
    tested = {"rejection_sample_method": "synthetic", "synthetic_acceptance_rates": [float(rate) for rate in np.round(rates, 6)]}
    return [
        ("option of vllm serve", _vllm_option(words | spans)),
        ("the same for a load test, where drafted tokens are accepted at the profile's rates", _vllm_option(words | spans | tested)),
    ]


def _vllm_option(words: Mapping[str, object]) -> str:
    return f"--speculative-config {shlex.quote(json.dumps(words))}"


def _llama_cpp(told: Told) -> list[Paste]:
    found = []
    is_file = told.draft.lower().endswith(".gguf")
    draft = shlex.quote(told.draft) if is_file else "draft.gguf"
    title = "options of llama-server" if is_file else f"options of llama-server, where draft.gguf is {told.draft} as a GGUF file"
    for setting in told.settings:
        if setting.speculates:
            text = f"--model-draft {draft} --draft-max {setting.depth} --draft-min {setting.depth} --draft-p-min 0"
        else:
            text = "# speculation does not pay: leave --model-draft out"
        found.append((_batch(title, told, setting), text))
    return found


def _transformers(told: Told) -> list[Paste]:
    (setting,) = told.settings
    if not setting.speculates:
        return [("Python", "# speculation does not pay: call model.generate as it is")]
    assert setting.tree is not None  # it is a fixed one
    model, ngrams, _ = in_records(told.draft)
    draft = "draft=draft" if model else f'draft="{NGRAM}"'
    lines = [
        "from treespec import GrowMap, SpeculationTree",
        "from treespec.integrations.transformers import tree_generate",
        "",
        f"growmap = GrowMap(SpeculationTree({setting.tree.parents}))",
        f"output = model.generate(**inputs, custom_generate=tree_generate, {draft}{', ngrams=True' if model and ngrams else ''}, growmap=growmap)",
    ]
    loaded = "model and draft are modules" if model else "model is a module"
    return [(f"Python, where {loaded} that you have loaded", "\n".join(lines))]


GUESSED = (
    "expected tokens are those of the fixed tree of this budget, as if the draft were equally sure everywhere: "
    "trees that follow the draft's confidence usually accept more; an acceptance profile that counts the steps of dynamic trees says how many"
)
"""The loss where tokens per step are guessed."""
COUNTED = (
    "expected tokens were counted with treeopt's dynamic trees, which keep the best nodes of each level: the engine ranks all children of a level, "
    "so that its trees of the same numbers differ a little"
)
"""The loss where they were counted."""
BLOCKS = (
    "the tree is not used: a DFlash draft's block is verified as a chain, and the numbers are those of the best chain; the engine has the draft fill a "
    "block of that length, and the chances are those of whole blocks: where the two differ, it may accept more or less"
)
"""The loss where an engine that grows trees runs a DFlash draft."""
SCHEDULED = (
    "in draft_len_schedule a batch size is the largest that its length is for (TensorRT-LLM 1.4; before, it was the smallest), "
    "and beyond the last one nothing is drafted"
)
"""The loss where a chain's length goes by the batch size."""
_CHAIN = "the best fixed tree is not used: the engine drafts chains, which accept fewer tokens in a step"

ENGINES: Mapping[str, Engine] = {
    engine.name: engine
    for engine in (
        Engine(
            "sglang",
            "dynamic tree",
            _sglang,
            ("one server has one setting: of several batch sizes, take the one that it serves most",),
            _SGLANG,
        ),
        Engine(
            "tensorrt-llm",
            "dynamic tree",
            _tensorrt_llm,
            (
                "it grows trees with EAGLE-3 heads only: the tree's numbers are for a head that is accepted as often as the profiled draft; "
                "a whole draft model runs as a chain",
            ),
            _TENSORRT_LLM,
        ),
        Engine(
            "vllm",
            "chain",
            _vllm,
            (_CHAIN, "beyond the largest batch size that was measured, vLLM goes on with its length"),
            _VLLM,
        ),
        Engine(
            "llama.cpp",
            "chain",
            _llama_cpp,
            (_CHAIN, "--draft-p-min 0 keeps it from stopping early where the draft is unsure, which no profile predicts"),
            {MODEL: "--model-draft"},
        ),
        Engine("transformers", "fixed tree", _transformers, (), {MODEL: "draft"}, own_times=True, ngrams=True),
    )
}
"""The engines by name."""
