"""From loaded transformers modules to a pair, with the checks that need no files."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from treespec.errors import ModelError
from treespec.models.info import ModelInfo, fitting
from treespec.models.loaded import LoadedModel
from treespec.models.pairs import Pair, Target, tree_model
from treespec.models.text_draft import TextDraft
from treespec.models.tree_model import TreeModel


def pair_of(target: PreTrainedModel, draft: PreTrainedModel | None) -> Target:
    """Return the pair of two modules, or the target alone. Raises ModelError for modules that cannot be decoded with, or not together."""
    require_usable(target, "target")
    if draft is not None:
        require_usable(draft, "draft")
        if draft is target:
            raise ModelError("the draft is the target itself, which drafts nothing faster than it decodes; pass a smaller model as `draft`")
        if draft.device != target.device:
            raise ModelError(f"the draft is on {draft.device}, but the target is on {target.device}; move one of them")
    model = tree_model(target, _name(target, "target"))
    if draft is None:
        return Target(model, None, model.eos_token_ids)
    return Pair(model, None, model.eos_token_ids, draft=_draft(model, draft))


def require_usable(module: Any, role: str) -> None:
    """Raise ModelError for a module that does not decode as it is: the message says what to do."""
    if not isinstance(module, PreTrainedModel):
        raise ModelError(f"`{role}` is of type {type(module).__name__}, but it must be a model of transformers; load it first")
    name = _name(module, role)
    if module.config.is_encoder_decoder:
        raise ModelError(f"{name} is an encoder-decoder, and trees are for decoders alone; use `generate` without `custom_generate`")
    if module.training:
        raise ModelError(f"{name} is in training mode, in which dropout changes outputs; call its eval() first")
    if getattr(module, "is_quantized", False) or getattr(module, "hf_quantizer", None) is not None:
        raise ModelError(f"{name} is quantised, and trees are not exact on its kernels; load it in bfloat16 or float16")
    places = set(map(str, (getattr(module, "hf_device_map", None) or {}).values()))
    hooked = any(hasattr(part, "_hf_hook") for part in module.modules())
    if len(places) > 1 or hooked or any(parameter.device.type == "meta" for parameter in module.parameters()):
        raise ModelError(f"{name} is spread or offloaded by accelerate ({', '.join(sorted(places)) or 'by hooks'}); load it on one device")
    head: Any = module.get_output_embeddings  # which transformers leaves untyped
    if not isinstance(head(), nn.Module):
        raise ModelError(f"{name} has no head that gives logits; load it by AutoModelForCausalLM")


def _draft(target: TreeModel, module: PreTrainedModel) -> TreeModel:
    """Return the draft's model, which drafts the ids that it shares with the target. Raises ModelError."""
    name = _name(module, "draft")
    own = tree_model(module, name)
    shape = None if target.vision is None else target.vision.shape
    known = ModelInfo(target.name, None, None, shape, target.vocabulary_size, target.max_positions, rope_note=target.rope_note)
    seen = None if own.vision is None else own.vision.shape
    fitted = fitting(known, ModelInfo(name, None, None, seen, own.vocabulary_size, own.max_positions, rope_note=own.rope_note))
    assert fitted.shared is not None
    if fitted.passed_over is None and fitted.shared.all_of(target.vocabulary_size):
        return own if fitted.vocabulary_size == own.vocabulary_size else tree_model(module, name, fitted.vocabulary_size)
    loaded = LoadedModel.of(own.module)
    return TextDraft(
        loaded, name=name, shared=fitted.shared, vocabulary=target.vocabulary_size, picture=fitted.passed_over, vision=own.vision
    )


def _name(module: PreTrainedModel, role: str) -> str:
    return str(getattr(module.config, "_name_or_path", "")) or f"the {role}"
