"""Whole decoders beside each other, on the same prompts in one run: what `benchmarks.engine` and `benchmarks.decoding` have in common."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.reporting.markdown import counted, link, paragraph, parts, table
from benchmarks.reporting.run import Data, Run
from benchmarks.reporting.verdicts import Slower, speedup, told

GENERATE, ASSISTED = "transformers generate", "transformers assisted"
TRANSFORMERS = {GENERATE: "transformers `generate`", ASSISTED: "transformers assisted generation, same draft"}
"""What a table calls the decoders that are not treeopt's, from their names in the file."""

COLUMNS = ("system", "tokens/s", "x `generate`", "x autoregressive", "tokens per step", "ms per step", "equal outputs")
TITLE = "Whole decoders"
HOW_TO_READ = paragraph(
    "Every system decodes the same prompts greedily. The columns give its tokens per second, that rate over the rate of transformers' `generate`",
    "and over that of treeopt's autoregressive decoding, the tokens and the milliseconds per step, and for how many prompts the output",
    "equals that of `generate`, token for token. The tree that treeopt chose has the least predicted time per token of all sizes and depths; the",
    "best tree of a size and depth has the most predicted tokens per step of its size and depth. transformers does not say how many steps it",
    "took. Its times include the pass over the prompt, and treeopt's do not.",
)


@dataclass(frozen=True)
class Predicted:
    """What treeopt had predicted for the tree that it chose."""

    tokens_per_step: float
    speedup: float
    seconds_per_step: float | None = None


@dataclass(frozen=True)
class Systems:
    """The decoders of one run."""

    found: dict[str, Any]
    """The totals of each decoder, by its name in the file."""
    autoregressive: str
    """The name of treeopt's own decoder without a tree."""
    chosen: str
    """The name of treeopt's decoder with the tree that it chose."""
    name_of: Callable[[str], str]
    """Returns what a table calls a decoder of treeopt."""
    predicted: Predicted

    def __getitem__(self, name: str) -> float:
        return float(self.found[name]["tokens_per_second"])

    @property
    def prompts(self) -> int:
        """Return how many prompts were decoded; `generate` gives its own output for all of them."""
        return int(self.found[GENERATE]["identical"])

    def called(self, name: str) -> str:
        """Return what a table calls a decoder."""
        return TRANSFORMERS.get(name) or self.name_of(name)

    def rival(self, name: str) -> str:
        """Return the decoder without a draft that a decoder is compared with."""
        return GENERATE if name in TRANSFORMERS else self.autoregressive


def side_by_side(run: Run, systems: Systems) -> str:
    """Return the table of all decoders, and what must be known beside it."""
    rows = []
    for name, found in systems.found.items():
        ours = name not in TRANSFORMERS
        rates = {rival: systems[name] / systems[rival] for rival in (GENERATE, systems.autoregressive)}
        rows.append(
            [
                systems.called(name),
                f"{systems[name]:,.1f}",
                *(speedup(rate) if rival == systems.rival(name) else f"{rate:.2f}" for rival, rate in rates.items()),
                f"{found['tokens'] / found['steps']:.3f}" if ours else "",
                f"{1e3 * found['seconds'] / found['steps']:.3f}" if ours else "",
                f"{found['identical']} of {systems.prompts}",
            ]
        )
    tokens = systems.found[GENERATE]["tokens"] // systems.prompts
    return parts(
        paragraph(
            f"{link(TITLE)}, on {counted(systems.prompts, 'prompt')} of 128 tokens, with {counted(tokens, 'token')} generated for each.",
            run.fewer,
        ),
        table(COLUMNS, rows),
        told(slower_systems(systems)),
        _predicted(systems),
    )


def slower_systems(systems: Systems) -> list[Slower]:
    """Return the decoders with a draft that were slower than the one without it."""
    return [
        Slower(systems.called(name), systems[name] / systems[systems.rival(name)], called_in_words(systems, name))
        for name in systems.found
        if systems[name] < systems[systems.rival(name)]
    ]


def called_in_words(systems: Systems, name: str) -> str:
    """Return what a decoder is compared with, in words."""
    return "transformers' `generate`" if systems.rival(name) == GENERATE else "autoregressive decoding"


def headline(systems: Systems) -> str:
    """Return the main figure: the tree that treeopt chose."""
    rate = systems[systems.chosen]
    return (
        f"{systems.called(systems.chosen)}: {speedup(rate / systems[systems.autoregressive])} x autoregressive decoding"
        f" (predicted: {systems.predicted.speedup:.2f} x), {rate / systems[GENERATE]:.2f} x transformers' `generate`"
    )


def _predicted(systems: Systems) -> str:
    found, predicted = systems.found[systems.chosen], systems.predicted
    times = "" if predicted.seconds_per_step is None else f", {1e3 * predicted.seconds_per_step:.2f} ms per step"
    measured = "" if predicted.seconds_per_step is None else f", {1e3 * found['seconds'] / found['steps']:.2f} ms per step"
    return paragraph(
        f"For the tree that it chose, treeopt had predicted {predicted.tokens_per_step:.2f} tokens per step{times} and",
        f"{predicted.speedup:.2f} x autoregressive decoding. Measured were {found['tokens'] / found['steps']:.2f} tokens per step{measured} and",
        f"{systems[systems.chosen] / systems[systems.autoregressive]:.2f} x.",
    )


def prompts_of(systems: Callable[[Data], Systems]) -> Callable[[Data], int]:
    """Return the function that reads the number of prompts from a file, from the one that reads its decoders."""
    return lambda data: systems(data).prompts
