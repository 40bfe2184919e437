"""The models of loaded modules, kept from call to call, so that captured steps and caches are used again."""

import logging
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from transformers import PreTrainedModel

from treespec.errors import ModelError
from treespec.models.given import pair_of
from treespec.models.ngram import NGRAM
from treespec.models.ngram.mixed import MixedDraft
from treespec.models.pairs import Target
from treespec.models.tree_model import TreeModel

_LOG = logging.getLogger(__name__)
_PLACE = "_treespec_kept"


class Kept:
    """The pair that is kept of one target module, in an attribute of it, so that all go together.

    Copies of the module start with nothing.
    """

    def __init__(self) -> None:
        self.pair: Target | None = None
        self._made_with: tuple[Callable[[], Any], bool] | None = None
        self._said: set[str] = set()

    def __reduce__(self) -> tuple[type["Kept"], tuple[()]]:
        """Leave all out of copies and files of the module."""
        return Kept, ()

    def models(self, target: PreTrainedModel, draft: PreTrainedModel | str | None, ngrams: bool = False) -> Target:
        """Return the pair of two modules, or of one and n-grams, or the target alone. `ngrams` are beside the draft. Raises ModelError."""
        if isinstance(draft, str) and draft != NGRAM:
            raise ModelError(f'the draft is {draft!r:.60}; pass a loaded module, or "{NGRAM}", which needs none')
        if ngrams and draft is None:
            raise ModelError('`ngrams` are counted beside a draft; pass its module, or `draft` "ngram" for n-grams alone')
        if self.pair is not None and self._serves(draft, ngrams):
            return self.pair if draft is not None else self.pair.alone()
        if draft is target:
            raise ModelError("the draft is the target itself, which drafts no faster than it decodes; pass a smaller model as `draft`")
        self.pair = None  # before the next, so that caches of both never exist at once
        if draft is None:
            self.pair, self._made_with = pair_of(target), None
        else:
            self.pair = pair_of(target, draft, ngrams=ngrams)
            self._made_with = ((lambda: NGRAM) if isinstance(draft, str) else weakref.ref(draft)), ngrams
        for note in self.pair.notes:
            _LOG.info("%s", note)
        return self.pair

    def say(self, why: str) -> None:
        """Log why steps run eagerly: once as a warning where they could be captured, else for those who listen."""
        capturable = self.pair is not None and self.pair.target.device.type == "cuda"
        _LOG.log(logging.WARNING if capturable and why not in self._said else logging.INFO, "%s", why)
        self._said.add(why)

    def _serves(self, draft: PreTrainedModel | str | None, ngrams: bool) -> bool:
        """Return whether the pair has this draft, and its modules are still where and what they were."""
        assert self.pair is not None
        if draft is not None:
            made, beside = self._made_with or (lambda: None, False)
            if beside != ngrams or (made() != draft if isinstance(draft, str) else made() is not draft):
                return False
        for model in _modules_of(self.pair):
            try:
                model.decoder.require_weights(model.name)
            except ModelError:
                return False
            if (model.module.device, model.module.dtype) != (model.device, model.dtype) or model.module.training:
                return False
        return True


def _modules_of(pair: Target) -> Iterator[TreeModel]:
    """Yield the models of a pair that are made of modules; n-grams are not."""
    for model in pair.models.values():
        inner = model.model if isinstance(model, MixedDraft) else model
        if isinstance(inner, TreeModel):
            yield inner


def kept_of(module: PreTrainedModel) -> Kept:
    """Return what is kept of a target module."""
    found = vars(module).get(_PLACE)
    if not isinstance(found, Kept):
        found = vars(module)[_PLACE] = Kept()
    return found


def release(module: PreTrainedModel) -> None:
    """Free what `tree_generate` keeps of a target module (caches, captured steps), and undo what it changed in it and in its draft."""
    found = vars(module).pop(_PLACE, None)
    if isinstance(found, Kept) and found.pair is not None:
        found.pair.release()
