"""Recognising drafts that are no models by themselves: heads that read a target's hidden states, by config.json and names of tensors and files."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from treespec.errors import ModelError
from treespec.models.contents import Contents

_SPECULATORS = {"eagle3": "an EAGLE-3 head", "eagle": "an EAGLE head", "dflash": "a DFlash draft", "mlp": "an MLP speculator"}
_MTP = re.compile(r"(^|\.)(mtp|mtp_layers|mtp_block|nextn)\.|\.(eh_proj|enorm|hnorm|shared_head)\.")
_MEDUSA = re.compile(r"(medusa_heads?\.)?\d+\.\d+\.(linear\.)?(weight|bias)")
_EAGLE = re.compile(r"\beagle(model|\w*forcausallm|\w*mtpmodel)?\b|causallmeagle")  # and not Eagle2_5_VL, which is a whole model
_EMBEDDING = re.compile(r"^(?!.*\.\d).*(embed_tokens|wte|word_embeddings|embed_in)\.weight$")
_LAYER_NORM = re.compile(r"\.(layers|h|blocks)\.\d+\.\w*(norm|ln_)\w*\.weight$")


@dataclass(frozen=True)
class _Signs:
    """The signs by which a head is told: its configuration, class names, names of tensors and names of files."""

    config: Mapping[str, Any]
    classes: str
    names: Collection[str]
    files: Collection[str]

    def has(self, *names: str) -> bool:
        """Return whether a tensor has one of these names, or lies under one that ends with a dot; `model.` may stand before it."""
        known = [name.removeprefix("model.") for name in self.names]
        return any(found.startswith(name) if name.endswith(".") else found == name for name in names for found in known)

    def file(self, start: str) -> bool:
        """Return whether a file's name starts so."""
        return any(file.startswith(start) for file in self.files)

    @property
    def whole(self) -> bool:
        """Return whether the tensors make a whole decoder, which may carry heads beside it."""
        fused = "model.fc.weight" in self.names or {"fc.weight", "embed_tokens.weight"} <= set(self.names)
        return _any(_EMBEDDING, self.names) and _any(_LAYER_NORM, self.names) and not fused and not self.has("midlayer.")


def _any(pattern: re.Pattern[str], names: Iterable[str]) -> bool:
    return any(pattern.search(name) for name in names)


def _dflash(signs: _Signs) -> bool:
    return "dflash" in signs.classes or "dflash_config" in signs.config or (signs.has("fc.weight") and signs.has("hidden_norm.weight"))


def _eagle3(signs: _Signs) -> bool:
    named = "eagle3" in signs.classes or "draft_vocab_size" in signs.config
    return named or signs.has("midlayer.", "layers.0.hidden_norm.weight", "d2t", "t2d")


def _eagle(signs: _Signs) -> bool:
    return _EAGLE.search(signs.classes) is not None or "eagle_config" in signs.config or (signs.has("fc.weight") and signs.has("layers."))


def _medusa(signs: _Signs) -> bool:
    if "medusa" in signs.classes or "medusa_num_heads" in signs.config or signs.file("medusa_lm_head."):
        return True
    return bool(signs.names) and all(_MEDUSA.fullmatch(name) for name in signs.names)


def _hydra(signs: _Signs) -> bool:
    return "hydra" in signs.classes or "hydra_num_heads" in signs.config or signs.file("hydra_lm_head.") or signs.has("hydra_head.")


def _mtp(signs: _Signs) -> bool:
    return re.search(r"mtp|nextn\b", signs.classes) is not None or (bool(signs.names) and _any(_MTP, signs.names))


def _other(signs: _Signs) -> bool:
    return re.search(r"speculator|recurrent_?drafting|_assistant\b", signs.classes) is not None


@dataclass(frozen=True)
class HeadKind:
    """The kind of a head, as far as it is told before a weight is read."""

    name: str
    """The name of the kind: eagle3, eagle, medusa, dflash, hydra, mtp or speculator. A format of speculators has the name that it says."""
    said: str
    """The words for it in a sentence."""
    format: str = ""
    """The words for the project whose format it has, if its config.json names one."""

    def __str__(self) -> str:
        """Return the words for it, its format included."""
        return self.said + self.format


_KINDS: tuple[tuple[Callable[[_Signs], bool], HeadKind], ...] = (
    (_dflash, HeadKind("dflash", "a DFlash draft")),
    (_hydra, HeadKind("hydra", "a set of Hydra heads")),
    (_medusa, HeadKind("medusa", "a set of Medusa heads")),
    (_eagle3, HeadKind("eagle3", "an EAGLE-3 head")),
    (_eagle, HeadKind("eagle", "an EAGLE head")),
    (_mtp, HeadKind("mtp", "a multi-token prediction (MTP) head")),
    (_other, HeadKind("speculator", "a speculator")),
)


RUN = ("eagle3", "eagle", "medusa", "dflash")
"""The names of the kinds of heads that run as the draft of their target (`heads.loading.HEADS`)."""


def refuse_heads(name: str, contents: Contents) -> None:
    """Raise ModelError, with the kind, for a draft that reads a target's hidden states and is no model by itself."""
    kind = head_kind(contents)
    if kind is None:
        return
    base = _base(contents.config)
    made_for = f" of its target ({base!r:.80})" if base is not None else " of its target"
    if kind.name in RUN:
        raise ModelError(
            f"{name} is {kind}: it reads the hidden states{made_for} and cannot run by itself; give it as the draft of its target "
            "(one on the hub that does not say what it is in its config.json: as a folder, which hf download fetches)"
        )
    raise ModelError(
        f"{name} is {kind}: it reads the hidden states{made_for} and cannot run by itself, and treeopt does not run such heads yet; "
        "give a whole causal language model with the target's tokenizer instead (treeopt train-draft makes small ones)"
    )


def head_kind(contents: Contents) -> HeadKind | None:
    """Return the kind of a head by config.json and the names of its tensors and files; None for what is no head."""
    config = contents.config
    signs = _Signs(config, _classes(config), contents.weights.names, contents.files)
    spoken = config.get("speculators_model_type")
    if spoken is not None:
        said = _SPECULATORS.get(str(spoken), "a draft")
        return HeadKind(str(spoken), said, f" in the speculators format (speculators_model_type {spoken!r:.40})")
    if signs.whole:
        return None
    return next((kind for applies, kind in _KINDS if applies(signs)), None)


def _classes(config: Mapping[str, Any]) -> str:
    """Return the architectures and the model type in lower case."""
    architectures = config.get("architectures")
    known = [*(architectures if isinstance(architectures, list) else []), config.get("model_type"), config.get("speculative_algorithm")]
    return " ".join(str(item).lower() for item in known if item is not None)


def _base(config: Mapping[str, Any]) -> str | None:
    """Return the target that a head was made for, if its configuration names one."""
    speculators = config.get("speculators_config")
    verifier = speculators.get("verifier") if isinstance(speculators, dict) else None
    known = (config.get("base_model_name_or_path"), verifier.get("name_or_path") if isinstance(verifier, dict) else None)
    return next((base for base in known if isinstance(base, str) and base), None)
