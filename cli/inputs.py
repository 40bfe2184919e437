"""From options to models and prompts; whatever is cheap to get wrong is found out before a model is loaded."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    from treespec.models.loading import EMBEDDED, TOKENIZER_FILES, load_tokenizer
    from treespec.prompts import load_prompts

    limits: dict[str, Any] = {"num_prompts": rows.num_prompts, "prompt_len": rows.prompt_len, "start": rows.start, "end": rows.end}
    folder = EMBEDDED.get(models.target) or Path(models.target).expanduser()
    if folder.is_dir() and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        pair = load_models(models)
        size = pair.target.vocabulary_size
        prompts = load_prompts(rows.dataset, pair.tokenizer, **limits, continuation_len=continuation_len, vocabulary_size=size)
    else:
        tokenizer = load_tokenizer(models.target, revision=models.revision)
        prompts = load_prompts(rows.dataset, tokenizer, **limits, continuation_len=continuation_len)
        pair = load_models(models)
    if len(prompts) < rows.num_prompts:
        note(
            f"{len(prompts)} prompts of the {rows.num_prompts} asked for: {prompts.skipped} of {prompts.end - prompts.start} rows are too short"
        )
    return pair, prompts
