"""Sentences about an evaluation: whether its outputs are the target's own, and why there is nothing to draw."""

from collections.abc import Mapping
from typing import Any

from treespec.errors import counted


def no_step(data: Mapping[str, Any]) -> str:
    """Return the sentence for a run without a step, of which there is nothing to draw."""
    if (data.get("settings") or {}).get("gen_len") == 1:
        return "no step to measure: with one token to generate, each prompt's token comes from its prompt pass, which is no step; generate more"
    return "no step to measure: every text ended with its first token, which comes from the prompt pass; use other prompts"


def verdict(data: Mapping[str, Any]) -> str:
    """Return whether the outputs are the autoregressive ones."""
    ties = data.get("ties", 0)
    if data["lossless"] == "match":
        equal = "the only output equals that" if data["prompts"] == 1 else f"all {data['prompts']} outputs equal those"
        return f"lossless: {equal} of autoregressive decoding, token for token"
    if data["lossless"] == "ties":
        gap = "" if data.get("largest_tie_gap") is None else f" (gap {data['largest_tie_gap']:.2g}{'' if ties == 1 else ' at most'})"
        return (
            f"lossless up to rounding: {ties} of {counted(data['prompts'], 'output')} {'parts' if ties == 1 else 'part'} from autoregressive "
            f"decoding at a tie, where the target's best logits are closer than rounding{gap}"
        )
    if data["lossless"] == "mismatch":
        besides = f", and {ties} more part at a tie" if ties else ""
        return (
            f"NOT identical in {data.get('mismatches', 'some')} of {counted(data['prompts'], 'output')}{besides}; "
            "the report holds the first position that differs and the target's top-2 logit gap there"
        )
    return "lossless: not applicable (outputs are random at this temperature, so they are not compared)"
