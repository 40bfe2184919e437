"""Reading a generation config: the tokens at which `generate` stops, and the settings by which it chooses other tokens than decoding here."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from treespec.errors import ModelError
from treespec.models.locating import Place, explained, optional_file

_LARGEST_ID = (1 << 63) - 1
_MOST_BYTES = 1 << 20


def eos_token_ids(module: PreTrainedModel, name: str = "") -> frozenset[int]:
    """Return the ids at which `generate` stops: those of the generation config, and none if it names none. Raises ModelError."""
    return eos_of({"eos_token_id": getattr(getattr(module, "generation_config", None), "eos_token_id", None)}, name)


def eos_of(given: Mapping[str, Any], name: str = "") -> frozenset[int]:
    """Return the EOS ids of the settings of a generation config. Raises ModelError for values that are no token ids."""
    found = given.get("eos_token_id")
    ids = [] if found is None else found if isinstance(found, list | tuple) else [found]
    if any(type(value) is not int or not 0 <= value <= _LARGEST_ID for value in ids):
        raise ModelError(
            f"{name or 'the model'}: eos_token_id is {found!r:.60}, but it must be a token id (0 or more), a list of them or null; "
            "correct generation_config.json, or config.json if there is none"
        )
    return frozenset(ids)


def generation_settings(name: str, place: Place, revision: str | None, config: PreTrainedConfig) -> dict[str, Any]:
    """Return the settings in a model's generation_config.json, or in its configuration if there is no such file. Raises ModelError."""
    if place.gguf is not None:
        return dict(config.to_dict())
    with explained(name, place, revision, "generation_config.json"):
        path = optional_file(place, "generation_config.json", revision)
        if path is None:
            return dict(config.to_dict())
        if path.stat().st_size > _MOST_BYTES:
            raise ModelError(f"{name}: generation_config.json is larger than the limit of {_MOST_BYTES} bytes; it is no generation config")
        found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ModelError(f"{name}: generation_config.json holds no JSON object; correct it, or save the model again")
    return found


def changing_settings(given: Mapping[str, Any]) -> frozenset[str]:
    """Return the settings of a generation config that change the outputs of `generate` also where it is greedy."""
    return frozenset(key for key, changes in _CHANGING.items() if given.get(key) is not None and changes(given[key]))


def not_applied(given: Mapping[str, Any], *, sampled: bool, processed: bool = False) -> tuple[str, ...]:
    """Return the settings of a generation config that `generate` follows and decoding here does not, each as `name value`.

    These are the settings that change which tokens are chosen, or when the text ends. If `sampled` (the caller draws tokens at a temperature
    of its own), those that shape the drawing count only where the caller has no such setting. If `processed`, the processors that the
    config asks for are applied.
    """
    changing = changing_settings(given) - (frozenset(PROCESSORS) if processed else frozenset())
    found = [key for key in _CHANGING if key in changing]
    draws = given.get("do_sample") is True
    if draws and not sampled:
        found.append("do_sample")
    if draws or sampled:
        found += [
            key
            for key, (changes, ours) in _DRAWING.items()
            if not (ours and sampled) and given.get(key) is not None and changes(given[key])
        ]
    return tuple(f"{key} {shown(given[key])}" for key in found)


def note_of(name: str, given: Mapping[str, Any], *, sampled: bool, processed: bool = False) -> str | None:
    """Return a sentence with the settings of a model's generation config that are not applied; None if all are. See `not_applied`."""
    left = not_applied(given, sampled=sampled, processed=processed)
    return f"not applied of the generation config of {name}: {', '.join(left)}; `generate` of transformers would" if left else None


def shown(value: Any) -> str:
    """Return a value of a setting as messages show it."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else f"{text[:36]} ..."


_Changes = Callable[[Any], bool]


def _not(neutral: Any) -> _Changes:
    return lambda value: bool(value != neutral)


def _given(value: Any) -> bool:
    return value not in ([], {}, 0, False)


PROCESSORS: dict[str, _Changes] = {
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty"), _not(1)),
    **dict.fromkeys(
        (
            *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"),
            *("bad_words_ids", "sequence_bias", "suppress_tokens", "begin_suppress_tokens", "exponential_decay_length_penalty"),
        ),
        _given,
    ),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id"), lambda value: True),
    "remove_invalid_values": lambda value: value is True,
}
"""The settings that ask for logits processors, and the values that do; `processors.py` makes them."""

_CHANGING: dict[str, _Changes] = {
    **PROCESSORS,
    **dict.fromkeys(("guidance_scale", "num_beams", "num_beam_groups"), _not(1)),
    **dict.fromkeys(
        (
            *("diversity_penalty", "force_words_ids", "constraints", "watermarking_config"),
            *("stop_strings", "max_time", "dola_layers", "penalty_alpha"),
        ),
        _given,
    ),
}
"""The settings that change the outputs of `generate` also where it is greedy, and the values that do."""

_DRAWING: dict[str, tuple[_Changes, bool]] = {
    "temperature": (_not(1), True),
    "top_p": (_not(1), True),
    "top_k": (_given, False),
    "min_p": (_given, False),
    "typical_p": (_not(1), False),
    "epsilon_cutoff": (_given, False),
    "eta_cutoff": (_given, False),
}
"""The settings that change how `generate` draws tokens: the values that do, and whether there is such a setting here too."""
