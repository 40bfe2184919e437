"""Two models that decode together: checked to read the same tokens and pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from treespec.errors import ModelError
from treespec.models.loading import load_model, load_picture_reader, shape_of, tokenizer_or_none
from treespec.models.offload import streamed_bytes
from treespec.models.text_draft import TextDraft
from treespec.models.tree_model import TreeModel
from treespec.models.vision import Vision, is_vision, text_module
from treespec.models.vocabularies import known_ids, require_same_vocabulary, shared_rows
from treespec.pictures import PictureReader, PictureShape
from treespec.prompts import Prompt
from treespec.provenance import Provenance, public_name


@dataclass(frozen=True)
class Pair:
    """A target, its draft (None: the target alone) and what they share."""

    target: TreeModel
    draft: TreeModel | None
    tokenizer: PreTrainedTokenizerBase | None
    """None where neither folder holds one: prompts must then come as token ids."""
    eos_token_ids: frozenset[int]
    """Of the target's generation config and of the tokenizer."""
    pictures: PictureReader | None = None
    """Where the target sees pictures: what makes them pixels."""

    def pixels(self, *prompts: Prompt) -> Tensor | None:
        """The pictures of prompts, float [pictures, 3, height, width] on the target's device; None of prompts without one. Raises DatasetError."""
        found = [prompt.picture for prompt in prompts if prompt.picture is not None]
        if not found:
            return None
        if self.pictures is None:
            raise ModelError(f"the prompts have pictures, but {self.target.name} reads text only; use a vision-language target")
        return torch.cat([self.pictures.pixels(picture) for picture in found]).to(self.target.device)

    def describe(self) -> dict[str, Any]:
        """What tells work with this pair from other work: names, revisions, weights, families, sizes, dtypes, device."""
        return {
            "target": _describe(self.target),
            "draft": None if self.draft is None else _describe(self.draft),
            "device": str(self.target.device),
            "dtype": str(self.target.dtype).removeprefix("torch."),
            "vocabulary_size": self.target.vocabulary_size,
            "eos_token_ids": sorted(self.eos_token_ids),
            "pictures": None if self.pictures is None else self.pictures.digest,
        }

    def provenance(self, **known: Any) -> dict[str, Any]:
        """A provenance record of work done with this pair, as plain JSON."""
        models = {role: model for role, model in (("target", self.target), ("draft", self.draft)) if model is not None}
        names = {role: recorded_name(model) for role, model in models.items()}
        offloaded = streamed_bytes(self.target.module) > 0
        return Provenance.collect(models=names, dtype=str(self.target.dtype).removeprefix("torch."), offloaded=offloaded, **known).to_json()


def recorded_name(model: TreeModel) -> str:
    """A model's name in records: without folders, with its revision where one is known."""
    revision = getattr(model.module.config, "_commit_hash", None)
    return public_name(model.name) + (f"@{revision}" if revision else "")


def load_pair(
    target: str,
    draft: str | None = None,
    *,
    device: str = "cpu",
    dtype: str = "auto",
    revision: str | None = None,
    draft_revision: str | None = None,
    offload: bool = False,
) -> Pair:
    """Load both models and check that they speak the same vocabulary. `offload` keeps the target's layers in host memory.

    Models whose logits have different numbers of rows over one and the same vocabulary (padding) are cut to the rows
    that the tokenizer has ids for: no padding row is ever drafted or emitted. Raises ModelError.
    """
    side = _Side(target, tokenizer_or_none(target, revision), shape_of(target, revision))
    theirs = None if draft is None else _fitting(side, draft, draft_revision)
    reader = None if side.shape is None else load_picture_reader(target, revision)
    module = load_model(target, device=device, dtype=dtype, revision=revision, offload=offload)
    model = tree_model(module, target)
    if theirs is None:
        return Pair(model, None, side.tokenizer, _eos(model, side.tokenizer), reader)
    partner, ids = _partner(model, side, theirs, device, dtype, draft_revision)
    if ids != model.vocabulary_size:
        model = tree_model(module, target, ids)
    spoken = side.tokenizer or theirs.tokenizer
    return Pair(model, partner, spoken, _eos(model, spoken), reader)


def load_drafts(target: Pair, drafts: Sequence[str], *, device: str = "cpu", dtype: str = "auto") -> tuple[TreeModel, ...]:
    """Several drafts for one loaded target, each checked against it as by `load_pair`. Raises ModelError."""
    seen = target.target.vision
    side = _Side(target.target.name, target.tokenizer, None if seen is None else seen.shape)
    return tuple(_partner(target.target, side, _fitting(side, name, None), device, dtype, None)[0] for name in drafts)


def tree_model(module: PreTrainedModel, name: str, vocabulary: int | None = None) -> TreeModel:
    """A loaded module, taken apart where it sees pictures, ready to run trees. Raises ModelError."""
    if not is_vision(module.config):
        return TreeModel(module, name=name, vocabulary=vocabulary)
    return TreeModel(text_module(module), name=name, vocabulary=vocabulary, vision=Vision(module, name))


@dataclass(frozen=True)
class _Side:
    """What a model takes in: tokens (None: no tokenizer comes with it) and pictures (None: it reads text only)."""

    name: str
    tokenizer: PreTrainedTokenizerBase | None
    shape: PictureShape | None


def _fitting(target: _Side, draft: str, revision: str | None) -> _Side:
    """A draft's, which must fit the target's: found out before any weight is read. Raises ModelError."""
    found = _Side(draft, tokenizer_or_none(draft, revision), shape_of(draft, revision))
    _require_same_pictures(target.name, target.shape, draft, found.shape)
    if target.shape is not None and found.shape is None:
        known_ids(target.name, target.tokenizer, draft, found.tokenizer)
    else:
        require_same_vocabulary(target.name, target.tokenizer, draft, found.tokenizer)
    return found


def _partner(target: TreeModel, side: _Side, draft: _Side, device: str, dtype: str, revision: str | None) -> tuple[TreeModel, int]:
    """(The draft, how many of the target's logits count beside it.) Raises ModelError."""
    module = load_model(draft.name, device=device, dtype=dtype, revision=revision)
    if side.shape is not None and draft.shape is None:
        known, all_of_them = known_ids(side.name, side.tokenizer, draft.name, draft.tokenizer), target.vocabulary_size
        return TextDraft(module, name=draft.name, shared=known, vocabulary=all_of_them, picture=side.shape.token_id), all_of_them
    model = tree_model(module, draft.name)
    rows = target.vocabulary_size, model.vocabulary_size
    ids = shared_rows(side.name, side.tokenizer, rows[0], draft.name, draft.tokenizer, rows[1])
    return (model if rows == (ids, ids) else tree_model(module, draft.name, ids)), ids


def _require_same_pictures(target: str, shape: PictureShape | None, draft: str, draft_shape: PictureShape | None) -> None:
    """A draft that sees pictures must see the target's in the same places."""
    if draft_shape is None or draft_shape == shape:
        return
    if shape is None:
        raise ModelError(f"draft {draft} sees pictures, but target {target} reads text only; use a text-only draft")
    if draft_shape.token_id != shape.token_id:
        raise ModelError(
            f"the picture token is {shape.token_id} for target {target}, but {draft_shape.token_id} for draft {draft}; use a draft of the target's own tokens"
        )
    raise ModelError(
        f"a picture is {shape.rows} rows of {shape.pixels} pixels squared for target {target}, but {draft_shape.rows} rows of {draft_shape.pixels} "
        f"for draft {draft}; use a draft with the target's image_size, patch_size and vision_feature_select_strategy"
    )


def _eos(target: TreeModel, tokenizer: PreTrainedTokenizerBase | None) -> frozenset[int]:
    own = getattr(tokenizer, "eos_token_id", None)
    return target.eos_token_ids | (frozenset() if own is None else frozenset({int(own)}))


def _describe(model: TreeModel) -> dict[str, Any]:
    config = model.module.config
    return {
        "name": model.name,
        "revision": getattr(config, "_commit_hash", None),
        "family": model.family.model_type,
        "weights": getattr(model.module, "_treespec_weights", None),
        "parameters": sum(p.numel() for p in model.module.parameters()),
        "offloaded": streamed_bytes(model.module) > 0,
        "layers": config.get_text_config(decoder=True).num_hidden_layers,
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": config.get_text_config(decoder=True)._attn_implementation,
        "transformers": transformers.__version__,
    }
