"""Compare kinds of drafts for one target: a model, an EAGLE-3 head and n-grams, each with the tree that its own profiles pick.

`python -m benchmarks.drafts --out FILE` takes the embedded target, draft and EAGLE-3 head on the CPU; `--head` names another head for that target.
`--inflate` grows target, draft and head to the shapes, and so the cost, of Llama-2-7B and llama-68m (fp16, a GPU is needed). Every draft is profiled at
every temperature, with `topk` and, when sampling, with `swor` too; the fastest tree by these profiles then decodes held-out prompts, in turn with
autoregressive decoding. What is done is kept beside FILE, and the same command goes on from there.

`--levels` measures the passes of an EAGLE-3 head of random weights instead, for a target of 7B width (4096) with 32,000 tokens and 8 layers, of which
it needs no more: what a level costs does not depend on what it proposes.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import treeopt
from benchmarks.decoding import pair_for
from benchmarks.inflate import SHAPES
from benchmarks.inflate_head import inflate_head
from treeopt.profiles.acceptance import AcceptanceProfile
from treeopt.profiles.latency import LatencyProfile
from treeopt.profiling.settings import LatencySettings
from treeopt.training.heads import write_head
from treespec.embedded import TARGET_FOLDER
from treespec.files.fingerprint import fingerprint
from treespec.files.journal import Journal
from treespec.files.writing import write_json
from treespec.models.drafts import Draft
from treespec.models.heads.bound import BoundHead
from treespec.models.heads.loading import load_head
from treespec.models.heads.making import NewEagle3
from treespec.models.heads.target import HeadTarget
from treespec.models.locating import folder_of
from treespec.models.ngram.info import NgramInfo
from treespec.models.pairs import Pair
from treespec.models.tree_model import TreeModel

PROMPT_LEN = 128
WIDTHS = (1, 2, 4, 8, 16, 32, 64)
WIDE = LlamaConfig(
    vocab_size=32_000,
    hidden_size=4096,
    intermediate_size=11_008,
    num_hidden_layers=8,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=4096,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)
"""A target whose EAGLE-3 head reads 0.77 GB in fp16, its `lm_head` of 32,000 draft tokens included."""


@dataclass(frozen=True)
class Tuned:
    """A draft at one temperature, with what its profiles say."""

    draft: str
    temperature: float
    acceptances: dict[str, AcceptanceProfile]
    latency: LatencyProfile
    growmap: treeopt.GrowMap


def pairs_for(arguments: argparse.Namespace, folder: Path) -> dict[str, Pair]:
    """Return the pairs of one target with each draft, by the kind of the draft."""
    pair = pair_for(arguments)
    target = pair.target
    name = arguments.head
    if arguments.inflate:
        small = LlamaConfig.from_pretrained(TARGET_FOLDER)
        name = str(inflate_head(folder_of(name), small, SHAPES["llama-2-7b"], folder / "eagle3", target.dtype, target.device))
    head = BoundHead(load_head(name, HeadTarget.of(target.module, target.name)), target)
    drafts: dict[str, Draft] = {"model": pair.draft, "EAGLE-3 head": head}
    drafts["n-grams"] = NgramInfo(target.vocabulary_size, pair.tokenizer).load_draft(target, device=str(target.device))
    return {kind: Pair(target, pair.tokenizer, pair.eos_token_ids, draft=draft) for kind, draft in drafts.items()}


def compare(pairs: dict[str, Pair], arguments: argparse.Namespace, journal: Journal) -> list[dict[str, Any]]:
    """Return the figures of every draft at every temperature. Those that the journal has are taken from there."""
    rows: list[dict[str, Any]] = []
    for temperature in arguments.temperatures:
        for kind, pair in pairs.items():
            prompts = treeopt.load_prompts("stdlib", pair, num_prompts=arguments.prompts + arguments.evaluated, prompt_len=PROMPT_LEN)

            def measured(
                kind: str = kind, pair: Pair = pair, prompts: treeopt.PromptSet = prompts, temperature: float = temperature
            ) -> Any:
                profiled, held_out = prompts.split(arguments.prompts)
                found = tuned(kind, pair, profiled, temperature, arguments.gen_len, arguments.repetitions)
                return row_of(found, treeopt.evaluate(pair, found.growmap, held_out, gen_len=arguments.gen_len))

            started = time.perf_counter()
            rows.append(journal.piece(f"{kind}, temperature {temperature:g}", measured))
            print(f"{kind}, temperature {temperature:g}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    return rows


def tuned(kind: str, pair: Pair, prompts: Any, temperature: float, gen_len: int, repetitions: int) -> Tuned:
    """Profile a draft and grow its tree."""
    rules = ["topk"] if temperature == 0 else ["topk", "swor"]
    acceptances = {
        rule: treeopt.profile_acceptance(pair, prompts, temperature=temperature, drafting=rule, gen_len=gen_len) for rule in rules
    }
    latency = treeopt.profile_latency(
        pair, contexts=(PROMPT_LEN + gen_len // 2,), temperature=temperature, drafting=rules, repetitions=repetitions
    )
    return Tuned(kind, temperature, acceptances, latency, treeopt.grow(list(acceptances.values()), latency))


def row_of(found: Tuned, report: treeopt.EvaluationReport) -> dict[str, Any]:
    """Return the figures of a draft at one temperature."""
    tree, promise, rule = found.growmap.tree, found.growmap.promise, found.growmap.metadata.get("drafting", "topk")
    model, said = found.latency.at_context(), report.summary()
    return {
        "draft": found.draft,
        "temperature": found.temperature,
        "rule": rule,
        "size": tree.size,
        "depth": tree.depth,
        "first_choice": found.acceptances["topk"].rank_probability[0],
        "by_depth": found.acceptances[rule].by_depth,
        "expected_tokens_per_step": promise.tokens_per_step,
        "tokens_per_step": report.tokens_per_step,
        "tokens_per_second": said["tokens_per_second"],
        "speedup": report.speedup,
        "predicted_speedup": promise.speedup,
        "intervals_95": said["intervals_95"],
        "lossless": report.lossless,
        "draft_seconds": dict(model.draft),
        "target_seconds": model.target_seconds(1),
    }


def level_seconds(device: str, dtype: torch.dtype) -> dict[str, Any]:
    """Return the seconds of a pass of an EAGLE-3 head for a target of 7B width, by level width; all weights are random."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    torch.manual_seed(0)
    try:
        with torch.device(device):
            module = LlamaForCausalLM(WIDE).train(False)
    finally:
        torch.set_default_dtype(before)
    name = "8 layers x 4096 with random weights"
    target = TreeModel(module, name=name)
    with tempfile.TemporaryDirectory() as folder:
        new, lent = NewEagle3.of(name, WIDE, None), HeadTarget.of(module, name)
        place = Path(folder) / "EAGLE-3 head with random weights"
        write_head(place, new, new.made(lent, None, 0), dtype)
        head = BoundHead(load_head(str(place), lent), target)
    pair = Pair(target, AutoTokenizer.from_pretrained(TARGET_FOLDER), frozenset(), draft=head)
    profile = treeopt.profile_latency(pair, sizes=(1, 64), widths=WIDTHS, contexts=(192,))
    weights = sum(tensor.nbytes for tensor in module.lm_head.parameters()) + head.describe()["parameters"] * dtype.itemsize
    return {
        "width": WIDE.hidden_size,
        "weight_bytes": weights,
        "draft_seconds": dict(profile.at_context().draft),
        "provenance": profile.provenance,
    }


def table_of(rows: list[dict[str, Any]], title: str) -> Table:
    """Return the rows as a table."""
    table = Table(title=title)
    for column in (
        "draft",
        "temperature",
        "rule",
        "tree",
        "first choice",
        "tokens per step",
        "predicted",
        "tokens/s",
        "x",
        "level ms",
        "lossless",
    ):
        table.add_column(column, justify="left" if column in ("draft", "rule", "lossless") else "right")
    for row in rows:
        table.add_row(
            row["draft"],
            f"{row['temperature']:g}",
            row["rule"],
            f"({row['size']}, {row['depth']})",
            f"{row['first_choice']:.3f}",
            f"{row['tokens_per_step']:.2f}",
            f"{row['expected_tokens_per_step']:.2f}",
            f"{row['tokens_per_second']:.1f}",
            f"{row['speedup']:.2f}",
            f"{1e3 * min(row['draft_seconds'].values()):.3f}",
            str(row["lossless"]),
        )
    return table


def main() -> None:
    """Run the comparison, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inflate", action="store_true")
    parser.add_argument("--levels", action="store_true", help="measure the passes of a large EAGLE-3 head of random weights alone")
    parser.add_argument("--head", default="embedded-eagle3", help="folder of another EAGLE-3 head for the embedded target")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--prompts", type=int, default=64, help="prompts that are profiled")
    parser.add_argument("--evaluated", type=int, default=8, help="prompts that are decoded, after those")
    parser.add_argument("--gen-len", type=int, default=128)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.6])
    parser.add_argument(
        "--repetitions", type=int, default=LatencySettings.repetitions, help="samples of each point of the latency profiles"
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    dtype = torch.float32 if arguments.device == "cpu" else torch.float16
    if arguments.levels:
        figures = level_seconds(arguments.device, dtype)
        Console(width=150).print({width: f"{1e3 * seconds:.3f} ms" for width, seconds in figures["draft_seconds"].items()})
    else:
        out: Path | None = arguments.out
        with tempfile.TemporaryDirectory() as folder:
            pairs = pairs_for(arguments, Path(folder))
            settings = [getattr(arguments, name) for name in ("prompts", "evaluated", "gen_len", "repetitions")]
            key = fingerprint(*settings, {kind: pair.sha256 for kind, pair in pairs.items()}, arguments.device)
            with Journal(None if out is None else out.with_suffix(".journal"), key) as journal:
                rows = compare(pairs, arguments, journal)
        any_pair = next(iter(pairs.values()))
        Console(width=150).print(table_of(rows, f"{any_pair.target.name}, {any_pair.target.device}, {any_pair.target.dtype}"))
        figures = {
            "rows": rows,
            "prompts": arguments.evaluated,
            "profiled_prompts": arguments.prompts,
            "gen_len": arguments.gen_len,
            "models": {kind: pair.draft.describe() for kind, pair in pairs.items()},
            "provenance": any_pair.provenance(),
        }
    if arguments.out is not None:
        write_json(arguments.out, {"schema": "treeopt.benchmarks.drafts", **figures})
        arguments.out.with_suffix(".journal").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
