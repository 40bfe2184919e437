"""From loaded modules to the models that run trees: whole ones, those that see pictures, and drafts beside a target."""

from dataclasses import replace

from transformers import PreTrainedModel

from treespec.models.loaded import LoadedModel
from treespec.models.text_draft import TextDraft
from treespec.models.tree_model import TreeModel
from treespec.models.vision import Vision, is_vision, reader_of, text_module, wraps_text
from treespec.models.vocabularies import SharedIds


def tree_model(model: PreTrainedModel | LoadedModel, name: str, vocabulary: int | None = None) -> TreeModel:
    """Make a TreeModel of a model. One that sees pictures is split into text and vision; of other wrappers only the text is read.

    Raises ModelError.
    """
    text, vision = _parts(LoadedModel.of(model), name)
    return TreeModel(text, name=name, vocabulary=vocabulary, vision=vision)


def draft_model(loaded: LoadedModel, name: str, shared: SharedIds, rows: int, picture: int | None = None) -> TreeModel:
    """Make the TreeModel of a draft that shares ids with a target of so many logits, and passes over its `picture` token. Raises ModelError."""
    if picture is None and shared.all_of(rows):
        return tree_model(loaded, name, shared.size)
    text, vision = _parts(loaded, name)
    return TextDraft(text, name=name, shared=shared, vocabulary=rows, picture=picture, vision=vision)


def _parts(loaded: LoadedModel, name: str) -> tuple[LoadedModel, Vision | None]:
    """Return what reads text in a model, and what sees pictures."""
    whole = loaded.module
    if is_vision(whole.config):
        return replace(loaded, module=text_module(whole)), Vision(whole, name)
    return (replace(loaded, module=reader_of(whole)) if wraps_text(whole.config) else loaded), None
