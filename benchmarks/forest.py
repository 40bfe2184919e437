"""Compare the texts on which acceptance is profiled: those of a forest of texts in one cache, and those of the plain module in batches.

`python -m benchmarks.forest --inflate --out FILE` needs a GPU; without `--inflate` the embedded pair is compared on the CPU. Both continue
the same prompts greedily. Where two texts part, the target's two best logits there are compared with what rounding can turn around, as
`treeopt evaluate` does. The seconds of both stand beside it.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.decoding import pair_for
from treeopt.profiling.continuation import continue_prompts
from treeopt.profiling.forest import Forest
from treeopt.profiling.texts import MOST_AT_ONCE, batches_of, even_batches, slots_of
from treespec.data.prompts import PromptSet, load_prompts
from treespec.decoding.rules import Sampling
from treespec.decoding.sampling import prompt_generator
from treespec.decoding.timing import now
from treespec.evaluation.ties import closeness
from treespec.files.writing import write_json
from treespec.models.pairs import Pair

PROMPT_LEN = 128


def plain_texts(pair: Pair, prompts: PromptSet, gen_len: int) -> tuple[list[list[int]], float]:
    """Return (the generated tokens of every prompt, up to an EOS; seconds) of the plain module in batches."""
    found: list[list[int]] = [[] for _ in prompts]
    device = pair.target.device
    started = now(device)
    for batch in batches_of(prompts, MOST_AT_ONCE[False]):
        ids = torch.tensor([prompt.ids for _, prompt in batch], device=device)
        texts, valid = continue_prompts(pair.target.module, ids, gen_len, Sampling(), [], pair.eos_token_ids, pair.target.vocabulary_size)
        for (index, prompt), text, kept in zip(batch, texts, valid, strict=True):
            found[index] = text[len(prompt.ids) :][kept].tolist()
    return found, now(device) - started


def forest_texts(pair: Pair, prompts: PromptSet, gen_len: int) -> tuple[list[list[int]], float]:
    """Return (the generated tokens of every prompt, up to an EOS; seconds, capturing included) of a forest."""
    found: list[list[int]] = [[] for _ in prompts]
    device = pair.target.device
    started = now(device)
    batches = even_batches(prompts, MOST_AT_ONCE[True])
    forest = Forest(pair.target, max(slots_of(batch, gen_len) for batch in batches), gen_len, Sampling(), pair.eos_token_ids)
    for batch in batches:
        written, valid = forest.grow(
            [prompt.ids for _, prompt in batch], [prompt_generator(0, index, device, "continuation") for index, _ in batch]
        )
        for (index, _), text, kept in zip(batch, written, valid, strict=True):
            found[index] = text[kept].tolist()
    return found, now(device) - started


def partings(pair: Pair, prompts: PromptSet, one: list[list[int]], other: list[list[int]]) -> list[dict[str, Any]]:
    """Return, for each prompt whose texts part, where they do and how close the target's best logits are there."""
    found: list[dict[str, Any]] = []
    for index, (prompt, a, b) in enumerate(zip(prompts, one, other, strict=True)):
        if a == b:
            continue
        at = next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        tokens = [text[at] if at < len(text) else None for text in (a, b)]
        seen = closeness(pair.target, [*prompt.ids, *a[:at]], tokens)
        found.append({"prompt": index, "at": at, "logit_gap": seen.logit_gap, "tolerance": seen.tolerance, "tie": seen.tie})
    return found


def main() -> None:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inflate", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--gen-len", type=int, default=128)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    pair = pair_for(arguments)
    prompts = load_prompts("stdlib", pair.tokenizer, num_prompts=arguments.prompts, prompt_len=PROMPT_LEN)
    grown, forest_seconds = forest_texts(pair, prompts, arguments.gen_len)
    print(f"forest: {forest_seconds:.1f} s", file=sys.stderr, flush=True)
    plain, plain_seconds = plain_texts(pair, prompts, arguments.gen_len)
    parted = partings(pair, prompts, plain, grown)
    ties = sum(one["tie"] for one in parted)
    Console().print(
        f"{len(parted)} of {len(prompts)} texts part, {ties} of them at rounding ties; forest {forest_seconds:.1f} s, plain {plain_seconds:.1f} s"
    )
    if arguments.out:
        figures = {"prompts": len(prompts), "gen_len": arguments.gen_len, "seconds": {"forest": forest_seconds, "plain": plain_seconds}}
        write_json(arguments.out, figures | {"partings": parted, "provenance": pair.provenance()})


if __name__ == "__main__":
    main()
