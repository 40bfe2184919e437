"""Sentences about the figures of an evaluation: gaps between predicted and measured that chance does not explain, and what figures cannot tell.

A gap is spoken of where the 95 % intervals of both do not meet, as the table of the prediction shows them. A measured figure without an interval,
of a single prompt, stands for itself.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from treespec.errors import counted, listed
from treespec.evaluation.shares import expected, sums

MOST_CUT = 0.01
"""Largest share of accepted tokens behind the ends of texts that is not spoken of."""
_SLACK = 0.5
"""Load beyond the cores that is not spoken of: there is always something that runs now and then."""


def sentences(data: Mapping[str, Any]) -> list[str]:
    """Return the sentences about an evaluation with a tree, from its data: none where nothing is odd."""
    if data["mode"] == "baseline" or not data["steps"]:
        return []
    gaps = [*_tokens(data), *_seconds(data)]
    return [*_cut(data), *(gaps or _speedup(data)), *_untold(data), *_busy(data), *_several(data)]


def _cut(data: Mapping[str, Any]) -> Iterator[str]:
    """Yield that the ends of the texts cost tokens, if they cost many."""
    cut, whole = data["tokens_cut"], data["tokens"] - data["prompts"]
    if cut > MOST_CUT * whole:
        ends = f"{data['texts_cut']} of {counted(data['prompts'], 'text')} ended at `gen_len` {(data.get('settings') or {}).get('gen_len')}"
        yield (
            f"{counted(cut, 'accepted token lies', 'accepted tokens lie', form=',')} behind the ends of the texts and {'does' if cut == 1 else 'do'} not "
            f"count ({ends}): with all of them it is {(whole + cut) / data['steps']:.3f} tokens per step"
        )


def _several(data: Mapping[str, Any]) -> Iterator[str]:
    """Yield whose speeds these are, if several processes decoded."""
    known = data.get("provenance") or {}
    processes = known.get("processes") or 1
    if processes > 1 and not known.get("tensor_parallel"):
        yield f"{processes} processes shared the prompts, each with models of its own: the speeds are those of one process"


def _tokens(data: Mapping[str, Any]) -> Iterator[str]:
    """Yield the likely cause of a gap in tokens per step, if there is one."""
    predicted, measured = data["predicted"], data["tokens_per_step"]
    promised, ends = predicted["tokens_per_step"], _ends(data, "tokens_per_step")
    if _times(measured, promised) is None or not _apart(ends, _measured(data, "tokens_per_step", measured)):
        return
    whole = measured + data["tokens_cut"] / data["steps"]
    if not _apart(ends, [end * whole / measured for end in _measured(data, "tokens_per_step", measured)]):
        cause = "the accepted tokens behind the ends of the texts make the difference; longer texts lose fewer"
    else:
        cause = (
            f"{_first_choices(data)}the text of this run is {'harder' if measured < promised else 'easier'} to draft for than that of the profile, which "
            "counts all positions of a text alike, while steps begin where drafts failed; profile the acceptance on prompts like these"
        )
    yield f"tokens per step are {_share(measured, promised)} what was predicted, and the intervals do not meet: {cause}"


def _first_choices(data: Mapping[str, Any]) -> str:
    """Return how often first choices were accepted, beside the profile, where both are known."""
    observed, profiled = data["observed_acceptance"], data["profiled_acceptance"]
    if not profiled or any(row["offered"] is None for row in observed):
        return ""
    offered = sums([row["offered"][:1] for row in observed])
    accepted = sums([row["accepted"][:1] for row in observed])
    promised = sums([expected(row["offered"][:1], profiled[min(row["depth"], len(profiled) - 1)]) for row in observed])
    if not (offered and accepted):
        return ""
    return f"first choices were accepted at {accepted[0] / offered[0]:.3f} of the visited nodes, where the profile has {promised[0] / offered[0]:.3f}; "


def _seconds(data: Mapping[str, Any]) -> Iterator[str]:
    """Yield the likely cause of a gap in seconds per step, if there is one: the whole machine, or the tree's steps alone."""
    predicted, measured = data["predicted"], data["measured_seconds_per_step"]
    promised, alone = predicted["seconds_per_step"], predicted.get("autoregressive_seconds")
    off = _times(measured, promised)
    if off is None or off == 1 or not _apart(_ends(data, "seconds_per_step"), _measured(data, "seconds_per_step", measured)):
        return
    plain = _times(data["baseline"]["seconds_per_token"], alone)
    word, other = ("slower", "longer") if off > 1 else ("faster", "shorter")
    if plain is not None and math.log(plain) / math.log(off) >= 0.5:
        cause = (
            f"autoregressive steps took {plain:.2f} x the predicted time as well, so the machine was {word} than while it was profiled, by other "
            f"programs or its clock{_load(data)}; profile the latency and evaluate on an idle machine"
        )
    else:
        known = "" if plain is None else f", while autoregressive steps took {plain:.2f} x the predicted time"
        cause = (
            f"the passes over the tree took {other} than profiled{known}: the texts are longer or shorter than the context that was profiled, or "
            f"other programs hold up torch's threads{_load(data)}; profile the latency again, at the `context` of these texts"
        )
    yield f"milliseconds per step are {_share(measured, promised)} what was predicted, and the intervals do not meet: {cause}"


def _speedup(data: Mapping[str, Any]) -> Iterator[str]:
    """Yield a gap in the speed-up, to which its three parts add up although none of the tree's is outside of its own interval."""
    predicted, measured = data["predicted"], data["speedup"]
    if predicted["autoregressive_seconds"] is None or _times(measured, predicted["speedup"]) is None:
        return
    if not _apart(_ends(data, "speedup"), _measured(data, "speedup", measured)):
        return
    parts = [
        ("tokens per step", data["tokens_per_step"], predicted["tokens_per_step"]),
        ("milliseconds per step", data["measured_seconds_per_step"], predicted["seconds_per_step"]),
        ("those of autoregressive steps", data["baseline"]["seconds_per_token"], predicted["autoregressive_seconds"]),
    ]
    known = [f"{name} are {times:.2f} x" for name, found, promised in parts if (times := _times(found, promised)) is not None]
    yield (
        f"the speed-up is {_share(measured, predicted['speedup'])} what was predicted, and the intervals do not meet, though those of the tree's own "
        f"figures do: {listed(known)} the predicted ones{_load(data)}; profile the latency again, and evaluate more prompts"
    )


def _load(data: Mapping[str, Any]) -> str:
    """Return the load average and the threads of the run, where they were recorded."""
    record = data.get("provenance") or {}
    load, threads = record.get("load_average"), record.get("threads")
    if load is None or record.get("gpu") is not None:
        return ""
    return f" (load average {load:.1f}" + ("" if threads is None else f", with {counted(threads, 'thread')} of torch") + ")"


def _untold(data: Mapping[str, Any]) -> Iterator[str]:
    """Yield that the run cannot tell whether the tree is faster, if its speed-up's interval holds 1."""
    ends = data["intervals_95"]["speedup"]
    if ends is not None and ends[0] <= 1 <= ends[1] and (data["tree"] or {}).get("depth") != 0:
        yield (
            "this run cannot tell whether the tree is faster than plain decoding: the 95 % interval of the speed-up holds 1; evaluate more prompts, "
            "on an idle machine"
        )


def _busy(data: Mapping[str, Any]) -> Iterator[str]:
    """Yield that the times are those of a busy machine, if more threads ran than it has cores."""
    record = data.get("provenance") or {}
    load, cores = record.get("load_average"), record.get("cores")
    if load is not None and cores is not None and record.get("gpu") is None and load > cores + _SLACK:
        yield (
            f"the machine was busy (load average {load:.1f} on {counted(cores, 'core')}), so the times and the speed-up are those of a busy machine; this run "
            "cannot tell what an idle one gives"
        )


def _times(measured: float | None, promised: float | None) -> float | None:
    """Return a measured figure over a promised one; None where there is no such number above 0, as in files that somebody else wrote."""
    found = measured / promised if measured and promised else 0.0
    return found if 0 < found < math.inf else None


def _share(measured: float, promised: float) -> str:
    """Return how far a figure is from another, in words."""
    return f"{100 * abs(measured / promised - 1):.0f} % {'above' if measured > promised else 'below'}"


def _ends(data: Mapping[str, Any], name: str) -> Sequence[float] | None:
    """Return the predicted interval of a figure, if it is known."""
    ends: Sequence[float] | None = (data["predicted"].get("intervals_95") or {}).get(name)
    return ends


def _measured(data: Mapping[str, Any], name: str, value: float) -> Sequence[float]:
    """Return the measured interval of a figure, or the figure itself at both ends."""
    ends: Sequence[float] | None = data["intervals_95"][name]
    return (value, value) if ends is None else ends


def _apart(one: Sequence[float] | None, other: Sequence[float]) -> bool:
    """Return whether two intervals do not meet; one that is not known meets all."""
    return one is not None and (one[1] < other[0] or other[1] < one[0])
