"""The look at the hub before the slow imports: whether it can be reached if a model or a data set is nowhere else."""

from typing import TYPE_CHECKING

from treespec.errors import ModelError

if TYPE_CHECKING:
    from treeopt.cli.options import ModelOptions


def check_hub(models: "ModelOptions", dataset: str | None = None) -> None:
    """Raise within seconds, before the slow imports, if a model or a data set is only on the hub and the hub cannot be reached.

    Raises DatasetError or ModelError. Folders, and models and data sets in a cache, are left to their loader.
    """
    from treespec import hub
    from treespec.data.hub_datasets import require_hub
    from treespec.models.ngram import model_beside

    if dataset is not None:
        require_hub(dataset)
    wanted = [(models.target, models.revision)] + (
        [(model_beside(models.draft) or models.draft, models.draft_revision)] if models.draft else []
    )
    remote = [(name, revision) for name, revision in wanted if is_hub_name(name)]
    if not remote or hub.is_reachable():
        return
    for name, revision in remote:
        if hub.cached_snapshot(name, revision) is None:
            raise ModelError(hub.cannot_help(name, revision))


def is_hub_name(name: str) -> bool:
    """Return whether a model's name can only lead to the hub. Raises ModelError for the home folder of an unknown user."""
    from treespec import hub
    from treespec.embedded import is_named_as_embedded
    from treespec.files.reading import user_path
    from treespec.models.ngram import NGRAM

    return name != NGRAM and not is_named_as_embedded(name) and not user_path(name, ModelError).exists() and hub.is_repository_id(name)
