"""Vision-language models like LLaVA: a text model that runs trees like any other, and a part that turns pictures into its inputs."""

from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from treespec.data.pictures import PictureShape
from treespec.errors import ModelError, counted
from treespec.models import families

KINDS = ("llava",)
"""The model types that can be split into text and vision."""

TEXT_ONLY = f"reads text only here; for prompts with pictures use a {' or a '.join(KINDS)}"

PLAIN = ("llama", "mistral", "qwen2", "qwen3")
"""The text models that are the same module inside a wrapper and outside, with nothing but a linear head behind it."""

_TOWERS = {"clip_vision_model": 1, "siglip_vision_model": 0}
"""The known vision towers, with the number of embeddings that each has besides those of its patches."""


def is_vision(config: PreTrainedConfig) -> bool:
    """Return whether a model of this configuration reads pictures in a way that is known here."""
    return str(config.model_type) in KINDS


def picture_shape(config: Any, name: str) -> PictureShape:
    """Return the picture shape of a LLaVA configuration. Raises ModelError for an unknown tower and for impossible settings."""
    tower, strategy = config.vision_config, str(config.vision_feature_select_strategy)
    if str(tower.model_type) not in _TOWERS:
        raise ModelError(
            f"{name}: its vision tower is {tower.model_type}, but only {' and '.join(_TOWERS)} are known here; use another model"
        )
    if strategy not in ("default", "full"):
        raise ModelError(f"{name}: vision_feature_select_strategy is {strategy!r}, but it must be default or full; correct its config.json")

    def whole(key: str, value: object, least: int, most: int | None = None) -> int:
        if type(value) is not int or value < least or (most is not None and value > most):
            limits = f"{least} or more" if most is None else f"{least} to {most}"
            raise ModelError(f"{name}: {key} is {value!r:.40}, but it must be {limits}; correct its config.json")
        return value

    vocabulary = whole("vocab_size", config.get_text_config(decoder=True).vocab_size, 1)
    token = whole("image_token_id", config.image_token_id, 0, vocabulary - 1)
    depth = whole("num_hidden_layers of vision_config", tower.num_hidden_layers, 1)
    layers = config.vision_feature_layer
    for layer in layers if isinstance(layers, list | tuple) and layers else [layers]:
        whole("vision_feature_layer", layer, -depth - 1, depth)
    pixels = whole("image_size", tower.image_size, 1)
    patches = (pixels // whole("patch_size", tower.patch_size, 1, pixels)) ** 2
    return PictureShape(token, patches + _TOWERS[str(tower.model_type)] - (strategy == "default"), pixels)


class Vision:
    """The part of a vision-language module that turns pictures into embeddings."""

    def __init__(self, module: PreTrainedModel, name: str) -> None:
        self.module = module
        self.shape = picture_shape(module.config, name)

    def rows(self, pixels: Tensor) -> Tensor:
        """Return embeddings [pictures, rows, hidden] of pictures float [pictures, 3, pixels, pixels]."""
        found: Any = self.module
        found = found.model.get_image_features(pixel_values=pixels.to(self.module.device, self.module.dtype), return_dict=True)
        return torch.stack(list(found.pooler_output))

    def put(self, table: Tensor, tokens: Tensor, pixels: Tensor, name: str) -> Tensor:
        """Put pictures into the embeddings `table` [batch, length, hidden] of tokens int64 [batch, length], and return it.

        Each row has the same number of pictures, at its first picture tokens. Picture tokens after these, which a model wrote itself, stay
        as other tokens. Raises ModelError for another number of picture tokens, with the model's `name`.
        """
        wanted = pixels.shape[0] * self.shape.rows // tokens.shape[0]
        here = tokens == self.shape.token_id
        here &= here.cumsum(1) <= wanted
        if not bool((here.sum(1) == wanted).all()):
            raise ModelError(
                f"{counted(int(here.sum()), 'picture token stands', 'picture tokens stand')} for "
                f"{counted(pixels.shape[0], 'picture')} of {counted(self.shape.rows, 'row')} each ({name})"
            )
        table[here] = self.rows(pixels).flatten(0, 1).to(table.dtype)
        return table


def wraps_text(config: PreTrainedConfig) -> bool:
    """Return whether this is the configuration of a model with a text model inside."""
    return config.get_text_config(decoder=True) is not config


def reader_of(module: Any) -> PreTrainedModel:
    """Return a module that computes what a module that wraps a text model computes for text alone.

    Plain text models inside tested wrappers become causal language models of their own class, with its kernels. Elsewhere it is the
    wrapper itself, because its head may do more than the text model's own.
    """
    text = module.config.get_text_config(decoder=True)
    if str(module.config.model_type) in families.WRAPPERS and str(text.model_type) in PLAIN:
        return text_module(module)
    found: PreTrainedModel = module
    return found


def text_module(module: Any) -> PreTrainedModel:
    """Return the text model inside a module, as a causal language model over the same weights.

    Family, kernels and exactness are those of the text model; pictures reach it only as embeddings.
    """
    config = module.config.get_text_config(decoder=True)
    build: Any = AutoModelForCausalLM
    with torch.device("meta"):
        text = build.from_config(config, attn_implementation=config._attn_implementation)
    setattr(text, text.base_model_prefix, module.get_decoder())
    text.set_output_embeddings(module.get_output_embeddings())
    text.generation_config = module.generation_config
    left = [name for name, tensor in (*text.named_parameters(), *text.named_buffers()) if tensor.is_meta]
    if left:
        raise ModelError(f"the text model of {type(module).__name__} has weights of its own ({left[0]}), so that it cannot run by itself")
    found: PreTrainedModel = text.eval()
    return found
