"""AcceptanceProfile: how often the draft's tokens of each rank are accepted, as versioned JSON with raw values."""

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from treeopt.profiles.acceptance_vector import read_vector
from treeopt.profiles.categories import by_category
from treeopt.profiles.drawing import acceptance
from treeopt.profiles.dynamic import DynamicAcceptance, dynamic_acceptance_of
from treeopt.profiles.level_sums import LevelSums, levels_of, require_levels
from treespec.decoding.drafting import Drafting
from treespec.decoding.rules import RULES, Sampling
from treespec.errors import ProfileError, counted
from treespec.files.fields import ROWS, Fields, checked_object, count, counts, listed, number, numbers, rows, text
from treespec.files.kinds import schema_of
from treespec.files.provenance import provenance_fields
from treespec.files.reading import MAX_JSON_BYTES, PipeablePath, StrPath, read_bytes, read_json
from treespec.files.writing import write_json
from treespec.tables import Drawing, Drawn, in_short
from treespec.trees.limits import MAX_SIZE

ACCEPTANCE_SCHEMA = "treeopt.acceptance"
VERSION = 1


DRAFTINGS = (*RULES, "unknown")
"""The rules of `treespec.decoding.drafting`, and "unknown" for acceptance vectors, which do not name theirs."""


_SUM_SLACK = 1e-3


_RAW = ("schema", "version", "by_depth", "deeper", "prompt_sums", "prompt_positions", "prompt_categories", "pair_sha256", "provenance")
"""Keys of the file that its summary does without."""


@dataclass(frozen=True)
class AcceptanceProfile(Drawn):
    """The chance that the accepted child of an accepted node is the one of rank k, for each rank k.

    - `rank_probability[k]` and its `standard_error[k]` (resampled by prompt; empty if unknown) belong to rank k, `none_accepted` to no child
      of those ranks. `positions` target positions of `prompts` prompts were counted.
    - `by_depth[d][k]`, if measured, belongs to the children of a node at depth d; its last row serves all deeper nodes too.
    - `prompt_sums[i][k]` is the sum of rank k's probabilities over the `prompt_positions[i]` positions of prompt i.
    - `temperature` and `top_p` are None if the file does not have them (a bare vector). `draft_temperature` and `draws` (of the children,
      per position) belong to sampled drafting.
    - `prompt_set` names the rows: `dataset`, `start` and `end` (left out) among others. `pair_sha256` is the fingerprint of the models, "" if unknown.

    Raises ProfileError.
    """

    drafting: str
    temperature: float | None
    top_p: float | None
    rank_probability: tuple[float, ...]
    none_accepted: float
    standard_error: tuple[float, ...]
    positions: int
    prompts: int
    method: str = ""
    by_depth: tuple[tuple[float, ...], ...] | None = None
    prompt_sums: tuple[tuple[float, ...], ...] = ()
    prompt_positions: tuple[int, ...] = ()
    provenance: dict[str, Any] | None = None
    draft_temperature: float | None = None
    draws: int | None = None
    prompt_set: dict[str, Any] | None = None
    pair_sha256: str = ""
    dynamic: DynamicAcceptance | None = None
    """The steps of dynamic trees on the same texts, if they were counted."""
    prompt_categories: tuple[str, ...] = ()
    """The kind of task of each prompt, "" for none; empty if the data set names none."""
    deeper: tuple[LevelSums, ...] = ()
    """The sums of each prompt at the levels of a head below the first, to which rows 1, 2, .. of `by_depth` belong; empty if they are not known."""

    def __post_init__(self) -> None:
        ranks = len(self.rank_probability)
        if self.drafting not in DRAFTINGS:
            raise ProfileError(
                f"drafting is {self.drafting!r:.40}, but it must be one of {', '.join(DRAFTINGS)}; profile with one of these"
            )
        for name, heat in (("temperature", self.temperature), ("draft_temperature", self.draft_temperature)):
            if heat is not None and not (math.isfinite(heat) and heat >= 0):
                raise ProfileError(f"{name} is {heat}, but it must be 0 (greedy) or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ProfileError(f"top_p is {self.top_p}, but it must lie in (0, 1]")
        if ranks > MAX_SIZE:
            raise ProfileError(f"rank_probability has {ranks:,} ranks, but a tree has at most {MAX_SIZE:,} nodes; keep the first ranks")
        _check_row("rank_probability", self.rank_probability)
        _check_row("none_accepted", (self.none_accepted,))
        total = math.fsum((*self.rank_probability, self.none_accepted))
        if total > 1 + _SUM_SLACK:
            raise ProfileError(
                f"rank_probability and none_accepted add up to {total:.6g}, but exclude one another: at most 1; measure again"
            )
        if self.standard_error and len(self.standard_error) != ranks:
            raise ProfileError(
                f"standard_error has {counted(len(self.standard_error), 'entry', 'entries')} for {counted(ranks, 'rank')}; give one for each rank, or none"
            )
        for k, error in enumerate(self.standard_error):
            if not (math.isfinite(error) and error >= 0):
                raise ProfileError(f"standard_error[{k}] is {error}, but it must be finite and 0 or more")
        for depth, row in enumerate(self.by_depth or ()):
            _check_row(f"by_depth[{depth}]", row)
            if len(row) != ranks:
                raise ProfileError(f"by_depth[{depth}] has {counted(len(row), 'rank')}, but rank_probability has {ranks}; pad with zeros")
        if self.by_depth is not None and not self.by_depth:
            raise ProfileError("by_depth has no row; leave it out where depths were not told apart")
        if self.positions < 0 or self.prompts < 0 or any(n < 0 for n in self.prompt_positions):
            raise ProfileError(f"positions ({self.positions}), prompts ({self.prompts}) and prompt_positions are counts: 0 or more")
        if len(self.prompt_sums) != len(self.prompt_positions):
            raise ProfileError(
                f"prompt_sums has {counted(len(self.prompt_sums), 'row')}, prompt_positions {len(self.prompt_positions)}; give one of each per prompt"
            )
        if self.prompt_categories and len(self.prompt_categories) != len(self.prompt_positions):
            raise ProfileError(
                f"prompt_categories has {counted(len(self.prompt_categories), 'entry', 'entries')} for "
                f"{counted(len(self.prompt_positions), 'prompt')}; give one of each prompt"
            )
        for i, sums in enumerate(self.prompt_sums):
            if len(sums) != ranks or not all(map(math.isfinite, sums)):
                raise ProfileError(f"prompt_sums[{i}] must hold one finite sum for each of {counted(ranks, 'rank')}")
        require_levels(self.deeper, self.by_depth, len(self.prompt_sums))

    def step_settings(self, verifier: str | None = None) -> tuple[Sampling, Drafting] | None:
        """Return the settings of the steps that were profiled, which a `verifier` verifies (None: the default one); None if they are unknown.

        Children that are not random are matched, whatever the verifier. Raises SettingsError for one that does not go with the drafting.
        """
        if self.drafting not in RULES or self.temperature is None:
            return None
        sampling = Sampling(self.temperature, 1.0 if self.top_p is None else self.top_p)
        chosen = {} if verifier is None else {"verifier": verifier}
        return sampling, Drafting(self.drafting, self.draft_temperature, **chosen)

    def to_json(self) -> dict[str, Any]:
        """Return the content of the profile's file, without keys that hold nothing."""
        data: dict[str, Any] = {
            "schema": ACCEPTANCE_SCHEMA,
            "version": VERSION,
            "drafting": self.drafting,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "rank_probability": list(self.rank_probability),
            "none_accepted": self.none_accepted,
            "standard_error": list(self.standard_error),
            "positions": self.positions,
            "prompts": self.prompts,
        }
        extra = {
            "method": self.method,
            "draws": self.draws,
            "by_depth": None if self.by_depth is None else [list(row) for row in self.by_depth],
            "deeper": [level.to_json() for level in self.deeper],
            "prompt_sums": [list(row) for row in self.prompt_sums],
            "prompt_positions": list(self.prompt_positions),
            "prompt_categories": list(self.prompt_categories),
            "prompt_set": self.prompt_set,
            "pair_sha256": self.pair_sha256,
            "dynamic": None if self.dynamic is None else self.dynamic.to_json(),
            "provenance": self.provenance,
        }
        if self.draft_temperature is not None:
            data["draft_temperature"] = self.draft_temperature
        return data | {key: value for key, value in extra.items() if value}

    def summary(self) -> dict[str, Any]:
        """Return the profile as plain data without its raw sums."""
        grown = {} if self.dynamic is None else {"dynamic": asdict(self.dynamic.grid)}
        categories = {} if not self.prompt_categories else {"by_category": self.by_category}
        return {key: value for key, value in self.to_json().items() if key not in _RAW} | grown | categories

    @property
    def levels(self) -> tuple[LevelSums, ...]:
        """The sums of each prompt at the first level and at those of `deeper`; empty if the profile has none."""
        return (LevelSums(self.prompt_sums, self.prompt_positions), *self.deeper) if any(self.prompt_positions) else ()

    @property
    def by_category(self) -> list[dict[str, Any]]:
        """Return the figures of each category of prompts; none if the data set names none."""
        return by_category(self.prompt_categories, self.prompt_sums, self.prompt_positions)

    def drawing(self, ranks: int | None = None) -> Drawing:
        """Return the chances of the first `ranks` ranks (None: all that a table may have) with standard errors and running sums."""
        return Drawing(acceptance(self.summary(), ranks))

    def __repr__(self) -> str:
        ranks = len(self.rank_probability)
        counts = {"positions": self.positions, "prompts": self.prompts}
        return in_short(
            self, drafting=self.drafting, temperature=self.temperature, **counts, ranks=ranks, first_choice=self.rank_probability[0]
        )

    def write(self, path: StrPath) -> None:
        """Write the file whole or not at all. Raises OutputError."""
        write_json(path, self.to_json())


def read_acceptance(path: StrPath) -> AcceptanceProfile:
    """Read a `treeopt.acceptance` file, or a Sequoia acceptance vector (`.pt`). Raises ProfileError."""
    path = path if isinstance(path, PipeablePath) else PipeablePath(path)  # it is read once
    content = read_bytes(path, limit=MAX_JSON_BYTES, error=ProfileError)
    if content.startswith(b"PK") or os.fspath(path).lower().endswith((".pt", ".pth")):
        _refuse_json(path, content)
        return _read_vector(path)
    data = Fields(path, read_json(path, schema=ACCEPTANCE_SCHEMA, version=VERSION, error=ProfileError))
    return data.build(
        lambda: AcceptanceProfile(
            drafting=data.text("drafting"),
            temperature=data.optional("temperature", number),
            top_p=data.optional("top_p", number),
            rank_probability=data.get("rank_probability", numbers),
            none_accepted=data.get("none_accepted", number),
            standard_error=data.get("standard_error", numbers),
            positions=data.get("positions", count),
            prompts=data.get("prompts", count),
            method=data.text("method", ""),
            draft_temperature=data.optional("draft_temperature", number),
            draws=data.optional("draws", count),
            by_depth=data.optional("by_depth", rows),
            deeper=data.get("deeper", levels_of, []),
            prompt_sums=data.get("prompt_sums", rows, []),
            prompt_positions=data.get("prompt_positions", counts, []),
            prompt_categories=data.get("prompt_categories", lambda value: tuple(map(text, listed(value))), []),
            prompt_set=data.optional("prompt_set", checked_object(ROWS)),
            pair_sha256=data.text("pair_sha256", ""),
            dynamic=data.optional("dynamic", dynamic_acceptance_of),
            provenance=data.optional("provenance", provenance_fields),
        )
    )


def _refuse_json(path: StrPath, content: bytes) -> None:
    """Raise ProfileError for a profile of treeopt under the name of a vector."""
    if schema_of(content) == ACCEPTANCE_SCHEMA:
        raise ProfileError(f"{path} is an acceptance profile in JSON, but its name is that of a .pt file; rename it to .json")


def _read_vector(path: StrPath) -> AcceptanceProfile:
    ranks, none_accepted = read_vector(path)
    try:
        return AcceptanceProfile(
            drafting="unknown",
            temperature=None,
            top_p=None,
            rank_probability=ranks,
            none_accepted=none_accepted,
            standard_error=(),
            positions=0,
            prompts=0,
            method="acceptance vector",
        )
    except ProfileError as e:
        raise ProfileError(f"{path}: {e}") from e


def _check_row(name: str, row: Sequence[float]) -> None:
    if not row:
        raise ProfileError(f"{name} is empty, but at least one rank is needed")
    for k, p in enumerate(row):
        if not 0 <= p <= 1:  # also true for NaN
            raise ProfileError(f"{name}[{k}] is {p}, but a probability lies in [0, 1]; measure again")
    if math.fsum(row) > 1 + _SUM_SLACK:
        raise ProfileError(f"{name} adds up to {math.fsum(row):.6g}, but ranks exclude one another: at most 1; measure again")
