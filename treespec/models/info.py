"""What models' files say before a weight is read, and whether two of them can decode together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from treespec.data.pictures import PictureShape
from treespec.errors import ModelError
from treespec.models import families
from treespec.models.loading import require_model, tokenizer_or_none
from treespec.models.vision import is_vision, picture_shape
from treespec.models.vocabularies import known_ids, require_same_vocabulary, shared_rows


@dataclass(frozen=True)
class ModelInfo:
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
    def of(cls, name: str, revision: str | None = None) -> "ModelInfo":
        """Of a folder or a hub id. Raises ModelError for what its files or its configuration rule out."""
        config = require_model(name, revision)
        shape = picture_shape(config, name) if is_vision(config) else None
        rows = int(config.get_text_config(decoder=True).vocab_size)
        return cls(name, revision, tokenizer_or_none(name, revision), shape, rows, families.check(config, name).max_positions)

    def positions_of(self, prompt: Sequence[int]) -> int:
        """How many positions a prompt takes."""
        return sum(token != self.passed_over for token in prompt)


def drafts_of(target: ModelInfo, drafts: Sequence[str]) -> tuple[ModelInfo, ...]:
    """Several drafts as each decodes with the target, before a weight is read. Raises ModelError."""
    return tuple(fitting(target, ModelInfo.of(name))[1] for name in drafts)


def fitting(target: ModelInfo, draft: ModelInfo) -> tuple[ModelInfo, ModelInfo]:
    """Return the same two as they decode together. Raises ModelError where they do not read the same."""
    _require_same_pictures(target.name, target.shape, draft.name, draft.shape)
    if target.shape is not None and draft.shape is None:
        known_ids(target.name, target.tokenizer, draft.name, draft.tokenizer)
        return target, replace(draft, vocabulary_size=target.vocabulary_size, passed_over=target.shape.token_id)
    require_same_vocabulary(target.name, target.tokenizer, draft.name, draft.tokenizer)
    rows = target.vocabulary_size, draft.vocabulary_size
    ids = shared_rows(target.name, target.tokenizer, rows[0], draft.name, draft.tokenizer, rows[1])
    return replace(target, vocabulary_size=ids), replace(draft, vocabulary_size=ids)


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
