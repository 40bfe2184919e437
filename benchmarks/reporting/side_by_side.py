"""Whole decoders beside each other, on the same prompts in one run: what `benchmarks.engine` and `benchmarks.decoding` have in common."""

from collections.abc import Callable
from typing import Any

from benchmarks.reporting.markdown import paragraph, table

GENERATE = "transformers generate"
TRANSFORMERS = {GENERATE: "transformers `generate`", "transformers assisted": "transformers assisted generation, same draft"}
"""What a table calls the decoders that are not treeopt's, from their names in the file."""

COLUMNS = ("system", "tokens/s", "x `generate`", "x autoregressive", "tokens per step", "ms per step", "equal outputs")


def side_by_side(systems: dict[str, Any], autoregressive: str, name_of: Callable[[str], str]) -> str:
    """Return the sentence and the table of all decoders; `autoregressive` is the name of treeopt's own without a tree."""
    generate, alone = (systems[name]["tokens_per_second"] for name in (GENERATE, autoregressive))
    prompts = systems[GENERATE]["identical"]
    rows = []
    for name, found in systems.items():
        rate, ours = found["tokens_per_second"], name not in TRANSFORMERS
        rows.append(
            [
                name_of(name) if ours else TRANSFORMERS[name],
                f"{rate:,.1f}",
                f"{rate / generate:.2f}",
                f"{rate / alone:.2f}",
                f"{found['tokens'] / found['steps']:.3f}" if ours else "",
                f"{1e3 * found['seconds'] / found['steps']:.3f}" if ours else "",
                f"{found['identical']} of {prompts}",
            ]
        )
    says = paragraph(
        f"Every system decodes the same {prompts} prompts of 128 tokens greedily and generates {systems[GENERATE]['tokens'] // prompts} tokens for",
        "each: the columns give its tokens per second, that rate over the rate of transformers' `generate` and over that of treeopt's",
        "autoregressive decoding, the tokens and the milliseconds per step, and for how many prompts the output equals that of `generate`,",
        "token for token.",
    )
    return f"{says}\n\n{table(COLUMNS, rows)}"
