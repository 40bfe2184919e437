"""Traces that are counted token by token, of drafts that are functions of their whole context."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.reference.tabular import Rule
from treeopt.profiles.trace import Trace
from treeopt.profiles.traced_text import TracedText


def said(logits: Sequence[float], token: int) -> tuple[int, float, float]:
    """The rank of a token in a stable sort, its log-probability, and that of the most likely token."""
    order = sorted(range(len(logits)), key=lambda other: (-logits[other], other))
    best = logits[order[0]]
    whole = best + math.log(sum(math.exp(logit - best) for logit in logits))
    return order.index(token), logits[token] - whole, best - whole


def trace_of(
    draft: Rule,
    vocabulary: int,
    prompts: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    gen_len: int,
    *,
    eos: frozenset[int] = frozenset(),
    target_reads: int | None = None,
    draft_reads: int | None = None,
    **changes: Any,
) -> Trace:
    """The trace of texts that follow prompts. Nothing is asked of the draft behind the tokens that it can read."""
    found, rows = [], []
    for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        one = TracedText(number, f"{number:016x}", len(prompt), len(text), text[-1] in eos, target_reads, draft_reads)
        rows.append(one)
        found += [said(draft((*prompt, *text[:place])), text[place]) for place in range(1, one.drafted + 1)]
    ranks, chosen, best = zip(*found, strict=True) if found else ((), (), ())
    top = np.array(best, dtype=np.float32)
    return Trace(
        texts=tuple(rows),
        rank=np.array(ranks, dtype=np.uint32),
        log_probability=np.minimum(np.array(chosen, dtype=np.float32), top),
        top_log_probability=np.minimum(top, 0),
        gen_len=gen_len,
        vocabulary_size=vocabulary,
        **{"temperature": 0.0, "top_p": 1.0, **changes},
    )
