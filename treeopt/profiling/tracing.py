"""Tracing: what the draft said of every token of a text, and the trace that is made of all texts."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from treeopt.profiles.trace import Trace
from treeopt.profiles.traced_text import TracedText
from treeopt.profiling.settings import AcceptanceSettings
from treespec.data.prompts import Prompt, PromptSet
from treespec.decoding.rules import TOPK
from treespec.files.columns import column, column_text
from treespec.files.fields import flag, listed, mapping, natural
from treespec.files.fingerprint import fingerprint
from treespec.models.heads.bound import BoundHead
from treespec.models.pairs import Pair
from treespec.models.positions import readable

_DIGITS = 16
"""Digits of the SHA-256 of a prompt's ids that a trace keeps."""


@dataclass(frozen=True)
class TracedRow:
    """One traced text. The arrays are float32 and uint32 [positions], those of a head's deeper levels shorter by one each; see `Trace`."""

    tokens: int
    eos: bool
    rank: NDArray[np.uint32]
    log_probability: NDArray[np.float32]
    top_log_probability: NDArray[np.float32]
    deeper: tuple[NDArray[np.uint32], ...] = ()
    """The ranks at the levels of a head below the first, as far as the text has any."""

    def to_json(self) -> dict[str, Any]:
        """Return the row as a journal keeps it."""
        return asdict(self) | {
            "rank": column_text(self.rank, "<u4"),
            "log_probability": column_text(self.log_probability, "<f4"),
            "top_log_probability": column_text(self.top_log_probability, "<f4"),
            "deeper": [column_text(level, "<u4") for level in self.deeper],
        }

    @classmethod
    def from_json(cls, positions: int, value: Any) -> "TracedRow":
        """Return the row of so many positions that `to_json` gave. Raises LookupError, TypeError, ValueError."""
        found = mapping(value)
        return cls(
            natural(found["tokens"]),
            flag(found["eos"]),
            column("<u4", positions, found["rank"]),
            column("<f4", positions, found["log_probability"]),
            column("<f4", positions, found["top_log_probability"]),
            tuple(column("<u4", positions - depth, level) for depth, level in enumerate(listed(found["deeper"]), 1)),
        )


def drafted_tokens(pair: Pair) -> int:
    """Return the number of tokens that a draft can propose. A head may know fewer than the ids that hold them all."""
    return min(pair.vocabulary_size, pair.draft.head.vocabulary_size) if isinstance(pair.draft, BoundHead) else pair.vocabulary_size


def ranks_of(pair: Pair, logits: Tensor, chosen: Tensor) -> NDArray[np.uint32]:
    """Return the ranks of the next tokens `chosen` int64 [positions] by the draft's logits [positions, vocabulary], uint32 [positions]; see `Trace`."""
    said = logits.gather(-1, chosen[:, None])
    smaller = torch.arange(logits.shape[-1], device=logits.device) < chosen[:, None]
    rank = ((logits > said) | ((logits == said) & smaller)).sum(-1).clamp(max=drafted_tokens(pair))
    return rank.cpu().numpy().astype(np.uint32)


def traced_row(
    pair: Pair, logits: Tensor, chosen: Tensor, tokens: int, *, eos: bool, deeper: Sequence[NDArray[np.uint32]] = ()
) -> TracedRow:
    """Return what the draft said of the next tokens `chosen` int64 [positions] by its logits [positions, vocabulary].

    The text has `tokens` tokens and ends with an EOS, or else with the budget. `deeper` are the ranks at the deeper levels of a head, which may go on
    behind the end of the text.
    """
    whole = logits.float().logsumexp(-1)
    said, top = logits.gather(-1, chosen[:, None])[:, 0], logits.amax(-1)
    below = tuple(level[: len(chosen) - depth] for depth, level in enumerate(deeper, 1) if depth < len(chosen))
    return TracedRow(tokens, eos, ranks_of(pair, logits, chosen), _shares(said, whole), _shares(top, whole), below)


def _shares(values: Tensor, whole: Tensor) -> NDArray[np.float32]:
    """Return the log-probabilities of logits [positions], for the logarithms of whole sums."""
    found: NDArray[np.float32] = (values.float() - whole).clamp(max=0.0).cpu().numpy()
    return found


def trace_of(pair: Pair, prompts: PromptSet, settings: AcceptanceSettings, rows: Sequence[TracedRow], provenance: dict[str, Any]) -> Trace:
    """Return the trace of the rows of all prompts, in their order."""
    texts = tuple(traced_text(pair, prompt, row.tokens, eos=row.eos) for prompt, row in zip(prompts, rows, strict=True))
    levels = pair.draft.scored_levels if isinstance(pair.draft, BoundHead) else None
    deeper = [row.deeper[depth] for depth in range((levels or 1) - 1) for row in rows if depth < len(row.deeper)]
    return Trace(
        texts=texts,
        rank=np.concatenate([row.rank for row in rows]),
        log_probability=np.concatenate([row.log_probability for row in rows]),
        top_log_probability=np.concatenate([row.top_log_probability for row in rows]),
        gen_len=settings.gen_len,
        vocabulary_size=drafted_tokens(pair),
        temperature=settings.sampling.temperature,
        top_p=settings.sampling.top_p,
        drafting=TOPK.name,
        method=settings.method,
        seed=settings.seed,
        pair_sha256=pair.sha256,
        prompt_set=prompts.describe(),
        provenance=provenance,
        levels=levels,
        deeper_rank=np.concatenate([np.zeros(0, dtype=np.uint32), *deeper]),
    )


def traced_text(pair: Pair, prompt: Prompt, tokens: int, *, eos: bool) -> TracedText:
    """Return what a trace says of a text of so many `tokens` behind a prompt, which an EOS ended or the budget."""
    target, draft = (_behind(readable(model, prompt.ids), prompt) for model in (pair.target, pair.draft))
    captured = pair.target.device.type == "cuda" and not (pair.target.eager_reason or pair.draft.eager_reason)
    return TracedText(
        row=prompt.row,
        prompt_sha256=fingerprint(prompt.ids)[:_DIGITS],
        prompt_tokens=len(prompt.ids),
        tokens=tokens,
        eos=eos,
        target_reads=None if captured else target,  # the trees of captured steps are never cut
        draft_reads=draft,
    )


def _behind(limit: int | None, prompt: Prompt) -> int | None:
    """Return how many tokens behind a prompt are among the first `limit` tokens of a text."""
    return None if limit is None else max(0, limit - len(prompt.ids))
