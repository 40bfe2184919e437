"""The facts that models' files give before a weight is read, and the check that two models can decode together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from treespec.data.pictures import PictureShape
from treespec.errors import ModelError, counted
from treespec.models import families
from treespec.models.loading import quantization_of, require_model, tokenizer_or_none
from treespec.models.vision import is_vision, picture_shape
from treespec.models.vocabularies import known_ids, require_same_vocabulary, shared_rows


@dataclass(frozen=True)
class ModelInfo:
    """The facts about a model that its files give without its weights. It has the same attribute names as TreeModel."""

    name: str
    revision: str | None
    tokenizer: PreTrainedTokenizerBase | None
    """The tokenizer; None if the model's files have none."""
    shape: PictureShape | None
    """The shape of its pictures; None if it reads text only."""
    vocabulary_size: int
    """Number of embedding rows, which its tokenizer may exceed; in a pair, the number of logits that both models share."""
    max_positions: int | None
    passed_over: int | None = None
    """The target's picture token, for a draft that reads text only."""
    quantization: str | None = None
    """The type of its weights, if they come quantised in a GGUF file."""
    adapter: str | None = None
    """The folder of an adapter that is merged into its weights."""
    rope_note: str = ""
    """See `Family.rope_note`."""

    @classmethod
    def of(cls, name: str, revision: str | None = None, adapter: str | None = None) -> "ModelInfo":
        """Read the facts about a folder or a hub id. Raises ModelError if its files or its configuration rule it out."""
        config = require_model(name, revision, adapter=adapter)
        shape = picture_shape(config, name) if is_vision(config) else None
        rows = int(config.get_text_config(decoder=True).vocab_size)
        family = families.check(config, name)
        found = tokenizer_or_none(name, revision)
        stored = quantization_of(name, revision)
        return cls(
            name, revision, found, shape, rows, family.max_positions, quantization=stored, adapter=adapter, rope_note=family.rope_note
        )

    def positions_of(self, prompt: Sequence[int]) -> int:
        """Return the number of positions that a prompt takes."""
        return sum(token != self.passed_over for token in prompt)


def drafts_of(target: ModelInfo, drafts: Sequence[str]) -> tuple[ModelInfo, ...]:
    """Return the facts about several drafts, each fitted to the target as by `fitting`. Raises ModelError."""
    return tuple(fitting(target, ModelInfo.of(name))[1] for name in drafts)


def fitting(target: ModelInfo, draft: ModelInfo) -> tuple[ModelInfo, ModelInfo]:
    """Return target and draft with the vocabulary that they share when they decode together. Raises ModelError if they do not fit."""
    _require_same_pictures(target.name, target.shape, draft.name, draft.shape)
    if target.shape is not None and draft.shape is None:
        known_ids(target.name, target.tokenizer, draft.name, draft.tokenizer)
        return target, replace(draft, vocabulary_size=target.vocabulary_size, passed_over=target.shape.token_id)
    require_same_vocabulary(target.name, target.tokenizer, draft.name, draft.tokenizer)
    rows = target.vocabulary_size, draft.vocabulary_size
    ids = shared_rows(target.name, target.tokenizer, rows[0], draft.name, draft.tokenizer, rows[1])
    return replace(target, vocabulary_size=ids), replace(draft, vocabulary_size=ids)


def _require_same_pictures(target: str, shape: PictureShape | None, draft: str, draft_shape: PictureShape | None) -> None:
    """Raise ModelError unless a draft that sees pictures sees them in the same shape and at the same token as the target."""
    if draft_shape is None or draft_shape == shape:
        return
    if shape is None:
        raise ModelError(f"draft {draft} sees pictures, but target {target} reads text only; use a text-only draft")
    if draft_shape.token_id != shape.token_id:
        raise ModelError(
            f"the picture token is {shape.token_id} for target {target}, but {draft_shape.token_id} for draft {draft}; use a draft of the target's own tokens"
        )
    raise ModelError(
        f"a picture is {counted(shape.rows, 'row')} of {counted(shape.pixels, 'pixel')} squared for target {target}, but "
        f"{counted(draft_shape.rows, 'row')} of {draft_shape.pixels} "
        f"for draft {draft}; use a draft with the target's image_size, patch_size and vision_feature_select_strategy"
    )
