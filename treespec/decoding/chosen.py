"""ChosenBudget: the budget of dynamic trees that was chosen for a pair, with what it promises and where it comes from, as versioned JSON. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from treespec.decoding.plans import DynamicBudget
from treespec.errors import GrowMapError, SettingsError
from treespec.files.fields import Fields, natural
from treespec.files.provenance import Provenance
from treespec.files.reading import StrPath, read_json
from treespec.files.writing import write_json
from treespec.tables import Drawing, Drawn, figures, in_short
from treespec.trees.drawing import promised
from treespec.trees.growmap import Promise, metadata_of, promise_of

BUDGET_SCHEMA, VERSION = "treeopt.budget", 1


@dataclass(frozen=True)
class ChosenBudget(Drawn):
    """A dynamic budget, its metadata (those of a growmap: expected tokens per step, predicted seconds, ...) and the provenance of both."""

    noun: ClassVar[str] = "budget"

    plan: DynamicBudget
    metadata: Mapping[str, Any] = field(default_factory=dict)
    provenance: Provenance | None = None

    @property
    def promise(self) -> Promise:
        """Return what its metadata promise."""
        return promise_of(self.metadata)

    def summary(self) -> dict[str, Any]:
        """Return the budget, its promise and its other metadata as plain data."""
        return self.plan.describe() | {"metadata": dict(self.metadata)}

    def drawing(self) -> Drawing:
        """Return the budget and its promise as a table."""
        named = {"size": "size (root included)", "depth": "depth (draft passes per step)", "width": "level width"}
        shape = [(name, str(getattr(self.plan, key))) for key, name in named.items()]
        return Drawing([figures("dynamic budget", [*shape, *promised(self.metadata)])])

    def __repr__(self) -> str:
        promise = self.promise
        return in_short(self, **self.plan.describe(), tokens_per_step=promise.tokens_per_step, speedup=promise.speedup)

    def write(self, path: StrPath) -> None:
        """Write the file whole or not at all. Raises OutputError."""
        provenance = None if self.provenance is None else self.provenance.to_json()
        content = {"schema": BUDGET_SCHEMA, "version": VERSION, **self.plan.describe()}
        write_json(path, content | {"metadata": dict(self.metadata), "provenance": provenance})


def read_budget(path: StrPath) -> ChosenBudget:
    """Read a chosen budget. Raises GrowMapError for a file that is damaged or something else."""
    data = Fields(path, read_json(path, schema=BUDGET_SCHEMA, version=VERSION, error=GrowMapError), GrowMapError)
    size, depth, width = (data.get(key, natural) for key in ("size", "depth", "width"))
    try:
        plan = DynamicBudget(size, depth, width)
    except SettingsError as e:
        in_file = str(e).replace("`", "'")  # the names are those of keys, and not of parameters
        raise GrowMapError(f"{path} holds no budget: {in_file}") from e
    return ChosenBudget(plan, data.get("metadata", metadata_of, {}), data.optional("provenance", Provenance.from_json))
