"""PromptResult: what was measured on one prompt, decoded with a tree and autoregressively. No torch."""

from dataclasses import dataclass, field, replace
from typing import Any

from treespec.files.fields import amount, as_dataclass, checked_object, counts, flag, listed, mapping, natural, number, seconds, text

_MOST_RANKS = 1 << 20


@dataclass(frozen=True)
class Mismatch:
    """The first difference of a tree's greedy output from the autoregressive one."""

    position: int
    """Index into the generated tokens."""
    tree_token: int | None
    """The tree's token there; None if its output ended before this position."""
    baseline_token: int | None
    """The autoregressive token there; None if that output ended before this position."""
    logit_gap: float
    """The target's top-2 logit gap there, in one plain pass over the common prefix."""
    tolerance: float | None = None
    """The largest difference of logits there that rounding can turn around; None in older reports. See `ties`."""
    tie: bool = False
    """Whether both tokens have the largest logit up to `tolerance`: then the outputs differ by rounding, and neither is wrong."""


@dataclass(frozen=True)
class ChainResult:
    """The result of one prompt with a chain that ran beside the tree, without its prompt pass."""

    depth: int
    tokens: int
    steps: int
    seconds: float
    mismatch: Mismatch | None = None
    """The first difference from the autoregressive output, where outputs are compared."""


@dataclass(frozen=True)
class PromptResult:
    """The result of one prompt, decoded both ways. `seconds` and `baseline_seconds` do not include prompt passes."""

    row: int
    name: str
    tokens: int
    steps: int
    seconds: float
    baseline_tokens: int
    baseline_seconds: float
    accepted_ranks: tuple[tuple[int, ...], ...] = ()
    """For each step with a tree, the ranks on the way from the root to the last accepted node."""
    mismatch: Mismatch | None = None
    output: tuple[int, ...] = ()
    """Generated ids, if they are kept."""
    parts: dict[str, float] = field(default_factory=dict)
    """Seconds per part of a step, if a breakdown was asked for."""
    undrafted: int = 0
    """The last of the steps, each of one token, for which the draft had no positions left. They have no ranks."""
    prompt_seconds: float | None = None
    """Seconds of the prompt passes before the tree's steps: the target's and the draft's. None in older reports; so is the next one."""
    baseline_prompt_seconds: float | None = None
    """Seconds of the target's prompt pass before the autoregressive steps."""
    determined: bool = False
    """Whether the temperature left every token of the autoregressive output alone with a probability, so that outputs can be compared."""
    pieces: tuple[str, ...] = ()
    """The texts of the generated tokens, or of the first of them, if this is one of the sample texts. With `accepted_ranks` they tell who wrote what."""
    chains: tuple[ChainResult, ...] = ()
    """The results of the chains that ran beside the tree."""
    category: str = ""
    """The kind of task of its row; "" if the data set names none."""

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "PromptResult":
        """Read what `dataclasses.asdict` made. Raises TypeError, ValueError for impossible values."""
        found = as_dataclass(cls, _RESULT)(data)
        return replace(
            found,
            accepted_ranks=tuple(tuple(ranks) for ranks in found.accepted_ranks),
            output=tuple(found.output),
            pieces=tuple(found.pieces),
            mismatch=_mismatch(found.mismatch),
            chains=tuple(_chain(chain) for chain in found.chains),
        )


def _ranks(value: Any) -> tuple[int, ...]:
    if any(rank >= _MOST_RANKS for rank in counts(value)):
        raise ValueError(f"{value!r:.40} holds a rank beyond {_MOST_RANKS}, which no vocabulary has")
    return counts(value)


def _token(value: Any) -> int | None:
    """Return a token id, or None for an output that ended, which is -1 in files of the first version."""
    return None if value is None or value == -1 else natural(value)


_FIELDS_OF_MISMATCH = {
    "position": natural,
    "tree_token": _token,
    "baseline_token": _token,
    "logit_gap": number,
    "tolerance": lambda value: None if value is None else amount(value),
    "tie": flag,
}


def _mismatch(value: Any) -> Mismatch | None:
    if value is None:
        return None
    found = as_dataclass(Mismatch, checked_object(_FIELDS_OF_MISMATCH, null=False))(value)
    return replace(found, tree_token=_token(found.tree_token), baseline_token=_token(found.baseline_token))


def _chain(value: Any) -> ChainResult:
    found = as_dataclass(ChainResult, checked_object(_FIELDS_OF_CHAIN, null=False))(value)
    return replace(found, mismatch=_mismatch(found.mismatch))


_FIELDS_OF_CHAIN = {"depth": natural, "tokens": natural, "steps": natural, "seconds": seconds, "mismatch": _mismatch}

_RESULT = checked_object(
    {
        **dict.fromkeys(("row", "tokens", "steps", "baseline_tokens", "undrafted"), natural),
        **dict.fromkeys(("seconds", "baseline_seconds"), seconds),
        **dict.fromkeys(("prompt_seconds", "baseline_prompt_seconds"), lambda value: None if value is None else seconds(value)),
        **dict.fromkeys(("name", "category"), text),
        "accepted_ranks": lambda value: [_ranks(ranks) for ranks in listed(value)],
        "mismatch": _mismatch,
        "output": counts,
        "determined": flag,
        "pieces": lambda value: [text(piece) for piece in listed(value)],
        "chains": lambda value: [_chain(chain) for chain in listed(value)],
        "parts": lambda value: {text(name): seconds(part) for name, part in mapping(value).items()},
    },
    null=False,
)
