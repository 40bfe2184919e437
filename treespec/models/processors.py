"""The logits processors that a generation config asks for, made of transformers' public classes as `generate` makes them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import Tensor

from treespec.errors import ModelError, reason_of
from treespec.models.generation import changing_settings
from treespec.models.processed import Asking, ProcessedModel, Processor
from treespec.models.tree_model import TreeModel


@dataclass(frozen=True)
class _Text:
    """The text that processors are made for."""

    prompt: tuple[int, ...]
    longest: int
    """The number of its tokens at the most, the prompt's included."""
    eos: tuple[int, ...]
    given: Mapping[str, Any]
    device: torch.device

    @property
    def ids(self) -> Any:
        """Return the prompt, int64 [1, length]."""
        return torch.tensor([self.prompt], device=self.device)

    @property
    def ends(self) -> Tensor:
        """Return the EOS tokens, int64 [tokens]."""
        return torch.tensor(self.eos, device=self.device)

    @property
    def begin(self) -> int:
        """Return the length of the text before its first free token."""
        length = len(self.prompt)
        return length + (length == 1 and self.given.get("forced_bos_token_id") is not None)


_Maker = Callable[[Any, _Text], Processor]

_WITHOUT_END = frozenset({"min_length", "min_new_tokens", "exponential_decay_length_penalty"})
"""Settings about the end of a text; a text without EOS tokens has none."""

_MAKERS: dict[str, _Maker] = {
    "sequence_bias": lambda value, text: hf.SequenceBiasLogitsProcessor(value),
    "encoder_repetition_penalty": lambda value, text: hf.EncoderRepetitionPenaltyLogitsProcessor(value, text.ids),
    "repetition_penalty": lambda value, text: hf.RepetitionPenaltyLogitsProcessor(value),
    "no_repeat_ngram_size": lambda value, text: hf.NoRepeatNGramLogitsProcessor(value),
    "encoder_no_repeat_ngram_size": lambda value, text: hf.EncoderNoRepeatNGramLogitsProcessor(value, text.ids),
    "bad_words_ids": lambda value, text: hf.NoBadWordsLogitsProcessor(value, text.ends if text.eos else None),
    "min_length": lambda value, text: hf.MinLengthLogitsProcessor(value, text.ends, device=str(text.device)),
    "min_new_tokens": lambda value, text: hf.MinNewTokensLengthLogitsProcessor(len(text.prompt), value, text.ends, device=str(text.device)),
    "forced_bos_token_id": lambda value, text: hf.ForcedBOSTokenLogitsProcessor(value),
    "forced_eos_token_id": lambda value, text: hf.ForcedEOSTokenLogitsProcessor(text.longest, value, device=str(text.device)),
    "remove_invalid_values": lambda value, text: hf.InfNanRemoveLogitsProcessor(),
    "exponential_decay_length_penalty": lambda value, text: hf.ExponentialDecayLengthPenalty(tuple(value), text.ends, len(text.prompt)),
    "suppress_tokens": lambda value, text: hf.SuppressTokensLogitsProcessor(value, device=str(text.device)),
    "begin_suppress_tokens": lambda value, text: hf.SuppressTokensAtBeginLogitsProcessor(value, text.begin, device=str(text.device)),
}
"""Settings that processors are made for, in the order in which `generate` asks these."""


def asked_for(model: TreeModel) -> dict[str, Any]:
    """Return the settings of a model's generation config that processors are made for, in the order of these; empty if there are none."""
    config = getattr(model.module, "generation_config", None)
    given = {} if config is None else config.to_dict()
    changing = changing_settings(given)
    if not model.eos_token_ids:
        changing -= _WITHOUT_END
    return {key: given[key] for key in _MAKERS if key in changing}


def processors_of(model: TreeModel, prompt: Sequence[int], gen_len: int) -> tuple[Processor, ...]:
    """Return the processors that `generate` makes of a model's generation config for a prompt and `gen_len` tokens after it.

    These are the ones that it asks whether or not it draws tokens. Raises ModelError for settings that transformers refuses.
    """
    asked = asked_for(model)
    text = _Text(tuple(prompt), len(prompt) + gen_len, tuple(sorted(model.eos_token_ids)), asked, model.device)
    if "min_new_tokens" in asked and "min_length" in asked:  # the first overrules the second
        asked["min_length"] = asked["min_new_tokens"] + len(prompt)
    found = []
    for key, value in asked.items():
        try:
            found.append(_MAKERS[key](value, text))
        except (TypeError, ValueError) as error:
            raise ModelError(
                f"{model.name}: {key} of the generation config is {value!r:.60}, which transformers refuses ({reason_of(error)}); correct it"
            ) from error
    return tuple(found)


def as_generate(model: TreeModel, prompt: Sequence[int], gen_len: int) -> TreeModel | ProcessedModel:
    """Return a model whose logits after a prompt are those that `generate` chooses tokens from: processed if its generation config asks so.

    It serves one text of the `prompt` and at most `gen_len` tokens after it. Raises ModelError as `processors_of`.
    """
    processors = processors_of(model, prompt, gen_len)
    if not processors:
        return model
    return ProcessedModel(model, processors, Asking(model.eos_token_ids, len(prompt) + gen_len))
