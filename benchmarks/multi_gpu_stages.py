"""The stages of `benchmarks.multi_gpu`, as each process runs them. Rule: all processes make the same calls in the same order."""

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from benchmarks.decoding import treeopt_seconds
from benchmarks.divided import Alone, inflated_target, model_of, random_weights
from benchmarks.inflate import inflated
from benchmarks.multi_gpu import read
from benchmarks.multi_gpu_scale import FULL, SMALL, Scale, llama
from benchmarks.passes import read_bandwidth, weight_bytes
from benchmarks.rules import exact_tree
from benchmarks.tensor_parallel import MEASURED, Link, Target, divided_seconds, measured
from treeopt.optimizer.search import optimize
from treeopt.profiles.acceptance import AcceptanceProfile
from treeopt.profiles.latency import LatencyProfile
from treeopt.profiling.acceptance import profile_acceptance
from treeopt.profiling.latency import profile_latency
from treeopt.profiling.settings import AcceptanceSettings, LatencySettings
from treespec.data.prompts import PromptSet, load_prompts
from treespec.decoding.drafting import Drafting
from treespec.decoding.engine import CacheBudget, CapturedSteps, EagerSteps, Engine
from treespec.decoding.loop import Request, decode_autoregressive, decode_speculative
from treespec.decoding.plans import Plan
from treespec.decoding.rules import Sampling
from treespec.decoding.sampling import prompt_generator
from treespec.decoding.step import StepSpec
from treespec.decoding.timing import now
from treespec.embedded import DRAFT_FOLDER, TARGET_FOLDER
from treespec.files.processes import Place
from treespec.files.writing import write_json
from treespec.models.pairs import Pair, load_pair
from treespec.models.parallel.team import Team, join
from treespec.models.tree_model import TreeModel

IN_A_ROW = 12
AMPLE = 1 << 30
ALONE = "token"
"""The name of a step without a tree."""


class Kept:
    """The figures of one stage, which the first process writes to the file of results as they are found."""

    def __init__(self, path: Path, stage: str, *, first: bool) -> None:
        self.path, self.stage, self.first = path, stage, first
        self.figures: dict[str, Any] = {}

    def add(self, pair: Pair | None = None, **figures: Any) -> None:
        """Write more figures, and the provenance of the models that gave them."""
        self.figures |= figures
        if not self.first:
            return
        found = read(self.path)
        found["stages"][self.stage] = self.figures
        if pair is not None:
            made, before = pair.provenance(), found.get("provenance", {})
            models = {f"{role}, {self.stage}": name for role, name in made["models"].items()}
            known = set(before.get("models", {}).values())
            # of all stages: one process runs some of them alone, and the texts in fp32 are beside the rest
            both = {key: made.get(key) or before.get(key) for key in ("tensor_parallel", "processes", "hosts", "backend")}
            both["models"] = before.get("models", {}) | {role: name for role, name in models.items() if name not in known}
            both["dtype"] = before.get("dtype", made["dtype"]) if self.stage == "parity" else made["dtype"]
            found["provenance"] = made | both
            found["environment"] = {name: value for name, value in sorted(os.environ.items()) if name.startswith("NCCL_")}
        write_json(self.path, found)


def say(text: str) -> None:
    """Print a line for whoever watches, in the first process."""
    if Place.of().first:
        print(text, file=sys.stderr, flush=True)


def step_seconds(pairs: Mapping[str, Pair], specs: Mapping[str, StepSpec], scale: Scale) -> dict[str, dict[str, float]]:
    """Return the median seconds of whole steps, by the name of the pair and of the step. All take turns."""
    plans = [spec.plan for spec in specs.values() if spec.plan is not None]
    deepest, largest = max(plan.depth for plan in plans), max(plan.candidates for plan in plans)
    budget = CacheBudget(scale.context + (IN_A_ROW + 2) * (deepest + 1) + largest, largest, deepest, largest)
    text = torch.randint(0, 60, (scale.context + 1,), generator=torch.Generator().manual_seed(0))
    steps: dict[tuple[str, str], Any] = {}
    for name, pair in pairs.items():
        target, draft = pair.target, pair.draft
        assert isinstance(draft, TreeModel)
        engine = Engine(target, draft, say) if target.device.type == "cuda" else None
        if engine is None:
            budget.allocate(target, draft, captured=False)
        for step, spec in specs.items():
            steps[name, step] = EagerSteps(spec.build(target, draft)) if engine is None else engine.steps(spec, budget, None)
        for model in (target, draft):
            model.prefill(text[:-1].to(model.device))
    found: dict[tuple[str, str], list[float]] = {key: [] for key in steps}
    for turn in range(1 + scale.turns):
        keys = list(steps)
        for name, step in keys[turn % len(keys) :] + keys[: turn % len(keys)]:
            found[name, step].append(_seconds(steps[name, step], text.to(pairs[name].target.device), scale.context))
    return {name: {step: statistics.median(found[name, step][1:]) for step in specs} for name in pairs}


def _seconds(steps: Any, text: torch.Tensor, context: int) -> float:
    """Return the seconds of a step behind a text that the caches hold: by the device, of several in a row, where they are captured."""
    steps.begin(text[-2:], context, prompt_generator(0, 0, text.device))
    if isinstance(steps, CapturedSteps):
        return steps.seconds(IN_A_ROW)
    started = now(text.device)
    steps.launch(AMPLE)
    steps.read(context)
    return now(text.device) - started


def bandwidth(device: torch.device) -> float:
    """Return the bytes per second at which memory is read."""
    if device.type == "cuda":
        found = read_bandwidth(device)
        torch.cuda.empty_cache()
        return found
    block, started = torch.ones(1 << 22), time.perf_counter()
    block.sum()
    return block.nbytes / (time.perf_counter() - started)


def decoded(pair: Pair, plan: Plan | None, prompts: PromptSet, scale: Scale, engine: Engine | None) -> dict[str, Any]:
    """Decode every prompt and return all tokens, with the seconds and steps of all but the first token of each, of a second time."""
    texts, seconds, count, steps = [], 0.0, 0, 0
    for turn, prompt in enumerate((prompts.prompts[0], *prompts)):
        request = Request(prompt.ids, scale.gen_len, pair.eos_token_ids)
        if plan is None:
            records = decode_autoregressive(pair.target, request, engine=engine)
        else:
            records = decode_speculative(pair.target, pair.draft, plan, request, engine=engine)
        tokens, took, many = treeopt_seconds(records, pair.target.device)
        if turn:  # the first prompt comes twice: steps are captured meanwhile
            texts.append(tokens)
            seconds, count, steps = seconds + took, count + len(tokens) - 1, steps + many
    return {"texts": texts, "tokens_per_second": count / seconds, "tokens_per_step": count / steps}


def figures_of(pair: Pair, scale: Scale, speed: float, prompts: PromptSet | None) -> tuple[dict[str, Any], LatencyProfile, list[Any]]:
    """Return the figures of one way to hold a target, its latency profile, and the texts that it decoded if there are `prompts`."""
    latency = profile_latency(pair, LatencySettings(scale.sizes, scale.widths, (scale.context,), repetitions=scale.repetitions))
    say(f"{pair.target.name}: passes timed")
    size, depth = scale.tree
    trees = {"tree": exact_tree(size, depth)}
    if prompts is not None:
        trees["tuned"] = optimize(_acceptance(), latency=latency).tree
    specs = {ALONE: StepSpec(None), **{name: StepSpec(tree) for name, tree in trees.items() if tree.size > 1}}
    steps = step_seconds({"": pair}, specs, scale)[""]
    say(f"{pair.target.name}: steps timed")
    found: dict[str, Any] = {
        "floor_ms": 1e3 * weight_bytes(pair.target.module) / speed,
        "passes_ms": {str(sample.nodes): 1e3 * sample.median_seconds for sample in latency.target},
        "steps_ms": {name: 1e3 * seconds for name, seconds in steps.items()},
        "trees": {name: [tree.size, tree.depth] for name, tree in trees.items()},
    }
    if prompts is None:
        return found, latency, []
    engine = Engine(pair.target, pair.draft, say) if pair.target.device.type == "cuda" else None
    runs = {ALONE: decoded(pair, None, prompts, scale, engine)}
    if trees["tuned"].size > 1:
        runs["tuned"] = decoded(pair, trees["tuned"], prompts, scale, engine)
    texts = [run.pop("texts") for run in runs.values()]
    return found | {"decoded": runs}, latency, texts


def _acceptance() -> AcceptanceProfile:
    """Return the chances of the embedded pair, which the inflated ones have too."""
    chances = measured(MEASURED)[2]
    return AcceptanceProfile("topk", 0.0, 1.0, chances, max(0.0, 1 - sum(chances)), (), 1000, 10)


def _prompts(scale: Scale, count: int, start: int = 0) -> PromptSet:
    tokenizer = AutoTokenizer.from_pretrained(TARGET_FOLDER)
    return load_prompts("stdlib", tokenizer, num_prompts=count, prompt_len=min(128, scale.context), start=start)


def _inflated_pair(shape: str, scale: Scale, device: str, team: Team | None) -> Pair:
    target = inflated_target(scale.shapes[shape], f"inflated-llama-2-{shape}", device, scale.dtype, team)
    draft = TreeModel(inflated(DRAFT_FOLDER, scale.draft, device, scale.dtype, seed=1), name="inflated-llama-68m")
    return Pair(target, AutoTokenizer.from_pretrained(TARGET_FOLDER), target.eos_token_ids, draft=draft)


def _free() -> None:
    import gc

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def shape_stage(name: str, team: Team, kept: Kept, scale: Scale) -> None:
    """Measure a shape that the first process holds alone, then all of them together."""
    prompts = _prompts(scale, scale.prompts, 40)
    speed = team.agreed(bandwidth(torch.device(team.device)))
    kept.add(bandwidth=speed, processes=team.size, shape=asdict(scale.shapes[name]), prompts=len(prompts))

    def alone() -> tuple[dict[str, Any], LatencyProfile, list[Any]]:
        pair = _inflated_pair(name, scale, team.device, None)
        found = figures_of(pair, scale, speed, prompts)
        kept.add(pair, one=found[0])
        return found

    first = team.first(alone)
    assert first is not None
    _free()
    one, latency, texts = first
    kept.add(one=one)
    pair = _inflated_pair(name, scale, team.device, team)
    found, _, same = figures_of(pair, scale, speed, prompts)
    identical = [sum(a == b for a, b in zip(mine, theirs, strict=True)) for mine, theirs in zip(same, texts, strict=False)]
    kept.add(pair, divided=found, identical=identical, predicted=predicted(latency, one["floor_ms"] / 1e3, pair, team, scale))
    decoder: Any = pair.target.decoder
    if getattr(decoder, "_peers", None) is not None:  # the same with collectives alone
        decoder._peers = None
        specs = {ALONE: StepSpec(None), "tree": StepSpec(exact_tree(*scale.tree))}
        kept.add(collectives_steps_ms={name: 1e3 * seconds for name, seconds in step_seconds({"": pair}, specs, scale)[""].items()})


def predicted(latency: LatencyProfile, floor: float, pair: Pair, team: Team, scale: Scale) -> dict[str, float]:
    """Return the milliseconds of each pass as the cost model gives them for these processes, from the times of one in this run."""
    config, one = pair.target.module.config, latency.at_context(scale.context)
    target = Target(int(config.num_hidden_layers), int(config.hidden_size), pair.target.vocabulary_size, pair.target.dtype.itemsize)
    fixed = max(0.0, one.target_seconds(1) - floor)
    return {str(size): 1e3 * divided_seconds(size, one, fixed, team.size, target, Link()) for size in scale.sizes}


def large_stage(team: Team, kept: Kept, scale: Scale) -> None:
    """Measure a model that no process holds whole."""
    speed = team.agreed(bandwidth(torch.device(team.device)))
    kept.add(bandwidth=speed, processes=team.size)
    started = time.perf_counter()
    target = model_of(
        scale.large, random_weights(team.device, scale.dtype), "Llama-2-70B shape with random weights", team.device, scale.dtype, team
    )
    small = llama(int(scale.large.vocab_size), scale.draft, scale.draft.num_attention_heads)
    draft = model_of(small, random_weights(team.device, scale.dtype, 1), "llama-68m shape with random weights", team.device, scale.dtype)
    pair = Pair(target, None, frozenset(), draft=draft)
    made = now(target.device) - started
    shard = target.loaded.shard
    assert shard is not None
    held = sum(p.nbytes for p in target.module.parameters())
    kept.add(pair, parameters=shard.parameters, bytes_held=held, making_seconds=made)
    kept.add(divided=figures_of(pair, scale, speed, None)[0])


def parity_stage(team: Team, kept: Kept, scale: Scale) -> None:
    """Compare texts of the embedded pair in fp32, greedy and sampled, held by all and by each alone."""
    kind = torch.device(team.device).type
    pairs = {
        "divided": load_pair("embedded-target", "embedded-draft", device=kind, dtype="float32", tensor_parallel=team.size),
        "one": load_pair("embedded-target", "embedded-draft", device=team.device, dtype="float32"),
    }
    prompts = _prompts(scale, scale.prompts)
    tree = exact_tree(min(16, scale.tree[0]), 3)
    rules = {"greedy": (Sampling(), Drafting()), "sampled": (Sampling(0.8, 0.9), Drafting("swor"))}
    texts: dict[str, dict[str, list[list[int]]]] = {}
    for name, pair in pairs.items():
        engine = Engine(pair.target, pair.draft, say) if kind == "cuda" else None
        for rule, (sampling, drafting) in rules.items():
            for index, prompt in enumerate(prompts):
                request = Request(prompt.ids, scale.gen_len, pair.eos_token_ids, sampling)
                generator = prompt_generator(0, index, pair.target.device)
                records = decode_speculative(pair.target, pair.draft, tree, request, generator, drafting=drafting, engine=engine)
                texts.setdefault(rule, {}).setdefault(name, []).append([token for record in records for token in record.tokens])
    identical = {
        rule: team.least(sum(a == b for a, b in zip(found["divided"], found["one"], strict=True))) for rule, found in texts.items()
    }
    kept.add(pairs["divided"], processes=team.size, identical=identical, prompts=len(prompts))


def acceptance_stage(team: Team, kept: Kept, scale: Scale) -> None:
    """Time a profile that one process measures, and the same one shared. Models are loaded, and kernels compiled, before."""
    assert team.processes is not None
    started = time.perf_counter()
    pair = _inflated_pair("7b", scale, team.device, None)
    settings = AcceptanceSettings(gen_len=scale.gen_len, batch_size=scale.batch)
    prompts = _prompts(scale, scale.profiled)
    loading = now(pair.target.device) - started

    def timed(some: PromptSet, **options: Any) -> tuple[float, AcceptanceProfile]:
        begun = now(pair.target.device)
        profile = profile_acceptance(pair, some, settings, **options)
        return now(pair.target.device) - begun, profile

    warming, _ = timed(_prompts(scale, 2 * scale.batch))
    kept.add(pair, processes=team.size, prompts=len(prompts), batch_size=scale.batch, loading_seconds=loading, warming_seconds=warming)
    alone = team.first(lambda: timed(prompts))
    assert alone is not None
    kept.add(one_seconds=alone[0])
    team.processes.exchange(None)
    seconds, profile = timed(prompts, processes=team.processes)
    wanted, found = ({**one.to_json(), "provenance": None} for one in (alone[1], profile))
    kept.add(shared_seconds=seconds, same=bool(team.least(int(found == wanted))))


def one_stage(kept: Kept, scale: Scale) -> None:
    """Time the plain path, the part that a single process holds of a divided target, and that part with the launches of one of several."""
    device = "cpu" if scale.device == "cpu" else "cuda:0"
    pair = _inflated_pair("7b", scale, device, None)
    assert isinstance(pair.draft, TreeModel)
    pairs = {"plain": pair}
    for name in ("tensor parallel 1", "launches of parts"):
        part = inflated_target(scale.shapes["7b"], "inflated-llama-2-7b", device, scale.dtype, Alone(device))
        if name == "launches of parts":
            if not hasattr(part.decoder, "_shard"):  # the plain decoder, as on a CPU, has no launches of its own
                continue
            decoder: Any = part.decoder
            decoder._shard, decoder.padded = part.loaded.shard, False
        pairs[name] = Pair(part, pair.tokenizer, pair.eos_token_ids, draft=TreeModel(pair.draft.module, name=pair.draft.name))
    found = step_seconds(pairs, {ALONE: StepSpec(None), "tree": StepSpec(exact_tree(*scale.tree))}, scale)
    kept.add(
        pair, steps_ms={name: {step: 1e3 * seconds for step, seconds in steps.items()} for name, steps in found.items()}, tree=scale.tree
    )


_STAGES: dict[str, Callable[[Team, Kept, Scale], None]] = {
    "parity": parity_stage,
    "7b": partial(shape_stage, "7b"),
    "13b": partial(shape_stage, "13b"),
    "70b": large_stage,
    "acceptance": acceptance_stage,
}


@torch.inference_mode()
def take_part(stages: list[str], out: Path, *, small: bool) -> None:
    """Run stages in this process, alone or as one of those that torchrun has started."""
    disable_progress_bar()  # type: ignore[no-untyped-call]
    scale, place = SMALL if small else FULL, Place.of()
    team = join(place.size, scale.device, "benchmarks.multi_gpu") if place.size > 1 else None
    for stage in stages:
        kept, started = Kept(out, stage, first=place.first), time.perf_counter()
        if team is None:
            one_stage(kept, scale)
        else:
            _STAGES[stage](team, kept, scale)
        kept.add(seconds=time.perf_counter() - started, finished=True)
        _free()
        say(f"{stage} took {time.perf_counter() - started:.0f} s")
