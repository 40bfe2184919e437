"""Two models that decode together: checked to read the same tokens and pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from treespec.data.pictures import PictureReader, PictureShape
from treespec.data.prompts import Prompt
from treespec.errors import ModelError
from treespec.files.provenance import Provenance, public_name
from treespec.models import families
from treespec.models.loaded import LoadedModel
from treespec.models.loading import load_model, load_picture_reader, require_model, tokenizer_or_none
from treespec.models.text_draft import TextDraft
from treespec.models.tree_model import TreeModel
from treespec.models.vision import Vision, is_vision, picture_shape, text_module
from treespec.models.vocabularies import known_ids, require_same_vocabulary, shared_rows


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
        offloaded = self.target.loaded.streamed > 0
        return Provenance.collect(models=names, dtype=str(self.target.dtype).removeprefix("torch."), offloaded=offloaded, **known).to_json()


def recorded_name(model: TreeModel) -> str:
    """A model's name in records: without folders, with its revision where one is known."""
    revision = model.loaded.revision
    return public_name(model.name) + (f"@{revision}" if revision else "")


@dataclass(frozen=True)
class Outline:
    """What a model's files say before a weight is read, under the names that `TreeModel` has for it."""

    name: str
    revision: str | None
    tokenizer: PreTrainedTokenizerBase | None
    """None where none comes with the model."""
    shape: PictureShape | None
    """None where it reads text only."""
    vocabulary_size: int
    """Embedding rows, which its tokenizer may exceed; in a pair, the logits that count beside the other."""
    max_positions: int | None
    passed_over: int | None = None
    """The target's picture token, for a draft that reads text only."""

    @classmethod
    def of(cls, name: str, revision: str | None = None) -> "Outline":
        """Of a folder or a hub id. Raises ModelError for what its files or its configuration rule out."""
        config = require_model(name, revision)
        shape = picture_shape(config, name) if is_vision(config) else None
        rows = int(config.get_text_config(decoder=True).vocab_size)
        return cls(name, revision, tokenizer_or_none(name, revision), shape, rows, families.check(config, name).max_positions)

    def positions_of(self, prompt: Sequence[int]) -> int:
        """How many positions a prompt takes."""
        return sum(token != self.passed_over for token in prompt)


@dataclass(frozen=True)
class PairOutline:
    """A target and its draft (None: the target alone) that were found to fit each other before a weight is read."""

    target: Outline
    draft: Outline | None

    @classmethod
    def of(cls, target: str, draft: str | None = None, *, revision: str | None = None, draft_revision: str | None = None) -> "PairOutline":
        """Of folders or hub ids. Raises ModelError as `load_pair` does, but for weights and devices."""
        known = Outline.of(target, revision)
        return cls(known, None) if draft is None else cls(*_fitting(known, Outline.of(draft, draft_revision)))

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """See `Pair`."""
        return self.target.tokenizer or (None if self.draft is None else self.draft.tokenizer)

    def load(self, *, device: str = "cpu", dtype: str = "auto", offload: bool = False) -> Pair:
        """See `load_pair`. Raises ModelError."""
        name, revision = self.target.name, self.target.revision
        reader = None if self.target.shape is None else load_picture_reader(name, revision)
        loaded = load_model(name, device=device, dtype=dtype, revision=revision, offload=offload)
        model = tree_model(loaded, name, self.target.vocabulary_size)
        draft = None if self.draft is None else _load_draft(self.target, self.draft, device, dtype)
        return Pair(model, draft, self.tokenizer, _eos(model, self.tokenizer), reader)


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
    that the tokenizer has ids for: no padding row is ever drafted or emitted. What their files rule out is found out before
    any weight is read. Raises ModelError.
    """
    known = PairOutline.of(target, draft, revision=revision, draft_revision=draft_revision)
    return known.load(device=device, dtype=dtype, offload=offload)


def load_drafts(target: Pair, drafts: Sequence[str], *, device: str = "cpu", dtype: str = "auto") -> tuple[TreeModel, ...]:
    """Several drafts for one loaded target, each checked against it as by `load_pair`. Raises ModelError."""
    model = target.target
    shape = None if model.vision is None else model.vision.shape
    known = Outline(model.name, None, target.tokenizer, shape, model.vocabulary_size, model.max_positions)
    return tuple(_load_draft(known, draft, device, dtype) for draft in drafts_of(known, drafts))


def drafts_of(target: Outline, drafts: Sequence[str]) -> tuple[Outline, ...]:
    """Several drafts as each decodes with the target, before a weight is read. Raises ModelError."""
    return tuple(_fitting(target, Outline.of(name))[1] for name in drafts)


def tree_model(model: PreTrainedModel | LoadedModel, name: str, vocabulary: int | None = None) -> TreeModel:
    """Make a model run trees; one that sees pictures is taken apart. Raises ModelError."""
    loaded = LoadedModel.of(model)
    if not is_vision(loaded.module.config):
        return TreeModel(loaded, name=name, vocabulary=vocabulary)
    text = replace(loaded, module=text_module(loaded.module))
    return TreeModel(text, name=name, vocabulary=vocabulary, vision=Vision(loaded.module, name))


def _fitting(target: Outline, draft: Outline) -> tuple[Outline, Outline]:
    """The same two as they decode together. Raises ModelError where they do not read the same."""
    _require_same_pictures(target.name, target.shape, draft.name, draft.shape)
    if target.shape is not None and draft.shape is None:
        known_ids(target.name, target.tokenizer, draft.name, draft.tokenizer)
        return target, replace(draft, vocabulary_size=target.vocabulary_size, passed_over=target.shape.token_id)
    require_same_vocabulary(target.name, target.tokenizer, draft.name, draft.tokenizer)
    rows = target.vocabulary_size, draft.vocabulary_size
    ids = shared_rows(target.name, target.tokenizer, rows[0], draft.name, draft.tokenizer, rows[1])
    return replace(target, vocabulary_size=ids), replace(draft, vocabulary_size=ids)


def _load_draft(target: Outline, draft: Outline, device: str, dtype: str) -> TreeModel:
    """A draft that fits its target. Raises ModelError."""
    loaded = load_model(draft.name, device=device, dtype=dtype, revision=draft.revision)
    if draft.passed_over is None:
        return tree_model(loaded, draft.name, draft.vocabulary_size)
    known = known_ids(target.name, target.tokenizer, draft.name, draft.tokenizer)
    return TextDraft(loaded, name=draft.name, shared=known, vocabulary=draft.vocabulary_size, picture=draft.passed_over)


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
        "revision": model.loaded.revision,
        "family": model.family.model_type,
        "weights": model.loaded.digest,
        "parameters": sum(p.numel() for p in model.module.parameters()),
        "offloaded": model.loaded.streamed > 0,
        "layers": config.get_text_config(decoder=True).num_hidden_layers,
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": config.get_text_config(decoder=True)._attn_implementation,
        "transformers": transformers.__version__,
    }
