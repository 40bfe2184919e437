"""A campaign: greedy decoding with random trees against transformers' own `generate`, on random tiny models of every family.

    python -m tests.campaigns.greedy --tokens 1000000 --seed 0

Each case is made from its own number alone: a family, changed settings, random weights, a draft, prompts and plans. All runs in float32 on the
CPU with one thread. A case that goes wrong is printed at once, with the number that repeats it (`--case`); the last line of stdout is the
summary, one JSON object.
"""

import argparse
import copy
import json
import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from tests.reference.tiny import CONFIGS, VOCABULARY, config_of, known, module_of
from treespec.decoding.drafting import Drafting
from treespec.decoding.loop import Request, decode_autoregressive, decode_speculative
from treespec.decoding.plans import DynamicBudget, Plan
from treespec.models.tree_model import TreeModel
from treespec.trees.placement import Placement, Prefix
from treespec.trees.tree import SpeculationTree

PROMPTS, PLANS = 4, 8
LIMIT = 128
"""Positions that the tiny models know."""
NEAR = 1e-3
"""A token that differs counts as a near-tie if the two logits are no further apart than this share of the logits' standard deviation."""


class Foresight:
    """A draft without weights that knows the target's text and is often right: its logits depend on the position alone.

    `table` [positions, vocabulary] holds them. So a campaign spends its time in the target.
    """

    vocabulary_size, device, name, eager_reason = VOCABULARY, torch.device("cpu"), "foresight", ""

    def __init__(self, text: Sequence[int], skill: float, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(2 * LIMIT, VOCABULARY, generator=generator)
        for position, token in enumerate(text[1:]):
            self.table[position, token] += skill

    def allocate(self, capacity: int) -> None:
        """Allocate nothing."""

    def prefill(self, tokens: Tensor, pixels: Tensor | None = None) -> Tensor:
        """Return logits [vocabulary] after the last token."""
        return self.table[len(tokens) - 1]

    def forward(self, tokens: Tensor, place: Placement, keep: Tensor | None = None) -> Tensor:
        """Return logits [q, vocabulary]."""
        logits = self.table[place.positions]
        return logits if keep is None else logits[keep]

    def move(self, prefix: Prefix, offsets: Tensor, first: int) -> None:
        """Move nothing."""


@dataclass
class Tally:
    """The results of a campaign so far."""

    cases: int = 0
    outputs: int = 0
    tokens_compared: int = 0
    tokens_per_step: float = 0.0
    wrong: int = 0
    """Outputs that differ from `generate`'s, near-ties apart."""
    near_ties: int = 0
    largest_near_tie: float = 0.0
    errors: int = 0
    """Cases that raised an error."""
    failing: list[int] = field(default_factory=list)
    by_family: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    by_plan: dict[str, int] = field(default_factory=lambda: defaultdict(int))


def main(arguments: list[str] | None = None) -> int:
    """Run the campaign and return the exit code: 1 if an output is wrong."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="the first case has this number times a million")
    parser.add_argument("--tokens", type=int, default=20_000, help="stop after comparing so many tokens")
    parser.add_argument("--minutes", type=float, default=None, help="stop after so many minutes")
    parser.add_argument("--families", default="", help="names from tests/reference/tiny.py, with commas between them; all if left out")
    parser.add_argument("--case", type=int, default=None, help="repeat this one case")
    options = parser.parse_args(arguments)
    families = [name for name in options.families.split(",") if name] or [name for name in CONFIGS if known(name)]
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    tally, start, steps = Tally(), time.monotonic(), 0
    number = options.seed * 1_000_000 if options.case is None else options.case
    while True:
        steps += run_case(number, families, tally)
        tally.cases += 1
        tally.tokens_per_step = round(tally.tokens_compared / max(1, steps), 2)
        minutes = (time.monotonic() - start) / 60
        if tally.cases % 20 == 0:
            counts = f"{tally.wrong} wrong, {tally.near_ties} near-ties, {tally.errors} errors"
            note(f"{tally.cases} cases, {tally.tokens_compared} tokens, {counts}, {minutes:.1f} minutes")
        ended = options.case is not None or tally.tokens_compared >= options.tokens
        if ended or (options.minutes is not None and minutes >= options.minutes):
            break
        number += 1
    record = {"seed": options.seed, "transformers": transformers.__version__, "torch": torch.__version__, "minutes": round(minutes, 1)}
    print(json.dumps({**record, **vars(tally)}))
    return 1 if tally.wrong or tally.errors else 0


def run_case(number: int, families: list[str], tally: Tally) -> int:
    """Compare all outputs of one case, add them to the tally, and return the number of steps that they took."""
    choose, steps = random.Random(number), 0
    family = families[number % len(families)]
    try:
        target, copied = models(family, choose)
        for _ in range(PROMPTS):
            prompt, length, eos = text(choose)
            expected = generated(target.module, prompt, length, eos)
            draft = copied or Foresight((*prompt, *expected), choose.choice([4.0, 6.0, 8.0]), choose.randrange(2**31))
            for kind, plan, drafting in plans(choose):
                capacity = choose.choice([None, None, LIMIT, LIMIT, min(LIMIT, len(prompt) + choose.randrange(0, length + 3))])
                if capacity is None and len(prompt) + length + (1 if plan is None else plan.depth) > LIMIT:
                    capacity = LIMIT  # a model's positions bound the slots, as on the command line
                request = Request(prompt, length, eos, capacity=capacity)
                wanted = expected if capacity is None else expected[: 1 + capacity - len(prompt)]
                records = list(
                    decode_autoregressive(target, request)
                    if plan is None
                    else decode_speculative(target, draft, plan, request, drafting=drafting)
                )
                found = [token for record in records for token in record.tokens]
                steps += len(records)
                tally.outputs += 1
                compare(found, wanted, target, prompt, tally, f"case {number}, {family}, {kind} {plan}, {drafting}, {request}")
                tally.by_family[family] += len(wanted)
                tally.by_plan[kind] += len(wanted)
    except Exception as error:  # a campaign goes on, and names the case
        tally.errors += 1
        tally.failing.append(number)
        note(f"case {number}, {family}: {type(error).__name__}: {error}")
    return steps


def compare(found: list[int], wanted: list[int], target: TreeModel, prompt: tuple[int, ...], tally: Tally, what: str) -> None:
    """Compare one output with `generate`'s up to the first token that differs, and say whether that one is a near-tie."""
    same = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), min(len(found), len(wanted)))
    tally.tokens_compared += same
    if same == len(found) == len(wanted):
        return
    tally.tokens_compared += 1
    gap = float("inf")
    if same < min(len(found), len(wanted)):
        logits = target.score(torch.tensor([[*prompt, *wanted[:same]]]), len(prompt) + same - 1)[0, 0]
        gap = float((logits[wanted[same]] - logits[found[same]]).abs() / logits.std())
    if gap <= NEAR:
        tally.near_ties += 1
        tally.largest_near_tie = max(tally.largest_near_tie, gap)
        note(f"near-tie (gap {gap:.2g}): {what}")
    else:
        tally.wrong += 1
        tally.failing.append(int(what.split()[1].rstrip(",")))
        note(f"WRONG from token {same} on (gap {gap:.2g}): {what}: {found} instead of {wanted}")


def models(family: str, choose: random.Random) -> tuple[TreeModel, TreeModel | None]:
    """Return a random target of a family, and a draft: a noisy copy, a Llama that knows nothing of it, or None for `Foresight`."""
    config = config_of(family, **changes(family, choose))
    module = module_of(config, seed=choose.randrange(2**31))
    jitter(module, choose.choice([0.0, 0.1, 0.3]), choose, ones=True)
    target, noise = TreeModel(module, name=family), choose.choice([0.0, 0.02, 0.05, None])
    if choose.random() < 0.8:
        return target, None
    if noise is None:
        other = module_of(config_of("llama", num_hidden_layers=1), seed=choose.randrange(2**31))
    else:
        other = copy.deepcopy(module)
        jitter(other, noise, choose)
    return target, TreeModel(other, name="draft")


def changes(family: str, choose: random.Random) -> dict[str, Any]:
    """Return settings that differ from case to case: window, layers, their types, width, tied embeddings, spread of the weights."""
    settings = CONFIGS[family][1]
    found: dict[str, Any] = {}
    layers = int(settings.get("num_hidden_layers", 2))
    if settings.get("sliding_window"):
        found["sliding_window"] = choose.choice([2, 3, 5, 8, 17, 40])
    if "layer_types" in settings and layers == 2:
        kinds = sorted(set(settings["layer_types"]))
        if "mlp_layer_types" not in settings:
            layers = choose.choice([1, 2, 2, 3])
            found["num_hidden_layers"] = layers
        found["layer_types"] = [choose.choice(kinds) for _ in range(layers)]
    elif settings.keys() & {"num_hidden_layers"} and not settings.keys() & {"mlp_layer_types", "max_window_layers", "layer_types"}:
        found["num_hidden_layers"] = choose.choice([1, 1, 2])
    if "intermediate_size" in settings:
        found["intermediate_size"] = choose.choice([32, 64])
    if "tie_word_embeddings" not in settings and "hidden_size" in settings and choose.random() < 0.3:
        found["tie_word_embeddings"] = True
    for name in ("initializer_range", "init_std"):
        if name in settings:
            found[name] = choose.choice([0.1, 0.2, 0.4])
    return found


def jitter(module: PreTrainedModel, noise: float, choose: random.Random, ones: bool = False) -> None:
    """Add noise to all weights, as a share of their spread; with `ones` only to those that are equal numbers, as norms and biases are."""
    generator = torch.Generator().manual_seed(choose.randrange(2**31))
    with torch.no_grad():
        for parameter in module.parameters():
            spread = float(parameter.std()) if parameter.numel() > 1 else 0.0
            drawn = torch.randn(parameter.shape, generator=generator)
            if ones == (spread == 0.0):
                parameter += noise * (1.0 if ones else spread) * drawn


def text(choose: random.Random) -> tuple[tuple[int, ...], int, frozenset[int]]:
    """Return a prompt, the number of tokens to generate, and the tokens that end a text; some texts reach the last position there is."""
    length = choose.choice([1, 2, 3, 5, 9, 17, 33])
    prompt = tuple(choose.randrange(3, VOCABULARY) for _ in range(length))
    room = LIMIT - length
    wanted = choose.choice([1, 2, choose.randrange(20, 70), room, room, room])
    eos = frozenset(choose.sample(range(VOCABULARY), choose.choice([1, 2]))) if choose.random() < 0.15 else frozenset()
    return prompt, min(wanted, room), eos


def plans(choose: random.Random) -> Iterator[tuple[str, Plan | None, Drafting]]:
    """Yield plans of every kind, and a baseline."""
    for _ in range(PLANS):
        kind = choose.choice(["tree", "tree", "tree", "dynamic", "dynamic", "chain", "chain"]) if choose.random() < 0.95 else "baseline"
        rule = Drafting(choose.choice(["topk", "topk", "swor", "swr"]))
        if kind == "baseline":
            yield kind, None, Drafting()
        elif kind == "dynamic":
            depth = choose.randrange(1, 7)
            width = choose.randrange(1, 9)
            size = choose.randrange(depth + 1, 2 + depth * width)
            yield kind, DynamicBudget(size, depth, width), Drafting()
        elif kind == "chain":
            yield kind, SpeculationTree.chain(choose.randrange(1, 17)), rule
        else:
            yield kind, random_tree(choose), rule


def random_tree(choose: random.Random) -> SpeculationTree:
    """Return a tree of up to 40 nodes: wide and flat, deep and narrow, or anything between."""
    deep, size = choose.random(), choose.randrange(2, 40)
    children: list[list[tuple[int, ...]]] = [[]]
    paths: list[tuple[int, ...]] = [()]
    for _ in range(size - 1):
        parent = len(paths) - 1 if choose.random() < deep else choose.randrange(len(paths))
        path = (*paths[parent], len(children[parent]))
        children[parent].append(path)
        children.append([])
        paths.append(path)
    return SpeculationTree.from_paths(paths[1:])


@torch.no_grad()
def generated(module: PreTrainedModel, prompt: tuple[int, ...], length: int, eos: frozenset[int]) -> list[int]:
    """Return the continuation by transformers' own greedy decoding."""
    ids = torch.tensor([prompt])
    module.generation_config.eos_token_id = None
    output = module.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=length,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=sorted(eos) or None,
    )
    return output[0, len(prompt) :].tolist()


def note(line: str) -> None:
    """Print a line on stderr."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
