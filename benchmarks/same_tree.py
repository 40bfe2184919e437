"""Compare rules and verifiers on one tree and the same contexts, without the noise of random acceptance.

The target continues some texts. Every few positions, the tree is drafted by each rule, and the expected number of accepted
tokens, given the drafted ones, is computed exactly. Differences are paired, with standard errors over texts.

`python -m benchmarks.same_tree --out FILE` takes the embedded pair on the CPU; no time is measured.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from treeopt.optimizer.search import optimize
from treeopt.profiling.acceptance import profile_acceptance
from treeopt.profiling.settings import AcceptanceSettings
from treespec.data.prompts import PromptSet, load_prompts
from treespec.decoding.drafters.base import DrafterSetup
from treespec.decoding.drafters.static import StaticDrafter
from treespec.decoding.drafting import Drafting
from treespec.decoding.loop import Request, decode_autoregressive
from treespec.decoding.rules import Sampling
from treespec.decoding.sampling import distribution, prompt_generator
from treespec.decoding.timing import NoTimer
from treespec.decoding.verifiers import VERIFIERS
from treespec.decoding.verifiers.base import SampledVerifier
from treespec.files.writing import write_json
from treespec.models.pairs import Pair, load_pair
from treespec.models.tree_model import TreeModel
from treespec.trees.placement import Placement, Prefix
from treespec.trees.tensors import StaticTensors
from treespec.trees.tree import SpeculationTree

WAYS = (
    Drafting("topk"),
    Drafting("swor"),
    Drafting("swr"),
    Drafting("swor", verifier="traversal"),
    Drafting("swr", verifier="traversal"),
)
COMPARISONS = ((1, 0), (1, 2), (3, 1), (4, 2))
"""The pairs of ways to compare, as indices into WAYS."""

NAMES: tuple[str, ...] = ("sequential", "traversal")


@dataclass(frozen=True)
class SameTree:
    """The expected tokens per step of each of WAYS, at every `every`-th position of each text."""

    temperature: float
    tree: SpeculationTree
    means: NDArray[np.float64]
    """[texts, ways]; the mean over a text's positions."""

    def difference(self, a: int, b: int) -> tuple[float, float]:
        """Return (mean of a - b over texts, its standard error)."""
        found = self.means[:, a] - self.means[:, b]
        return float(found.mean()), float(found.std(ddof=1) / len(found) ** 0.5)


@torch.inference_mode()
def same_tree(
    pair: Pair, tree: SpeculationTree, prompts: PromptSet, sampling: Sampling, *, gen_len: int, every: int = 4, seed: int = 0
) -> SameTree:
    """Continue the prompts with the target, then draft and verify from the end of each text to its start.

    In this order, a tree overwrites only cache slots that are no longer needed.
    """
    target, draft = pair.target, pair.draft
    vocabulary, device = pair.vocabulary_size, target.device
    drafters = {way.rule: StaticDrafter(tree, DrafterSetup(draft, device, vocabulary, sampling, way)) for way in WAYS}
    means = []
    for index, prompt in enumerate(prompts):
        generator = prompt_generator(seed, index, device)
        records = decode_autoregressive(target, Request(prompt.ids, gen_len, sampling=sampling), generator)
        text = torch.tensor([*prompt.ids, *(token for record in records for token in record.tokens)], device=device)
        for model in (target, draft):
            assert isinstance(model, TreeModel)
            model.allocate(len(text) + tree.size)
            model.prefill(text)
        rows = []
        for length in range(len(text) - 1, len(prompt.ids), -every):
            last = text[length - 1 : length + 1]
            by_rule = {rule: _expected(pair, drafter, last, length, sampling, generator) for rule, drafter in drafters.items()}
            rows.append([by_rule[way.rule][way.verifier] for way in WAYS])
        means.append(np.mean(rows, axis=0))
        print(f"T {sampling.temperature:g}: {index + 1}/{len(prompts)} texts", file=sys.stderr, flush=True)
    return SameTree(sampling.temperature, tree, np.array(means))


def _expected(
    pair: Pair, drafter: StaticDrafter, last: torch.Tensor, length: int, sampling: Sampling, generator: torch.Generator
) -> dict[str, float]:
    """Return the expected tokens of one step by verifier: 1 for the target's own, plus the accepted ones. All verify the same draft."""
    prefix = Prefix.of(length, last.device)
    proposal = drafter.propose(last, prefix, 1 << 30, generator, NoTimer())
    tree, tokens = proposal.tree, proposal.tokens
    assert isinstance(tree, StaticTensors)
    place = Placement(prefix, tree.depths, torch.arange(tree.size, device=last.device), tree.ancestors)
    logits = pair.target.forward(tokens, place)
    p = distribution(logits[:, : drafter.vocabulary], sampling)
    if proposal.q is None:
        matched = p[tree.parents].gather(1, tokens[:, None])[:, 0]
        matched[:1].fill_(1)
        return dict.fromkeys(NAMES, float(matched.where(tree.ancestors, 1.0).prod(-1).sum()))
    found = {}
    for name in NAMES:
        verifier = VERIFIERS[name].make()
        assert isinstance(verifier, SampledVerifier)
        found[name] = 1 + float(verifier.mean_accepted(verifier.weigh(tokens, p, proposal.q, tree, replacement=proposal.replacement)))
    return found


def as_data(found: SameTree) -> dict[str, Any]:
    """Return the results as data for JSON."""
    return {
        "temperature": found.temperature,
        "parents": list(found.tree.parents),
        "tokens_per_step": {f"{way.rule} {way.verifier}": float(found.means[:, i].mean()) for i, way in enumerate(WAYS)},
        "differences": [
            {
                "of": f"{WAYS[a].rule} {WAYS[a].verifier}",
                "from": f"{WAYS[b].rule} {WAYS[b].verifier}",
                "mean": mean,
                "standard_error": error,
            }
            for a, b in COMPARISONS
            for mean, error in [found.difference(a, b)]
        ],
        "by_text": found.means.tolist(),
    }


def table_of(found: Sequence[SameTree]) -> Table:
    """Return the table of expected tokens per step and of paired differences."""
    table = Table(title="expected tokens per step on one tree and the same contexts; differences with their standard errors")
    for column in ("T", "tree", *(f"{way.rule} {way.verifier}" for way in WAYS)):
        table.add_column(column, justify="right")
    for a, b in COMPARISONS:
        table.add_column(f"{WAYS[a].rule} {WAYS[a].verifier[:3]} - {WAYS[b].rule} {WAYS[b].verifier[:3]}", justify="right")
    for one in found:
        differences = [one.difference(a, b) for a, b in COMPARISONS]
        table.add_row(
            f"{one.temperature:g}",
            f"({one.tree.size}, {one.tree.depth})",
            *(f"{mean:.3f}" for mean in one.means.mean(0)),
            *(f"{mean:+.3f} ± {error:.3f}" for mean, error in differences),
        )
    return table


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--gen-len", type=int, default=96)
    parser.add_argument("--size", type=int, default=24)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.2, 0.6, 1.0])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    pair = load_pair("embedded-target", "embedded-draft", device=arguments.device)
    profiled = load_prompts("stdlib", pair.tokenizer, num_prompts=32, prompt_len=128)
    prompts = load_prompts("stdlib", pair.tokenizer, num_prompts=arguments.prompts, prompt_len=128, start=profiled.end)
    found = []
    for temperature in arguments.temperatures:
        settings = AcceptanceSettings(Sampling(temperature), Drafting("swor"), gen_len=arguments.gen_len, batch_size=32)
        tree = optimize(profile_acceptance(pair, profiled, settings), size=arguments.size, depth=arguments.depth).tree
        found.append(same_tree(pair, tree, prompts, Sampling(temperature), gen_len=arguments.gen_len))
        if arguments.out:
            provenance = pair.provenance(dataset=prompts.label)
            write_json(arguments.out, {"rows": [as_data(one) for one in found], "provenance": provenance})
    Console(width=180).print(table_of(found))


if __name__ == "__main__":
    main()
