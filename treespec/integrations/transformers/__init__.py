"""A tree inside transformers' `generate`: `tree_generate` as its `custom_generate`, or `folder()`, where the same lies as a folder."""

from treespec.integrations.transformers.folder import folder
from treespec.integrations.transformers.generating import tree_generate
from treespec.integrations.transformers.keeping import release

__all__ = ["folder", "release", "tree_generate"]
