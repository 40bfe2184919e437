"""Text in, text out: `generate` returns whole texts, `stream` gives out one while it is made."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import overload

from treespec.data.prompts import PromptSet
from treespec.data.slices import ChatOptions
from treespec.decoding.drafting import Drafting, drafting_of
from treespec.decoding.engine import Engine
from treespec.decoding.plans import Plan
from treespec.decoding.rules import Sampling
from treespec.errors import DatasetError, ModelError
from treespec.files.reading import StrPath
from treespec.models.pairs import Target
from treespec.text.generated import Generated
from treespec.text.prompts import TextPrompt, read_prompt, several
from treespec.text.settings import TextSettings, stop_strings
from treespec.text.writing import Writer, Writing
from treespec.trees.growmap import GrowMap
from treespec.trees.library import load_growmap

Notice = Callable[[str], None]

_LOG = logging.getLogger(__name__)


@overload
def generate(  # type: ignore[overload-overlap]  # a string is a sequence of strings, but it is one prompt
    pair: Target,
    prompt: TextPrompt,
    *,
    plan: Plan | GrowMap | StrPath | None = ...,
    max_new_tokens: int = ...,
    temperature: float = ...,
    top_p: float = ...,
    stop: str | Sequence[str] | None = ...,
    seed: int = ...,
    drafting: Drafting | str = ...,
    chat_options: ChatOptions = ...,
    processors: bool = ...,
    engine: Engine | None = ...,
    notice: Notice | None = ...,
) -> Generated: ...
@overload
def generate(
    pair: Target,
    prompt: Sequence[TextPrompt] | PromptSet,
    *,
    plan: Plan | GrowMap | StrPath | None = ...,
    max_new_tokens: int = ...,
    temperature: float = ...,
    top_p: float = ...,
    stop: str | Sequence[str] | None = ...,
    seed: int = ...,
    drafting: Drafting | str = ...,
    chat_options: ChatOptions = ...,
    processors: bool = ...,
    engine: Engine | None = ...,
    notice: Notice | None = ...,
) -> list[Generated]: ...
def generate(
    pair: Target,
    prompt: TextPrompt | Sequence[TextPrompt] | PromptSet,
    *,
    plan: Plan | GrowMap | StrPath | None = None,
    max_new_tokens: int = TextSettings.max_new_tokens,
    temperature: float = Sampling.temperature,
    top_p: float = Sampling.top_p,
    stop: str | Sequence[str] | None = (),
    seed: int = TextSettings.seed,
    drafting: Drafting | str = Drafting(),
    chat_options: ChatOptions = ChatOptions(),
    processors: bool = TextSettings.processors,
    engine: Engine | None = None,
    notice: Notice | None = None,
) -> Generated | list[Generated]:
    """Generate the text that follows a prompt: the target's own, whatever the plan.

    Args:
        pair: the target, with its draft if the plan needs one.
        prompt: a string, which the tokenizer reads with its special tokens in front; token ids, which are taken as they are; or
            messages with `role` and `content`, for the tokenizer's chat template. Of a list of prompts, a `PromptSet`, or a tensor with
            a prompt in each row, each is decoded by itself, one after the other, and a list is returned.
        plan: what to draft at every step: a tree, a growmap, its file or the name of one that comes along, a dynamic budget or a plan of your
            own; None for the target alone.
        max_new_tokens: most tokens to generate; EOS, a stop string or the model's last position may end the text earlier.
        temperature: 0 is greedy.
        top_p: probability mass of the most likely tokens that are sampled from.
        stop: strings before which the text ends, found across tokens and steps; a special token's own string counts as well.
        seed: the seed of the random streams; prompt i has that of (seed, i), as in an evaluation.
        drafting: the ways to draft and to verify children; a rule's name stands for `Drafting(rule)`.
        chat_options: a system prompt and arguments of the chat template, for prompts that are messages.
        processors: whether logits pass through the processors that the target's generation config asks for (`repetition_penalty` and so on), as
            in `generate` of transformers; steps with them run eagerly.
        engine: captured steps to go on with. On CUDA that of the models is taken if none is given, which lasts from call to call.
        notice: a function that is told in a line what may surprise: steps that are not captured on CUDA, a tree that does not fit. By
            default it is logged.

    A pair without a tokenizer takes token ids, and the result has no text. Raises SettingsError, DatasetError, ModelError,
    CapacityError; all prompts are checked before the first is decoded.
    """
    settings = TextSettings(max_new_tokens, Sampling(temperature, top_p), drafting_of(drafting), stop_strings(stop), seed, processors)
    writer = _writer(pair, planned(plan), settings, engine, notice)
    listed = several(prompt)
    if listed is None:
        return _whole(writer.write(read_prompt(pair, prompt, chat_options)))
    prompts = [read_prompt(pair, given, chat_options, f"prompt {index}") for index, given in enumerate(listed)]
    for given in prompts:
        writer.request(given)  # raises what decoding it would
    return [_whole(writer.write(given, index)) for index, given in enumerate(prompts)]


def stream(
    pair: Target,
    prompt: TextPrompt,
    *,
    plan: Plan | GrowMap | StrPath | None = None,
    max_new_tokens: int = TextSettings.max_new_tokens,
    temperature: float = Sampling.temperature,
    top_p: float = Sampling.top_p,
    stop: str | Sequence[str] | None = (),
    seed: int = TextSettings.seed,
    drafting: Drafting | str = Drafting(),
    chat_options: ChatOptions = ChatOptions(),
    processors: bool = TextSettings.processors,
    engine: Engine | None = None,
    notice: Notice | None = None,
) -> "TextStream":
    """Return the text that `generate` returns, in pieces, each given out as soon as it is certain. A piece never splits a character.

    The prompt and the settings are checked at once; decoding begins with the first piece. Once the pieces are read, `result()` of what is
    returned has what `generate` returns. Raises what `generate` raises, ModelError for a pair without a tokenizer, and DatasetError for
    several prompts.
    """
    if pair.tokenizer is None:
        raise ModelError(
            f"pieces of text need the target's tokenizer, but {pair.target.name} comes without one; `generate` returns token ids"
        )
    if several(prompt) is not None:
        raise DatasetError("several prompts cannot be streamed at once; pass one, or call `generate`")
    settings = TextSettings(max_new_tokens, Sampling(temperature, top_p), drafting_of(drafting), stop_strings(stop), seed, processors)
    writer = _writer(pair, planned(plan), settings, engine, notice)
    return TextStream(writer.write(read_prompt(pair, prompt, chat_options)))


class TextStream(Iterator[str]):
    """The pieces of a text that is decoded while they are read."""

    def __init__(self, writing: Writing) -> None:
        self._writing = writing

    def __next__(self) -> str:
        return next(self._writing).text

    def result(self) -> Generated:
        """Return what has been written so far. A text that was not read to its end counts as interrupted."""
        return self._writing.result()


def planned(plan: Plan | GrowMap | StrPath | None) -> Plan | None:
    """Return the plan of a growmap, of its file or of its name, and any other plan as it is. Raises GrowMapError."""
    found = load_growmap(plan) if isinstance(plan, str | os.PathLike) else plan
    return found.tree if isinstance(found, GrowMap) else found


def _writer(pair: Target, plan: Plan | None, settings: TextSettings, engine: Engine | None, notice: Notice | None) -> Writer:
    """Return the writer, after telling which settings of the target's generation config are not followed: each once for a target."""
    writer = Writer(pair, plan, settings, engine=engine, notice=notice or _LOG.warning)
    left = pair.target.not_applied(sampled=not settings.sampling.greedy, processed=settings.processors)
    told = vars(pair.target).setdefault("_told_of_texts", set())
    if left is not None and left not in told:
        told.add(left)
        (notice or _LOG.warning)(left)
    return writer


def _whole(writing: Writing) -> Generated:
    for _ in writing:
        pass
    return writing.result()
