"""PotentialReport: how close drafts come to a target, as raw sums per prompt, from which every figure is derived. No torch."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treeopt.profiles.drawing import potential
from treeopt.profiles.ratio import Estimate, estimate
from treespec.errors import ProfileError, counted
from treespec.files.fields import Fields, count, counts, listed, mapping, number, numbers, text
from treespec.files.reading import read_json
from treespec.files.writing import write_json
from treespec.tables import Drawing, Drawn, in_short

SCHEMA, VERSION = "treeopt.potential", 1

MEASURES = ("kl", "reverse_kl", "total_variation", "top1_agreement", "greedy_child")
"""Measures that are summed over the positions of a prompt; `DraftPotential` explains them."""

CHAIN_LENGTHS = (1, 2, 4, 8)
"""Lengths of the chains of drafted tokens for which tokens per step are implied; 1 is a single child."""


_MOST_NATS, _SLACK = 1e30, 1e-3
"""Largest KL divergence that is read, so that derived figures stay finite, and the room left for rounding."""


@dataclass(frozen=True)
class DraftPotential:
    """The measures of one draft: for each, the sum over the positions of each prompt. p is the target's distribution, q the draft's.

    `kl` is KL(p || q) and `reverse_kl` KL(q || p) in nats (None under top-p, where it is infinite); `total_variation` is
    1 - sum of min(p, q), so 1 - it is the chance that one token sampled from q is accepted; `top1_agreement` says whether both
    have the same most likely token; `greedy_child` is the chance that the target's choice is the draft's most likely token.
    """

    draft: str
    sums: Mapping[str, tuple[float, ...] | None]


@dataclass(frozen=True)
class PotentialReport(Drawn):
    """Drafts measured on the same `positions[i]` positions of every prompt i.

    `temperature` and `top_p` are the target's choice of tokens. Distributions are compared at `distribution_temperature`. Raises
    ProfileError.
    """

    drafts: tuple[DraftPotential, ...]
    positions: tuple[int, ...]
    method: str
    temperature: float
    top_p: float
    gen_len: int
    seed: int
    prompt_set: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Drafts that could not be measured, each with the reason."""

    def __post_init__(self) -> None:
        if not self.drafts or any(n < 0 for n in self.positions) or sum(self.positions) == 0:
            raise ProfileError("a potential report needs a draft and a position to measure it at; use longer rows")
        for draft in self.drafts:
            for name in MEASURES:
                sums, most = draft.sums.get(name), _MOST_NATS if name in ("kl", "reverse_kl") else 1.0
                if sums is None and name == "reverse_kl":
                    continue
                if (
                    sums is None
                    or len(sums) != len(self.positions)
                    or not all(abs(total) <= (most + _SLACK) * count for total, count in zip(sums, self.positions, strict=True))
                ):
                    raise ProfileError(
                        f"draft {draft.draft}: {name} must have one sum for each of {counted(len(self.positions), 'prompt')}, "
                        f"at most {most:g} per position; measure again"
                    )

    @property
    def distribution_temperature(self) -> float:
        """Temperature at which distributions are compared: the target's, or 1 if that is 0, since a greedy choice has no distribution."""
        return self.temperature or 1.0

    @property
    def ranked(self) -> tuple[DraftPotential, ...]:
        """The drafts, sorted by mean KL(target || draft), the smallest first."""
        return tuple(sorted(self.drafts, key=lambda draft: self.estimate(draft, "kl").mean))

    def estimate(self, draft: DraftPotential, measure: str) -> Estimate:
        """Return the mean of a measure per position. Raises ProfileError for a measure that was not taken."""
        return estimate(_column(draft, measure), self.positions)

    def above(self, draft: DraftPotential, best: DraftPotential) -> Estimate:
        """Return how much larger a draft's KL is than the best draft's. The difference is paired by prompt, so that the texts' own share drops out."""
        return estimate(_column(draft, "kl") - _column(best, "kl"), self.positions)

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data, with the drafts in the order of their rank."""
        best = self.ranked[0]
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "method": self.method,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "distribution_temperature": self.distribution_temperature,
            "gen_len": self.gen_len,
            "seed": self.seed,
            "prompts": len(self.positions),
            "positions": sum(self.positions),
            "drafts": [self._figures(draft, best) for draft in self.ranked],
            "left_out": [{"draft": name, "reason": reason} for name, reason in self.left_out.items()],
            "prompt_positions": list(self.positions),
            "prompt_set": self.prompt_set,
            "provenance": self.provenance,
        }

    def _figures(self, draft: DraftPotential, best: DraftPotential) -> dict[str, Any]:
        means = {name: self.estimate(draft, name) for name in MEASURES if draft.sums[name] is not None}
        children = {
            "sampled_child": (self.distribution_temperature, 1.0 - means["total_variation"].mean),
            "greedy_child": (self.temperature, means["greedy_child"].mean),
        }
        return {
            "draft": draft.draft,
            **{name: means[name].to_json() if name in means else None for name in MEASURES},
            "kl_above_best": self.above(draft, best).to_json(),
            "implied": {
                child: {
                    "temperature": temperature,
                    "acceptance": chance,
                    "tokens_per_step": [
                        {"chain": length, "tokens_per_step": chain_tokens_per_step(chance, length)} for length in CHAIN_LENGTHS
                    ],
                }
                for child, (temperature, chance) in children.items()
            },
            "sums": {name: None if sums is None else list(sums) for name, sums in draft.sums.items()},
        }

    def summary(self) -> dict[str, Any]:
        """Return the report as plain data without the raw sums."""
        data = {key: value for key, value in self.to_json().items() if key not in ("schema", "version", "prompt_positions")}
        return data | {"drafts": [{key: value for key, value in draft.items() if key != "sums"} for draft in data["drafts"]]}

    def drawing(self) -> Drawing:
        """Return the drafts by rank: their distance from the target, and the tokens per step that single chains of theirs imply."""
        return Drawing(potential(self.summary()))

    def __repr__(self) -> str:
        best = self.ranked[0]
        positions = sum(self.positions)
        return in_short(self, drafts=len(self.drafts), best=best.draft, kl=self.estimate(best, "kl").mean, positions=positions)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the report whole or not at all. Raises OutputError."""
        write_json(path, self.to_json())


def chain_tokens_per_step(acceptance: float, length: int) -> float:
    """Return 1 + a + ... + a^length: the tokens per step of a chain of which each drafted token is accepted with chance a, whatever came before.

    >>> chain_tokens_per_step(0.5, 2), chain_tokens_per_step(1.0, 3)
    (1.75, 4.0)
    """
    return math.fsum(acceptance**depth for depth in range(length + 1))


def read_potential(path: str | os.PathLike[str]) -> PotentialReport:
    """Read a report back, and compute its figures anew from its sums. Raises ProfileError."""
    data = Fields(path, read_json(path, schema=SCHEMA, version=VERSION, error=ProfileError))
    return data.build(
        lambda: PotentialReport(
            drafts=data.get("drafts", lambda value: tuple(_draft(item) for item in listed(value))),
            positions=data.get("prompt_positions", counts),
            method=data.text("method"),
            temperature=data.get("temperature", number),
            top_p=data.get("top_p", number),
            gen_len=data.get("gen_len", count),
            seed=data.get("seed", count),
            prompt_set=data.get("prompt_set", mapping, {}),
            provenance=data.get("provenance", mapping, {}),
            left_out=data.get(
                "left_out", lambda value: {text(item["draft"]): text(item["reason"]) for item in map(mapping, listed(value))}, {}
            ),
        )
    )


def _draft(value: Any) -> DraftPotential:
    sums = mapping(mapping(value)["sums"])
    return DraftPotential(text(value["draft"]), {name: None if sums[name] is None else numbers(sums[name]) for name in MEASURES})


def _column(draft: DraftPotential, measure: str) -> NDArray[np.float64]:
    sums: Sequence[float] | None = draft.sums[measure]
    if sums is None:
        raise ProfileError(
            f"draft {draft.draft} has no {measure}: it is infinite where top-p leaves tokens no chance; measure with `top_p` 1"
        )
    return np.asarray(sums, dtype=np.float64)
