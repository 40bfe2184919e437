"""From options to models and prompts; whatever is cheap to get wrong is found out before a model is loaded."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from treeopt.cli.options import ModelOptions, PromptOptions, SamplingOptions
from treeopt.cli.output import note
from treespec.errors import DatasetError, ModelError

if TYPE_CHECKING:
    from treespec.models.loading import Pair
    from treespec.prompts import PromptSet

EMBEDDED_NAMES = ("embedded-target", "embedded-draft")
"""Models that are always there; `treespec.models.loading` says where, but is slow to import."""


def resolve_device(device: str) -> str:
    """`auto` becomes `cuda` where there is a GPU, else `cpu`."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def note_unused(sampling: SamplingOptions) -> None:
    """Say on stderr that an option that was given changes nothing."""
    if sampling.drafting == "topk" and sampling.draft_temperature is not None:
        note("topk drafts the most likely tokens at any draft temperature, so --draft-temperature changes nothing")


def check_hub(models: ModelOptions, rows: PromptOptions | None = None) -> None:
    """Raise within seconds, before the slow imports, for what only a hub that cannot be reached could give.

    Raises DatasetError or ModelError. Folders and cached models are left to their loader.
    """
    from treespec.hub_datasets import HUB_DATASETS
    from treespec.models import hub

    dataset = rows.dataset if rows is not None and rows.dataset in HUB_DATASETS else None
    wanted = [(models.target, models.revision)] + ([(models.draft, models.draft_revision)] if models.draft is not None else [])
    remote = [(name, revision) for name, revision in wanted if _is_hub_name(name)]
    if (dataset is None and not remote) or hub.is_reachable():
        return
    if dataset is not None:
        raise DatasetError(
            f"data set {dataset} lives on the hub, but {hub.endpoint()} cannot be reached (or offline mode is set); "
            "pass --dataset PATH with a local .jsonl, .parquet or .txt file, or --dataset stdlib, which needs no network"
        )
    from huggingface_hub import try_to_load_from_cache

    for name, revision in remote:
        if not isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
            raise ModelError(
                f"the hub ({hub.endpoint()}) cannot be reached and {name} is not in the local cache; give a local folder instead"
            )


def _is_hub_name(name: str) -> bool:
    from treespec.models import hub

    return name not in EMBEDDED_NAMES and not Path(name).expanduser().exists() and hub.is_repository_id(name)


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
    from treespec.models.loading import EMBEDDED, TOKENIZER_FILES, load_picture_reader, load_tokenizer, shape_of
    from treespec.pictures import PROMPT
    from treespec.prompts import load_prompts

    limits: dict[str, Any] = {"num_prompts": rows.num_prompts, "prompt_len": rows.prompt_len, "start": rows.start, "end": rows.end}
    folder = EMBEDDED.get(models.target) or Path(models.target).expanduser()
    if folder.is_dir() and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        pair = load_models(models)
        size = pair.target.vocabulary_size
        prompts = load_prompts(rows.dataset, pair.tokenizer, **limits, continuation_len=continuation_len, vocabulary_size=size)
    else:
        tokenizer = load_tokenizer(models.target, revision=models.revision)
        seeing = shape_of(models.target, models.revision) is not None
        pictures = load_picture_reader(models.target, models.revision) if seeing else None
        asked = PROMPT if rows.prompt is None else rows.prompt
        prompts = load_prompts(
            rows.dataset, tokenizer, **limits, continuation_len=continuation_len, pictures=pictures, picture_prompt=asked
        )
        pair = load_models(models)
    if len(prompts) < rows.num_prompts:
        note(
            f"{len(prompts)} prompts of the {rows.num_prompts} asked for: {prompts.skipped} of {prompts.end - prompts.start} rows are too short"
        )
    return pair, prompts
