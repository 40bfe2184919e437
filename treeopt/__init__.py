"""treeopt: find the speculation tree to run, from measured acceptance and latency to the fastest tree.

The public names are loaded when they are first used, so that `import treeopt` costs nothing. docs/python.md shows them.
`treeopt.profiles` holds measurements, `treeopt.profiling` takes them, and `treeopt.optimizer` finds the tree. `treespec` runs it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from treeopt.api import choose_budget, evaluate, grow, profile_acceptance, profile_latency
    from treeopt.comparing.compare import compare
    from treeopt.comparing.comparison import Comparison
    from treeopt.converting import convert
    from treeopt.exports.export import Export, export
    from treeopt.optimizer.replay_report import ReplayReport
    from treeopt.optimizer.replay_report import replay_trees as replay
    from treeopt.profiles.acceptance import AcceptanceProfile, read_acceptance
    from treeopt.profiles.budget_grid import BudgetGrid
    from treeopt.profiles.latency import LatencyProfile, read_latency
    from treeopt.profiles.trace import Trace, read_trace
    from treeopt.prompting import load_prompts, prompts
    from treeopt.tuning.api import tune
    from treeopt.tuning.result import Tuning
    from treespec.data.prompts import PromptSet
    from treespec.data.slices import ChatOptions
    from treespec.decoding.chosen import ChosenBudget, read_budget
    from treespec.decoding.drafting import Drafting
    from treespec.decoding.plans import DynamicBudget
    from treespec.errors import TreeoptError
    from treespec.evaluation.report import EvaluationReport, read_report
    from treespec.models.given import pair_of as pair
    from treespec.models.pairs import Pair, Target, load_pair, load_target
    from treespec.text.generated import Generated
    from treespec.text.generation import generate, stream
    from treespec.trees.growmap import GrowMap, read_growmap
    from treespec.trees.tree import SpeculationTree

__version__ = "0.1.0"

__all__ = [
    "AcceptanceProfile",
    "BudgetGrid",
    "ChatOptions",
    "ChosenBudget",
    "Comparison",
    "Drafting",
    "DynamicBudget",
    "EvaluationReport",
    "Export",
    "Generated",
    "GrowMap",
    "LatencyProfile",
    "Pair",
    "PromptSet",
    "ReplayReport",
    "SpeculationTree",
    "Target",
    "Trace",
    "TreeoptError",
    "Tuning",
    "choose_budget",
    "compare",
    "convert",
    "evaluate",
    "export",
    "generate",
    "grow",
    "load_pair",
    "load_prompts",
    "load_target",
    "pair",
    "profile_acceptance",
    "profile_latency",
    "prompts",
    "read_acceptance",
    "read_budget",
    "read_growmap",
    "read_latency",
    "read_report",
    "read_trace",
    "replay",
    "stream",
    "tune",
]

_HOME = {
    "AcceptanceProfile": "treeopt.profiles.acceptance",
    "BudgetGrid": "treeopt.profiles.budget_grid",
    "ChatOptions": "treespec.data.slices",
    "ChosenBudget": "treespec.decoding.chosen",
    "Comparison": "treeopt.comparing.comparison",
    "Drafting": "treespec.decoding.drafting",
    "DynamicBudget": "treespec.decoding.plans",
    "EvaluationReport": "treespec.evaluation.report",
    "Export": "treeopt.exports.export",
    "Generated": "treespec.text.generated",
    "GrowMap": "treespec.trees.growmap",
    "LatencyProfile": "treeopt.profiles.latency",
    "Pair": "treespec.models.pairs",
    "PromptSet": "treespec.data.prompts",
    "ReplayReport": "treeopt.optimizer.replay_report",
    "SpeculationTree": "treespec.trees.tree",
    "Target": "treespec.models.pairs",
    "Trace": "treeopt.profiles.trace",
    "TreeoptError": "treespec.errors",
    "choose_budget": "treeopt.api",
    "compare": "treeopt.comparing.compare",
    "convert": "treeopt.converting",
    "Tuning": "treeopt.tuning.result",
    "evaluate": "treeopt.api",
    "export": "treeopt.exports.export",
    "generate": "treespec.text.generation",
    "grow": "treeopt.api",
    "load_pair": "treespec.models.pairs",
    "load_prompts": "treeopt.prompting",
    "load_target": "treespec.models.pairs",
    "pair": "treespec.models.given",
    "profile_acceptance": "treeopt.api",
    "profile_latency": "treeopt.api",
    "prompts": "treeopt.prompting",
    "read_acceptance": "treeopt.profiles.acceptance",
    "read_budget": "treespec.decoding.chosen",
    "read_growmap": "treespec.trees.growmap",
    "read_latency": "treeopt.profiles.latency",
    "read_report": "treespec.evaluation.report",
    "read_trace": "treeopt.profiles.trace",
    "replay": "treeopt.optimizer.replay_report",
    "stream": "treespec.text.generation",
    "tune": "treeopt.tuning.api",
}
_NAMED_THERE = {"pair": "pair_of", "replay": "replay_trees"}
"""The names that are others in their modules."""


def __getattr__(name: str) -> Any:
    """Load a public name from its module."""
    if name not in _HOME:
        raise AttributeError(f"module 'treeopt' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), _NAMED_THERE.get(name, name))


def __dir__() -> list[str]:
    """Return the public names and those of the submodules that are loaded."""
    return sorted({*globals(), *__all__})
