"""The table of what is done with models of each family, by the rules that decide it when a model is loaded. It needs no weights and no GPU.

The rules about kernels are here, apart from the kernels themselves, because a machine may not have Triton.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from logging import ERROR
from typing import Any, Literal

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MULTIMODAL_LM_MAPPING, MODEL_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
from transformers.utils import logging

from treespec.models import families
from treespec.models.vision import KINDS, PLAIN

FUSED = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""The classes of transformers whose layers our kernels can compute."""

Exactness = Literal["tested", "checked when loaded", "refused"]
Kernels = Literal["all", "attention", "none"]


@dataclass(frozen=True)
class Support:
    """The way in which models of one family run at their usual settings; a setting of one model may change it."""

    model_type: str
    inside: str | None
    """The text model that is used, if the family wraps one; None if it is a text model itself."""
    pictures: bool
    """Whether it reads pictures here; other families that could, or could hear, read text only."""
    exact: Exactness
    """Whether trees on it are compared with its own decoding by the tests, or in a trial when a model is loaded, or never run."""
    refused: str
    """The reason why it is refused; empty if it is not."""
    kernels: Kernels
    """The work of our kernels on CUDA: whole layers, or the attention within the module's own layers."""
    captured: bool
    """Whether steps are captured in CUDA graphs."""
    eager: str
    """The reason why there are no kernels and no graphs; empty if there are."""


def outside_fused(kind: type[Any], config: PreTrainedConfig) -> str | None:
    """Return why our kernels cannot compute the layers of a class of modules at these settings of its text; None if they can."""
    if kind.__name__ not in FUSED or not kind.__module__.startswith("transformers."):
        return f"{kind.__name__} is none of {', '.join(FUSED)}"
    if config.hidden_act not in ("silu", "swish"):
        return f"its activation is {config.hidden_act}"
    return None


def outside_hooked(kind: type[Any], config: PreTrainedConfig) -> str | None:
    """Return why tree attention cannot replace that of a class of text modules at these settings; None if it can, as far as these say."""
    if config.model_type == "gpt_oss":
        return "its attention has sinks"
    files = [part.__module__ for part in kind.__mro__ if part.__module__.startswith("transformers.models.")]
    if not any(hasattr(sys.modules[file], "ALL_ATTENTION_FUNCTIONS") for file in files):
        return "its attention does not go through transformers' interface"
    if any(getattr(config, name, None) for name in ("num_local_experts", "num_experts", "n_routed_experts")):
        return "its experts are chosen on the host"
    if getattr(config, "num_kv_shared_layers", None):
        return "several of its layers share keys and values"
    if getattr(config, "kv_lora_rank", None):
        return "it stores keys and values of different widths, and tree attention reads rows of one width"
    return None


def all_families() -> list[Support]:
    """Return what is done with every family that the installed transformers can load, or that is refused by name, in alphabetical order."""
    names = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES, *families.REFUSED}
    with _silent():
        return [usual_support(name) for name in sorted(names) if name in CONFIG_MAPPING or name in families.REFUSED]


def usual_support(model_type: str) -> Support:
    """Return what is done with a family, by the usual settings of its configuration."""
    if model_type in families.REFUSED:
        return Support(model_type, None, False, "refused", families.REFUSED[model_type], "none", False, "")
    try:
        config: PreTrainedConfig = CONFIG_MAPPING[model_type]()
    except (
        TypeError,
        ValueError,
        StrictDataclassError,
    ):  # some cannot be made without a setting; nothing is known of these before a model is there
        return Support(model_type, None, False, "checked when loaded", "", "none", False, "its configuration has no usual settings")
    return support_of(config)


def support_of(config: PreTrainedConfig) -> Support:
    """Return what is done with models of a configuration."""
    text, model_type = config.get_text_config(decoder=True), str(config.model_type)
    inside = None if text is config else str(text.model_type)
    kind, reason = _class_of(config, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MULTIMODAL_LM_MAPPING), families.refusal(config)
    if reason or kind is None:
        return Support(
            model_type, inside, False, "refused", reason or "it is no causal language model and has none inside", "none", False, ""
        )
    pictures = model_type in KINDS
    tested = families.check(config).verified or pictures
    exact: Exactness = "tested" if tested else "checked when loaded"
    if tested and inside in PLAIN:
        kind = _class_of(text, MODEL_FOR_CAUSAL_LM_MAPPING)
    if outside_fused(kind, text) is None:
        return Support(model_type, inside, pictures, exact, "", "all", True, "")
    why = outside_hooked(_class_of(text, MODEL_MAPPING) or kind, text) or ""
    return Support(model_type, inside, pictures, exact, "", "none" if why else "attention", not why, why)


def _class_of(config: PreTrainedConfig, *mappings: Any) -> Any:
    """Return the class of transformers for models of this configuration by the first mapping that has one; None if there is none."""
    return next((mapping[type(config)] for mapping in mappings if type(config) in mapping), None)


@contextmanager
def _silent() -> Iterator[None]:
    """Keep transformers from warning of the usual settings of its own configurations."""
    before = logging.get_verbosity()
    logging.set_verbosity(ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)
