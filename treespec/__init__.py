"""treespec: run a speculation tree. It has trees, growmaps, models, decoding and verification.

The public names are loaded when they are first used, so that `import treespec.errors` costs nothing more.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from treespec.errors import TreeoptError
    from treespec.files.provenance import Provenance
    from treespec.trees.growmap import GrowMap, read_growmap
    from treespec.trees.tree import SpeculationTree

__all__ = ["GrowMap", "Provenance", "SpeculationTree", "TreeoptError", "read_growmap"]

_HOME = {
    "GrowMap": "treespec.trees.growmap",
    "Provenance": "treespec.files.provenance",
    "SpeculationTree": "treespec.trees.tree",
    "TreeoptError": "treespec.errors",
    "read_growmap": "treespec.trees.growmap",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module."""
    if name not in _HOME:
        raise AttributeError(f"module 'treespec' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
