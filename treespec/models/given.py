"""Models that the caller has loaded: they are taken as they are, after the checks that loading makes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NoReturn, overload

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from treespec.errors import ModelError, listed
from treespec.files.reading import StrPath
from treespec.models import families
from treespec.models.generation import eos_of
from treespec.models.heads.info import contents_of_head
from treespec.models.info import ModelInfo, draft_of, fitting
from treespec.models.loaded import LoadedModel
from treespec.models.making import draft_model, tree_model
from treespec.models.ngram import NGRAM
from treespec.models.ngram.info import NgramInfo
from treespec.models.ngram.mixed import MixedDraft
from treespec.models.pairs import Pair, Target
from treespec.models.quantised import quantisation
from treespec.models.tree_model import TreeModel
from treespec.models.vision import is_vision, picture_shape

_RESULTS = {"return_dict": True, "output_attentions": False, "output_hidden_states": False}
"""Settings of a configuration that say in which form passes return their results, and what decoding needs."""

_ON_ONE = 'load it with device_map={"": DEVICE}, or move it with .to(DEVICE)'


@overload
def pair_of(
    target: PreTrainedModel,
    draft: PreTrainedModel | str,
    tokenizer: PreTrainedTokenizerBase | None = ...,
    *,
    draft_tokenizer: PreTrainedTokenizerBase | None = ...,
    ngrams: bool = ...,
    corpus: Sequence[StrPath] = ...,
) -> Pair: ...
@overload
def pair_of(target: PreTrainedModel, draft: None = ..., tokenizer: PreTrainedTokenizerBase | None = ...) -> Target: ...
def pair_of(
    target: PreTrainedModel,
    draft: PreTrainedModel | str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    draft_tokenizer: PreTrainedTokenizerBase | None = None,
    ngrams: bool = False,
    corpus: Sequence[StrPath] = (),
) -> Target:
    """Return a target, or a pair, of modules that were made or loaded elsewhere.

    The draft "ngram" needs no module, and `ngrams` has them beside the module that drafts; both read a `corpus` if there is one. A draft may also be the
    folder of a head.

    `tokenizer` is the target's; the draft's is the same unless `draft_tokenizer` is given. Without a tokenizer, prompts are token ids. The
    modules keep their device, dtype and weights. On CUDA, kernels stack several weights, of which the modules' own become views: that is
    said in `notes`, and `release` undoes it.

    Raises ModelError for a module that cannot be run exactly, that is in training mode, has no head, lies on several devices or on
    another one than the other module, and for a draft that does not fit the target.
    """
    for each in (tokenizer, draft_tokenizer):
        if each is not None and not isinstance(each, PreTrainedTokenizerBase):
            raise ModelError(
                f"a tokenizer is a {type(each).__name__}, which is none of transformers; pass AutoTokenizer.from_pretrained(...)"
            )
    if ngrams and not isinstance(draft, PreTrainedModel):
        raise ModelError('`ngrams` are counted beside a draft; pass its module, or `draft` "ngram" for n-grams alone')
    known = _info(target, "target", tokenizer)
    if draft is None:
        model = tree_model(_loaded(target, known.name), known.name)
        return Target(_noted(model), tokenizer, model.eos_token_ids)
    if isinstance(draft, str):
        if draft != NGRAM and contents_of_head(draft) is None:
            _refuse_other_kind(draft, "draft")
        found = draft_of(known, draft, corpus=corpus)
        model = tree_model(_loaded(target, known.name), known.name, known.vocabulary_size)
        beside = found.load_draft(model, device=str(target.device), dtype="auto")
        return Pair(_noted(model), tokenizer, model.eos_token_ids, draft=beside)
    if corpus and not ngrams:
        raise ModelError("`corpus` is counted for n-grams; pass `ngrams` True to have them beside the draft, or leave `corpus` out")
    counting = NgramInfo.of(known.name, tokenizer, known.vocabulary_size, corpus) if ngrams else None
    if draft_tokenizer is None:
        draft_tokenizer = tokenizer
    fitted = fitting(known, _info(draft, "draft", draft_tokenizer))
    if target.device != draft.device:
        raise ModelError(
            f"the target is on {target.device} and the draft on {draft.device}, but both read the same tokens; move one with .to(DEVICE)"
        )
    model = tree_model(_loaded(target, known.name), known.name, known.vocabulary_size)
    assert fitted.shared is not None
    drafter = _noted(draft_model(_loaded(draft, fitted.name), fitted.name, fitted.shared, known.vocabulary_size, fitted.passed_over))
    mixed = drafter if counting is None else MixedDraft(drafter, known.vocabulary_size, counting.corpus, counting.table())
    return Pair(_noted(model), tokenizer, model.eos_token_ids, draft=mixed)


def _info(module: Any, role: str, tokenizer: PreTrainedTokenizerBase | None) -> ModelInfo:
    """Return the facts about a module, as `ModelInfo.of` does about files. Raises ModelError if they rule it out."""
    if not isinstance(module, PreTrainedModel):
        _refuse_other_kind(module, role)
    config = module.config
    name = str(getattr(config, "_name_or_path", "")) or str(config.model_type)
    family = families.check(config, name)
    if module.get_output_embeddings() is None:  # type: ignore[no-untyped-call]
        raise ModelError(f"the {role} is a {type(module).__name__}, which has no head that makes logits; load it with AutoModelForCausalLM")
    if module.training:
        raise ModelError(f"the {role} is in training mode, in which dropout may change its outputs; call .eval() on it first")
    odd = next((f"{key} {getattr(config, key)}" for key, needed in _RESULTS.items() if getattr(config, key, needed) != needed), None)
    if odd is not None:
        key = odd.split()[0]
        raise ModelError(f"the {role}'s configuration has {odd}, with which passes return other things; set config.{key} = {_RESULTS[key]}")
    _require_one_device(module, role)
    generation = getattr(module, "generation_config", None)
    settings = {} if generation is None else dict(generation.to_dict())
    eos_of(settings, name)
    return ModelInfo(
        name,
        None,
        tokenizer,
        picture_shape(config, name) if is_vision(config) else None,
        int(config.get_text_config(decoder=True).vocab_size),
        family.max_positions,
        rope_note=family.rope_note,
        generation=settings,
    )


def _refuse_other_kind(module: Any, role: str) -> NoReturn:
    """Raise ModelError for what is no model of transformers, with the way to one."""
    inside = getattr(module, "_orig_mod", None)
    if isinstance(inside, PreTrainedModel):
        raise ModelError(f"the {role} was compiled by torch.compile; pass the module that was compiled")
    if hasattr(module, "merge_and_unload"):
        raise ModelError(f"the {role} is a {type(module).__name__} with an adapter of peft; pass what its merge_and_unload() returns")
    wanted = "pass a causal language model of transformers, or load_pair's folders and hub ids"
    raise ModelError(f"the {role} is a {type(module).__name__}, which is no model of transformers; {wanted}")


def _require_one_device(module: PreTrainedModel, role: str) -> None:
    """Raise ModelError unless all weights of a module are on one device, which computes with them."""
    placed = {str(device) for device in (getattr(module, "hf_device_map", None) or {}).values()}
    held = {tensor.device for tensor in (*module.parameters(), *module.buffers())}
    if torch.device("meta") in held or (placed & {"cpu", "disk"} and len(placed) > 1):
        raise ModelError(
            f"the {role} is offloaded by accelerate, which copies its weights at every pass; {_ON_ONE}, "
            "or load it with load_pair and `offload`"
        )
    if len(held) > 1:
        raise ModelError(f"the {role} is spread over {listed(sorted(map(str, held)))}, but trees run on one device; {_ON_ONE}")


def _loaded(module: PreTrainedModel, name: str) -> LoadedModel:
    """Return a module with the facts about its weights."""
    known, quantised = LoadedModel.of(module), quantisation(module.config)
    if quantised is None:
        return known
    quantised = quantised.of_module(module)
    return replace(known, quantization=str(quantised), notes=(quantised.note(name),))


def _noted(model: TreeModel) -> TreeModel:
    """Return a model after noting what was changed in its module."""
    if model.stacked:
        said = f"the weights of {model.name} are views of stacked ones, which the kernels read, until `release` is called"
        model.loaded = replace(model.loaded, notes=(*model.loaded.notes, said))
    return model
