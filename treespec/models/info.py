"""The facts that models' files give before a weight is read, and the check that two models can decode together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from treespec.data.pictures import PictureReader, PictureShape
from treespec.errors import ModelError, counted
from treespec.files.reading import StrPath
from treespec.models import families, gguf_models
from treespec.models.contents import Contents
from treespec.models.drafts import DraftInfo
from treespec.models.generation import eos_of, generation_settings
from treespec.models.heads.info import HeadInfo, contents_of_head, parameters_of, require_build
from treespec.models.loaded import LoadedModel
from treespec.models.loading import ModelFiles, load_model, load_picture_reader, require_model, tokenizer_or_none
from treespec.models.making import draft_model
from treespec.models.ngram import BESIDE, NGRAM, model_beside, reads_corpus
from treespec.models.ngram.corpus import Corpus, draft_name
from treespec.models.ngram.info import NgramInfo
from treespec.models.ngram.mixed import MixedDraft
from treespec.models.parallel.team import Team
from treespec.models.recognised import HeadKind
from treespec.models.tree_model import TreeModel
from treespec.models.vision import is_vision, picture_shape
from treespec.models.vocabularies import SharedIds, shared_ids


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
    """Number of embedding rows, which its tokenizer may exceed; for a draft beside its target, the number of logits that it uses."""
    max_positions: int | None
    passed_over: int | None = None
    """The target's picture token, for a draft that reads text only."""
    quantization: str | None = None
    """The type of its weights, if they come quantised in a GGUF file."""
    rope_note: str = ""
    """See `Family.rope_note`."""
    shared: SharedIds | None = None
    """The ids that mean the same to its target, for a draft beside it."""
    target_rows: int | None = None
    """Number of its target's logits, for a draft beside it."""
    generation: Mapping[str, Any] = field(default_factory=dict)
    """The settings of its generation config."""
    files: ModelFiles | None = field(default=None, compare=False, repr=False)
    """The files to load it from; None for the facts about a model that is loaded already."""

    @classmethod
    def of(cls, name: str, revision: str | None = None, adapter: str | None = None) -> "ModelInfo":
        """Read the facts about a folder or a hub id. Raises ModelError if its files or its configuration rule it out."""
        files = require_model(name, revision, adapter=adapter)
        config = files.config
        shape = picture_shape(config, name) if is_vision(config) else None
        rows = int(config.get_text_config(decoder=True).vocab_size)
        generation = generation_settings(name, files.place, revision, config)
        eos_of(generation, name)
        family = families.check(config, name)
        return cls(
            name,
            revision,
            tokenizer_or_none(name, revision),
            shape,
            rows,
            family.max_positions,
            quantization=gguf_models.quantization(files.place),
            rope_note=family.rope_note,
            generation=generation,
            files=files,
        )

    @cached_property
    def pictures(self) -> PictureReader | None:
        """The reader of its pictures, which is loaded once; None if it reads text only. Raises ModelError."""
        return None if self.shape is None else load_picture_reader(self.name, self.revision)

    def load(self, *, device: str, dtype: str, offload: bool = False, team: Team | None = None) -> LoadedModel:
        """Load the model, or this process's part of it. Its files are not looked at again. Raises ModelError."""
        assert self.files is not None
        return load_model(self.files, device=device, dtype=dtype, offload=offload, team=team)

    @property
    def has_weights(self) -> bool:
        """See `DraftInfo.has_weights`."""
        return True

    def load_draft(self, target: TreeModel, *, device: str, dtype: str) -> TreeModel:
        """Load it as a draft that fits its target, as `fitting` returns it. Raises ModelError."""
        assert self.shared is not None
        assert self.target_rows is not None
        made = draft_model(self.load(device=device, dtype=dtype), self.name, self.shared, self.target_rows, self.passed_over)
        if target.loaded.shard is not None:  # the rows that a pass takes must be the same in all processes, and each has its own times
            made.decoder.padded = False
        return made

    def positions_of(self, prompt: Sequence[int]) -> int:
        """Return the number of positions that a prompt takes."""
        return sum(token != self.passed_over for token in prompt)


@dataclass(frozen=True)
class MixedInfo:
    """The facts about a model that fits a target, with n-grams beside it."""

    model: ModelInfo
    ngrams: NgramInfo

    @property
    def name(self) -> str:
        """Return its name in messages."""
        return draft_name(self.ngrams.corpus, self.model.name)

    @property
    def vocabulary_size(self) -> int:
        """Return the number of the target's logits: what the model does not know, the n-grams may."""
        return self.ngrams.vocabulary_size

    @property
    def max_positions(self) -> int | None:
        """See `DraftInfo.max_positions`."""
        return self.model.max_positions

    @property
    def rope_note(self) -> str:
        """See `DraftInfo.rope_note`."""
        return self.model.rope_note

    @property
    def quantization(self) -> str | None:
        """See `DraftInfo.quantization`."""
        return self.model.quantization

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """See `DraftInfo.tokenizer`."""
        return self.model.tokenizer

    @property
    def has_weights(self) -> bool:
        """See `DraftInfo.has_weights`."""
        return self.model.has_weights

    def positions_of(self, prompt: Sequence[int]) -> int:
        """See `DraftInfo.positions_of`."""
        return self.model.positions_of(prompt)

    def load_draft(self, target: TreeModel, *, device: str, dtype: str) -> MixedDraft:
        """Load the model, and count the corpus. Raises ModelError."""
        model = self.model.load_draft(target, device=device, dtype=dtype)
        return MixedDraft(model, self.vocabulary_size, self.ngrams.corpus, self.ngrams.table())


def draft_of(
    target: ModelInfo, draft: str, revision: str | None = None, adapter: str | None = None, corpus: Sequence[StrPath] = ()
) -> DraftInfo:
    """Return the facts about a draft of a name (a folder of a model or of a head, a hub id, or `ngram`) that fits the target. Raises ModelError if it does not.

    The name of a model may end in `+ngram`, for n-grams beside it. `corpus` are files that are counted for n-grams; for others there must be none.
    """
    model = model_beside(draft)
    if model is not None:
        if (head := contents_of_head(model)) is not None:
            raise ModelError(f"{model} is {head[0]}, and n-grams stand beside whole models only; leave {BESIDE} out")
        ngrams = NgramInfo.of(target.name, target.tokenizer, target.vocabulary_size, corpus)
        return MixedInfo(fitting(target, ModelInfo.of(model, revision, adapter)), ngrams)
    if draft == NGRAM:
        if adapter is not None:
            raise ModelError(f"the draft {NGRAM} has no weights that `draft_adapter` {adapter} could be merged into; leave it out")
        return NgramInfo.of(target.name, target.tokenizer, target.vocabulary_size, corpus)
    if corpus:
        raise ModelError(
            f"`corpus` is counted for n-grams, and {draft} is a model without them; pass `draft` {NGRAM} or {draft}{BESIDE}, or leave `corpus` out"
        )
    head = contents_of_head(draft, revision)
    if head is None:
        return fitting(target, ModelInfo.of(draft, revision, adapter))
    if adapter is not None:
        raise ModelError(f"{draft} is {head[0]}, into which no `draft_adapter` can be merged; leave it out")
    return head_of(target, draft, *head, revision)


def head_of(target: ModelInfo, name: str, kind: HeadKind, contents: Contents, revision: str | None = None) -> HeadInfo:
    """Return the facts about a head beside a target, whose own files are looked at if it was made of files. Raises ModelError if it does not fit."""
    if target.shape is not None:
        raise ModelError(
            f"{name} is {kind}, which reads no pictures, but target {target.name} sees them; use a text-only draft with its own tokenizer"
        )
    if target.files is not None:
        require_build(name, kind, contents, target.name, target.files.config)
    own = parameters_of(name, contents)
    return HeadInfo(name, kind, target.vocabulary_size, target.max_positions, target.rope_note, parameters=own, revision=revision)


def drafts_of(target: ModelInfo, drafts: Sequence[str], corpus: Sequence[StrPath] = ()) -> tuple[tuple[DraftInfo, ...], dict[str, str]]:
    """Return the facts about those drafts that fit the target, and why each of the others cannot be used, by name.

    The `corpus` is for those that count n-grams. Raises ModelError if there is none that fits, or if the corpus cannot be read.
    """
    if any(map(reads_corpus, drafts)):
        Corpus.read(corpus)  # what is wrong with it is wrong with every draft that counts it: no reason to go on with the others
    fit: list[DraftInfo] = []
    left_out: dict[str, str] = {}
    for name in drafts:
        try:
            fit.append(draft_of(target, name, corpus=corpus if reads_corpus(name) else ()))
        except ModelError as error:
            if len(drafts) == 1:
                raise
            left_out[name] = str(error)
    if not fit:
        raise ModelError(f"none of the {len(drafts)} drafts fits the target; the first: {next(iter(left_out.values()))}")
    return tuple(fit), left_out


def fitting(target: ModelInfo, draft: ModelInfo) -> ModelInfo:
    """Return a draft with the ids that it shares with the target, which is never changed by its draft. Raises ModelError if they do not fit."""
    _require_same_pictures(target.name, target.shape, draft.name, draft.shape)
    text_only = target.shape is not None and draft.shape is None
    if text_only and (target.tokenizer is None or draft.tokenizer is None):
        raise ModelError(f"a text-only draft for {target.name} needs the tokenizers of both; put the tokenizer files into both folders")
    shared = shared_ids(
        *(target.name, target.tokenizer, target.vocabulary_size),
        *(draft.name, draft.tokenizer, draft.vocabulary_size),
        same=frozenset() if target.shape is None or text_only else frozenset({target.shape.token_id}),
    )
    passed_over = target.shape.token_id if target.shape is not None and text_only else None
    return replace(draft, vocabulary_size=shared.size, passed_over=passed_over, shared=shared, target_rows=target.vocabulary_size)


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
