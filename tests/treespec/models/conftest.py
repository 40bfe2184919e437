"""Tiny random models of every family, and tokenizers and folders for them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedConfig, PreTrainedModel

from tests.reference.tiny import config_of, known, module_of


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., PreTrainedConfig]:
    """Family name (and settings to change) -> configuration."""

    def build(family: str, **changes: Any) -> PreTrainedConfig:
        if not known(family):
            pytest.skip(f"this transformers has no {family}")
        return config_of(family, **changes)

    return build


@pytest.fixture(scope="session")
def tiny_module(tiny_config: Callable[..., PreTrainedConfig]) -> Callable[..., PreTrainedModel]:
    """Family name, seed (and settings to change) -> random fp32 model on the CPU."""

    def build(family: str, seed: int = 0, attention: str | None = None, **changes: Any) -> PreTrainedModel:
        return module_of(tiny_config(family, **changes), seed, attention)

    return build


@pytest.fixture(scope="session")
def tokenizer_into() -> Callable[..., None]:
    """Folder (and a prefix for the words) -> writes a word-level tokenizer of 90 tokens there; id 3 is its EOS."""

    def write(folder: Path, prefix: str = "w", size: int = 90) -> None:
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        vocabulary = {f"{prefix}{index}": index for index in range(size)}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=f"{prefix}0"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=f"{prefix}0", eos_token=f"{prefix}3").save_pretrained(folder)

    return write
