"""The engine of models that stay loaded: what it captured for one text serves the next ones too."""

from collections.abc import Callable

from treespec.decoding.engine import Engine
from treespec.models.drafts import Draft
from treespec.models.tree_model import TreeModel

_NAME = "_engine_of_texts"


def engine_of(target: TreeModel, draft: Draft | None, notice: Callable[[str], None] | None = None) -> Engine | None:
    """Return the engine of a target and its draft, made now or before; None where nothing can be captured.

    It lives as long as the target, or until another draft comes. `notice` is that of `Engine`, for one that is made now.

    It stands in the target's own attributes: in a table beside it, its captured steps would keep the models in memory for ever.
    """
    if target.device.type != "cuda":
        return None
    known: dict[bool, Engine] = vars(target).setdefault(_NAME, {})
    alone = draft is None
    if alone not in known or known[alone].draft is not draft:
        known[alone] = Engine(target, draft, notice)
    return known[alone]
