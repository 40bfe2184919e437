"""Trace: what the draft said of every token that the target chose, position by position, as versioned JSON. No torch."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treeopt.profiles.drawing import trace
from treeopt.profiles.traced_text import TracedText, texts_of
from treespec.decoding.rules import RULES, TOPK
from treespec.errors import ProfileError, counted
from treespec.files.columns import column, column_text
from treespec.files.fields import ROWS, Fields, checked_object, mapping, natural, number
from treespec.files.provenance import provenance_fields
from treespec.files.reading import MAX_JSON_BYTES, StrPath, read_json
from treespec.files.writing import write_json
from treespec.tables import Drawing, Drawn, in_short

TRACE_SCHEMA, VERSION, VERSION_OF_HEADS = "treeopt.trace", 1, 2
"""Files of heads have a version of their own: who leaves out the levels below the first would count other steps."""

UNKNOWN = 1 << 32
"""The rank of a token that no draft proposed: beyond every vocabulary."""

_COLUMNS = {"rank": "<u4", "log_probability": "<f4", "top_log_probability": "<f4"}
_DEEPER = "deeper_rank"
"""The column that traces of heads have beside these, "<u4"."""
_RANKS_SHOWN = 32
"""Ranks that a summary counts one by one."""
_MOST_COLUMN_BYTES = MAX_JSON_BYTES - (MAX_JSON_BYTES >> 3)
"""Most bytes of the columns of a file; the rest is for what it says of the texts."""
_MOST_PLACES = 1 << 26
"""Most places in the matrix of all texts, the shorter ones padded."""
_MOST_TOKENS = 1 << 31
"""Largest vocabulary."""
_MOST_LEVELS = 256
"""Most levels of a head."""


@dataclass(frozen=True, eq=False)
class Trace(Drawn):
    """The draft's rank and probability of every token that the target chose, on its own texts.

    The columns have one entry for each position, text after text: for the tokens of a text after its first, in order, as far as the draft
    can read (`TracedText.drafted`). Positions are those of an acceptance profile of the same texts. Rank r means that r tokens come first
    in the draft's order, in which ties go to the smaller token; `vocabulary_size`, the number of tokens that can be drafted, stands for a token
    that cannot. Probabilities are of the draft's plain softmax. Raises ProfileError for what no run can have written.

    What a head says of a token depends on the root that it started from. So these columns are of the level right below each root, and a head's trace
    has the ranks of its deeper levels too.
    """

    texts: tuple[TracedText, ...]
    rank: NDArray[np.uint32]
    log_probability: NDArray[np.float32]
    """Natural logarithm of the draft's probability of the token; -inf for a token that cannot be drafted."""
    top_log_probability: NDArray[np.float32]
    """Natural logarithm of the probability of the draft's most likely token: how sure it was."""
    gen_len: int
    """Budget: the most tokens of a text."""
    vocabulary_size: int
    temperature: float
    top_p: float
    drafting: str = TOPK.name
    method: str = ""
    seed: int = 0
    pair_sha256: str = ""
    """Fingerprint of the two models, which a profile of the same pair has too."""
    prompt_set: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    levels: int | None = None
    """Levels below a root that were traced, if the draft is a head; None for drafts that say the same of a token whatever the root."""
    deeper_rank: NDArray[np.uint32] = field(default_factory=lambda: np.zeros(0, dtype=np.uint32))
    """The ranks at a head's levels below the first, level after level, text after text and root after root: at level d + 1, of the token that
    stands d + 1 places behind each root, if the head has drafted the d tokens between as they stand in the text. A text has as many of them as it has
    drafted tokens, less d."""

    def __post_init__(self) -> None:
        if not self.texts:
            raise ProfileError("the trace has no text; profile again, with one prompt or more")
        if self.drafting not in RULES:
            raise ProfileError(f"drafting is {self.drafting!r:.40}, but it must be one of {', '.join(RULES)}; profile again")
        if not self.temperature >= 0 or not 0 < self.top_p <= 1:
            raise ProfileError(f"temperature is {self.temperature} and top_p {self.top_p}, but these must be 0 or more, and in (0, 1]")
        if not 1 <= self.vocabulary_size <= _MOST_TOKENS:
            raise ProfileError(f"vocabulary_size is {self.vocabulary_size}, but it must lie in [1, {_MOST_TOKENS}]; profile again")
        for place, one in enumerate(self.texts):
            if not 1 <= one.tokens <= self.gen_len or (one.tokens < self.gen_len and not one.eos):
                raise ProfileError(
                    f"text {place} has {counted(one.tokens, 'token')} and {'an' if one.eos else 'no'} EOS, but texts have 1 to "
                    f"{self.gen_len} tokens, fewer only with an EOS; profile again"
                )
            if one.target_reads is not None and one.target_reads < one.tokens - 1:
                raise ProfileError(
                    f"text {place} has {counted(one.tokens, 'token')}, but the target reads {one.target_reads} behind the prompt; profile again"
                )
        longest = max(one.tokens for one in self.texts)
        if self.levels is not None and not 1 <= self.levels <= _MOST_LEVELS:
            raise ProfileError(f"levels is {self.levels}, but a head has 1 to {_MOST_LEVELS}; profile again")
        if longest * len(self.texts) * (self.levels or 1) > _MOST_PLACES:
            deep = "" if self.levels is None else f" at {counted(self.levels, 'level')}"
            raise ProfileError(
                f"{counted(len(self.texts), 'text')} of up to {counted(longest, 'token')}{deep} are more than the {_MOST_PLACES:,} places that a trace "
                "may have; profile fewer prompts, or with a smaller `gen_len`"
            )
        if 4 * (len(_COLUMNS) * self.positions + len(self.deeper_rank)) * 4 // 3 > _MOST_COLUMN_BYTES:
            raise ProfileError(
                f"{counted(self.positions, 'position')} and {counted(len(self.deeper_rank), 'rank')} at deeper levels would make a file of more than "
                f"{MAX_JSON_BYTES >> 20} MiB, which is not read; profile fewer prompts, or with a smaller `gen_len`"
            )
        for name in _COLUMNS:
            if getattr(self, name).shape != (self.positions,):
                raise ProfileError(
                    f"{name} has {counted(len(getattr(self, name)), 'entry', 'entries')} for {counted(self.positions, 'position')}; profile again"
                )
        if self.deeper_rank.shape != (deeper := sum(map(sum, self._drafted[1:])),):
            raise ProfileError(
                f"{_DEEPER} has {counted(len(self.deeper_rank), 'entry', 'entries')} for {counted(deeper, 'token')} at the levels below the first; "
                "profile again"
            )
        if (beyond := self.deeper_rank[self.deeper_rank > self.vocabulary_size]).size:
            raise ProfileError(
                f"{_DEEPER} has the rank {beyond[0]}, but {counted(self.vocabulary_size, 'token')} can be drafted; profile again"
            )
        chosen, top = self.log_probability, self.top_log_probability
        sound = (
            (self.rank <= self.vocabulary_size) & (chosen <= top) & (top <= 0) & ((self.rank > 0) | (chosen == top))
        )  # false for NaN too
        if not sound.all():
            place = int(np.argmin(sound))
            raise ProfileError(
                f"position {place} has rank {self.rank[place]} and log-probability {chosen[place]:g} beside {top[place]:g} of the likeliest of "
                f"{self.vocabulary_size} tokens, which cannot be; profile again"
            )

    @cached_property
    def positions(self) -> int:
        """Number of positions."""
        return sum(one.drafted for one in self.texts)

    @cached_property
    def _drafted(self) -> list[list[int]]:
        """For each level, the number of its ranks in each text."""
        return [[max(0, one.drafted - depth) for one in self.texts] for depth in range(self.levels or 1)]

    @cached_property
    def _ranks_by_level(self) -> list[NDArray[np.uint32]]:
        """The ranks of each level, text after text."""
        ends = np.cumsum([sum(level) for level in self._drafted[1:]])
        return [self.rank, *np.split(self.deeper_rank, ends)[:-1]]

    @cached_property
    def tokens(self) -> NDArray[np.int64]:
        """int64 [texts]; the number of tokens of each text."""
        return np.array([one.tokens for one in self.texts], dtype=np.int64)

    @property
    def ranks(self) -> NDArray[np.int64]:
        """int64 [longest text - 1, texts]; row t has the rank of token t + 1 of each text right below the root, `UNKNOWN` where there is none. Read-only."""
        found: NDArray[np.int64] = self.ranks_by_depth[0]
        return found

    @cached_property
    def ranks_by_depth(self) -> NDArray[np.int64]:
        """int64 [depths, longest text - 1, texts]; `ranks` below each number of accepted tokens, `UNKNOWN` where there is none. Read-only.

        A draft that is no head has one entry, which serves every depth. A head's last entry, behind those of its levels, holds no rank.
        """
        depths = 1 if self.levels is None else self.levels + 1
        found = np.full((depths, int(self.tokens.max()) - 1, len(self.texts)), UNKNOWN, dtype=np.int64)
        for depth, (ranks, drafted) in enumerate(zip(self._ranks_by_level, map(np.array, self._drafted), strict=True)):
            place = np.arange(len(ranks)) - np.repeat(np.cumsum(drafted) - drafted, drafted) + depth
            found[depth, place, np.repeat(np.arange(len(drafted)), drafted)] = ranks
        found.flags.writeable = False
        return found

    def rank_counts(self, ranks: int) -> NDArray[np.int64]:
        """Return how often each rank was met at each level, wherever a step may have stood, int64 [levels, texts, ranks + 1].

        The last one counts the tokens of all further ranks. A draft that is no head has one level.
        """
        found = []
        for known, drafted in zip(self._ranks_by_level, self._drafted, strict=True):
            cells = np.repeat(np.arange(len(drafted)), drafted) * (ranks + 1) + np.minimum(known.astype(np.int64), ranks)
            found.append(np.bincount(cells, minlength=len(drafted) * (ranks + 1)).reshape(len(drafted), ranks + 1))
        return np.stack(found)

    def of_texts(self, places: Sequence[int]) -> "Trace":
        """Return the trace of some of its texts, in the order of these places. Raises ProfileError for no place."""
        kept = [_spans(drafted, places) for drafted in self._drafted]
        below = [ranks[own] for ranks, own in zip(self._ranks_by_level[1:], kept[1:], strict=True)]
        return replace(
            self,
            texts=tuple(self.texts[place] for place in places),
            deeper_rank=np.concatenate([self.deeper_rank[:0], *below]),
            **{name: getattr(self, name)[kept[0]] for name in _COLUMNS},
        )

    def to_json(self) -> dict[str, Any]:
        """Return the content of the trace's file."""
        columns = {name: column_text(getattr(self, name), kind) for name, kind in _COLUMNS.items()}
        plain = {key: getattr(self, key) for key in _PLAIN}
        texts = [asdict(one) for one in self.texts]
        if self.levels is not None:
            columns[_DEEPER] = column_text(self.deeper_rank, "<u4")
        return {
            "schema": TRACE_SCHEMA,
            "version": VERSION if self.levels is None else VERSION_OF_HEADS,
            **plain,
            **({} if self.levels is None else {"levels": self.levels}),
            "prompts": len(self.texts),
            "positions": self.positions,
            "texts": {key.name: [one[key.name] for one in texts] for key in fields(TracedText)},
            "columns": columns,
            "sha256": _digest(columns, self.levels),
            "prompt_set": self.prompt_set,
            "provenance": self.provenance,
        }

    def summary(self) -> dict[str, Any]:
        """Return the figures of the trace as plain data, without its positions."""
        counts = np.bincount(np.minimum(self.rank, _RANKS_SHOWN), minlength=_RANKS_SHOWN + 1).tolist()
        sure = np.exp(self.top_log_probability.astype(np.float64))
        return {
            **{key: getattr(self, key) for key in _PLAIN if key != "pair_sha256"},
            "prompts": len(self.texts),
            "tokens": int(self.tokens.sum()),
            "positions": self.positions,
            **({} if self.levels is None else {"levels": self.levels}),
            "ended_by_eos": sum(one.eos for one in self.texts),
            "rank_counts": counts[:_RANKS_SHOWN],
            "later_ranks": counts[_RANKS_SHOWN],
            "first_choice_acceptance": counts[0] / self.positions if self.positions else None,
            "first_choice_probability": float(sure.mean()) if self.positions else None,
            "prompt_set": self.prompt_set,
        }

    def drawing(self) -> Drawing:
        """Return how often each rank was the target's choice, and how texts ended."""
        return Drawing(trace(self.summary()))

    def __repr__(self) -> str:
        return in_short(self, temperature=self.temperature, gen_len=self.gen_len, prompts=len(self.texts), positions=self.positions)

    def write(self, path: StrPath) -> None:
        """Write the file whole or not at all. Raises OutputError."""
        write_json(path, self.to_json())


_PLAIN = ("drafting", "temperature", "top_p", "method", "gen_len", "seed", "vocabulary_size", "pair_sha256")
"""Fields that are numbers and texts, in the order of the file."""


def read_trace(path: StrPath) -> Trace:
    """Read a trace. Raises ProfileError for a file that is damaged or something else."""
    known = read_json(path, schema=TRACE_SCHEMA, version=(VERSION, VERSION_OF_HEADS), error=ProfileError)
    data = Fields(path, known)
    texts = data.get("texts", texts_of)
    levels = data.get("levels", _levels) if known["version"] == VERSION_OF_HEADS else None
    found, digest = data.get("columns", lambda value: (_columns(texts, levels, value), _digest(value, levels)))
    if data.text("sha256") != digest:
        raise ProfileError(f"{path} has other columns than were written: its 'sha256' does not fit them; copy or make it again")
    return data.build(
        lambda: Trace(
            texts=texts,
            **found,
            levels=levels,
            gen_len=data.get("gen_len", natural),
            vocabulary_size=data.get("vocabulary_size", natural),
            temperature=data.get("temperature", number),
            top_p=data.get("top_p", number),
            drafting=data.text("drafting"),
            method=data.text("method", ""),
            seed=data.get("seed", natural, 0),
            pair_sha256=data.text("pair_sha256", ""),
            prompt_set=data.get("prompt_set", checked_object(ROWS), {}),
            provenance=data.get("provenance", provenance_fields, {}),
        )
    )


def _digest(columns: Mapping[str, str], levels: int | None) -> str:
    """Return the SHA-256 of columns as the file has them."""
    names = [*_COLUMNS, *([] if levels is None else [_DEEPER])]
    return hashlib.sha256("\n".join(columns[name] for name in names).encode()).hexdigest()


def _columns(texts: Sequence[TracedText], levels: int | None, value: Any) -> dict[str, NDArray[Any]]:
    given, positions = mapping(value), sum(one.drafted for one in texts)
    found = {name: column(kind, positions, given[name]) for name, kind in _COLUMNS.items()}
    if levels is not None:
        deeper = sum(max(0, one.drafted - depth) for depth in range(1, levels) for one in texts)
        found[_DEEPER] = column("<u4", deeper, given[_DEEPER])
    return found


def _spans(lengths: Sequence[int], places: Sequence[int]) -> NDArray[np.int64]:
    """Return the indices of the entries that belong to some texts, in a column where the texts have so many entries one after the other."""
    ends = np.cumsum(lengths)
    spans = [np.arange(ends[place] - lengths[place], ends[place]) for place in places]
    return np.concatenate(spans) if spans else np.zeros(0, dtype=np.int64)


def _levels(value: Any) -> int:
    if not 1 <= (found := natural(value)) <= _MOST_LEVELS:
        raise ValueError(f"it is {found}, but a head has 1 to {_MOST_LEVELS} levels")
    return found
