"""The figures of an evaluation from sums over its prompts, and their intervals by drawing the prompts again. No torch."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Sums = dict[str, Any]
Figure = Callable[[Sums], Any]
"""A figure from sums of tokens, steps and seconds, of the tree and of the baseline; each sum is a number, or an array of one shape."""

_RESAMPLES = 10_000


def figure_of(columns: dict[str, NDArray[np.float64]], figure: Figure) -> float | None:
    """Return a figure of the columns [prompts]; None if it is no number."""
    value = float(figure({name: column.sum() for name, column in columns.items()}))
    return value if np.isfinite(value) else None


def interval_of(columns: dict[str, NDArray[np.float64]], figure: Figure) -> tuple[float, float] | None:
    """Return the 95 % bootstrap interval of a figure over prompts; None with fewer than two of them, or where the figure is none."""
    prompts = len(columns["steps"])
    if prompts < 2 or figure_of(columns, figure) is None:
        return None
    picks = np.random.default_rng(0).integers(0, prompts, (_RESAMPLES, prompts))
    values = figure({name: column[picks].sum(1) for name, column in columns.items()})
    low, high = np.percentile(values[np.isfinite(values)], [2.5, 97.5])
    return float(low), float(high)


def difference_interval(
    columns: dict[str, NDArray[np.float64]], base: dict[str, NDArray[np.float64]], figure: Figure, *, paired: bool
) -> tuple[float, float] | None:
    """Return the 95 % bootstrap interval of a figure less that of `base`; None with fewer than two prompts, or where a figure is none.

    If they are `paired`, prompt i of one is prompt i of the other, and both draw the same prompts; else each draws its own.
    """
    if any(len(one.get("steps", ())) < 2 or figure_of(one, figure) is None for one in (columns, base)):
        return None
    rng, values = np.random.default_rng(0), []
    picks = None
    for one in (columns, base):
        prompts = len(one["steps"])
        picks = picks if paired and picks is not None else rng.integers(0, prompts, (_RESAMPLES, prompts))
        values.append(figure({name: column[picks].sum(1) for name, column in one.items()}))
    apart = values[0] - values[1]
    low, high = np.percentile(apart[np.isfinite(apart)], [2.5, 97.5])
    return float(low), float(high)


def tokens_per_step(s: Sums) -> Any:
    """Return the tokens of a step, without each prompt's first."""
    return _ratio(s["tokens"], s["steps"])


def seconds_per_step(s: Sums) -> Any:
    """Return the seconds of a step, without prompt passes."""
    return _ratio(s["seconds"], s["steps"])


def seconds_per_token(s: Sums) -> Any:
    """Return the seconds per token after the first."""
    return _ratio(s["seconds"], s["tokens"])


def baseline_seconds_per_token(s: Sums) -> Any:
    """Return the same of autoregressive decoding."""
    return _ratio(s["baseline_seconds"], s["baseline_tokens"])


def speedup(s: Sums) -> Any:
    """Return the autoregressive seconds per token over those of the tree."""
    return _ratio(baseline_seconds_per_token(s), seconds_per_token(s))


def speedup_with_prompts(s: Sums) -> Any:
    """Return the same of whole texts: with the prompt passes, the draft's too, and with each prompt's first token, which comes from them."""
    alone = _ratio(s["baseline_seconds"] + s["baseline_prompt_seconds"], s["baseline_tokens"] + s["firsts"])
    return _ratio(alone, _ratio(s["seconds"] + s["prompt_seconds"], s["tokens"] + s["firsts"]))


def _ratio(above: Any, below: Any) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(above, dtype=np.float64) / np.asarray(below, dtype=np.float64)
