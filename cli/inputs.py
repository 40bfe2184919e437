"""From options to models and prompts; whatever is cheap to get wrong is found out before a model is loaded."""

from typing import TYPE_CHECKING

from treeopt.cli.options import ModelOptions, PromptOptions
from treeopt.cli.output import note

if TYPE_CHECKING:
    from treespec.models.loading import Pair
    from treespec.prompts import PromptSet


def resolve_device(device: str) -> str:
    """`auto` becomes `cuda` where there is a GPU, else `cpu`."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def load_models(models: ModelOptions) -> "Pair":
    """The pair; its draft is None if there is none."""
    from treespec.models.loading import load_pair

    return load_pair(
        models.target,
        models.draft,
        device=resolve_device(models.device),
        dtype=models.dtype,
        revision=models.revision,
        draft_revision=models.draft_revision,
    )


def load_inputs(models: ModelOptions, rows: PromptOptions, *, continuation_len: int = 0) -> "tuple[Pair, PromptSet]":
    """The pair and the prompts: these first, where the target comes with a tokenizer, since they are quick to fail."""
    from treespec.models.loading import has_tokenizer, load_tokenizer

    if has_tokenizer(models.target, revision=models.revision):
        prompts = _load_prompts(rows, load_tokenizer(models.target, revision=models.revision), None, continuation_len)
        return load_models(models), prompts
    pair = load_models(models)
    return pair, _load_prompts(rows, pair.tokenizer, pair.target.vocabulary_size, continuation_len)
