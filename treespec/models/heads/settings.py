"""The settings in a head's config.json: read by type, and held against the weights, which are believed where both speak of one thing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from treespec.errors import ModelError
from treespec.models.heads.files import HeadFiles

ROPES: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}
"""The kinds of rotary positions that do not change as a text grows, with the numbers that each needs."""
_CORRECT = "correct config.json, or download the head again"


@dataclass(frozen=True)
class Settings:
    """The settings of a head, or a part of them."""

    name: str
    """The name of the head in messages."""
    values: Mapping[str, Any]

    @classmethod
    def of(cls, files: HeadFiles) -> "Settings":
        """Return all settings of a head."""
        return cls(files.name, files.config)

    def inside(self, key: str) -> "Settings":
        """Return the settings of an object in these; none if there is no such object. Raises ModelError for what is none."""
        found = self.values.get(key)
        if found is not None and not isinstance(found, dict):
            self.refuse(key, "an object")
        return Settings(self.name, found or {})

    def refuse(self, key: str, needed: str) -> NoReturn:
        """Raise ModelError for a setting that is not what is needed."""
        found = self.values.get(key)
        if found is None:
            raise ModelError(f"{self.name}: no config.json says {key}, which must be {needed}; {_CORRECT}")
        raise ModelError(f"{self.name}: {key} in config.json is {found!r:.60}, but it must be {needed}; {_CORRECT}")

    def count(self, key: str, default: int | None = None) -> int:
        """Return a whole number of 1 or more, or the default if there is none. Raises ModelError for other values, and without both."""
        found = self.values.get(key)
        if found is None and default is not None:
            return default
        if type(found) is not int or found < 1:
            self.refuse(key, "a whole number, 1 or more")
        return found

    def number(self, key: str, default: float) -> float:
        """Return a number above 0, or the default if there is none. Raises ModelError for other values."""
        found = self.values.get(key)
        if found is None:
            return default
        if type(found) not in (int, float) or not 0 < found < float("inf"):
            self.refuse(key, "a number above 0")
        return float(found)

    def flag(self, key: str) -> bool | None:
        """Return whether something is so; None if the setting is not there. Raises ModelError for other values."""
        found = self.values.get(key)
        if found is not None and type(found) is not bool:
            self.refuse(key, "true or false")
        return found

    def ids(self, key: str) -> tuple[int, ...] | None:
        """Return a list of whole numbers that rise from 0 or more; None if there is none. Raises ModelError for other values."""
        found = self.values.get(key)
        if found is None or found == []:
            return None
        if not isinstance(found, list) or any(type(each) is not int for each in found) or found != sorted({-1, *found})[1:]:
            self.refuse(key, "a list of layers, each a whole number of 0 or more and above the one before it")
        return tuple(found)

    def require_agreement(self, key: str, held: int, where: str) -> None:
        """Raise ModelError if a size is told and differs from the one that the weights have."""
        told = self.values.get(key)
        if told is not None and told != held:
            raise ModelError(f"{self.name}: {key} in config.json is {told!r:.40}, but {where} has {held}; {_CORRECT}")

    def require_vocabulary(self, kind: str, target: str, held: int) -> None:
        """Raise ModelError if a vocabulary is told, as `vocab_size`, and is not that of the target."""
        told = self.values.get("vocab_size")
        if told is not None and told != held:
            raise ModelError(
                f"{self.name}: vocab_size in config.json is {told!r:.40}, but {kind} for target {target} has {held}; use a head made for this "
                f"target, or {_CORRECT}"
            )

    def require_flag(self, key: str, held: bool, tensors: str) -> None:
        """Raise ModelError if config.json says of tensors that they are there and they are not, or that they are not and they are."""
        told = self.flag(key)
        if told is not None and told != held:
            has = "hold" if held else "lack"
            raise ModelError(f"{self.name}: {key} in config.json is {str(told).lower()}, but its files {has} {tensors}; {_CORRECT}")

    def rope(self) -> dict[str, Any]:
        """Return the rotary positions in the words of transformers 5. Raises ModelError for kinds that change as a text grows.

        Older configurations have `rope_theta` and `rope_scaling`, newer ones `rope_parameters`.
        """
        key = "rope_parameters" if self.values.get("rope_parameters") else "rope_scaling"
        inside = self.inside(key)
        kind = inside.values.get("rope_type", inside.values.get("type", "default"))
        if kind not in ROPES:
            raise ModelError(
                f"{self.name}: its rotary positions are of the kind {kind!r:.40}, but heads are run with {', '.join(ROPES)} only; use another head"
            )
        for needed in ROPES[kind]:
            if inside.values.get(needed) is None:
                raise ModelError(f"{self.name}: {key} in config.json lacks {needed}, which the kind {kind} needs; {_CORRECT}")
            inside.number(needed, 0.0)
        theta = inside.number("rope_theta", self.number("rope_theta", 10_000.0))
        return {**inside.values, "rope_type": kind, "rope_theta": theta}
