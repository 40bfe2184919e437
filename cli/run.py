"""The command `treeopt run`: decode a prompt, or hold a conversation, on the terminal."""

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from treeopt.cli.help import TreeoptCommand, example
from treeopt.cli.options import ModelOptions, chat_arg_option, check_chat_args, model_options, text_format_option
from treeopt.cli.output import Telling, ask, emit, note
from treeopt.cli.plan import TreeOptions, planned, read_named, tree_options
from treeopt.cli.settings import bundle, drafting_options, processors_option, sampling_options, seed_option, setting
from treeopt.cli.signals import Interrupting, exit_code
from treeopt.cli.tensor_parallel import are_several, of_first
from treeopt.cli.unused import note_unused
from treeopt.cli.values import POSITIVE
from treespec.data.slices import ChatOptions
from treespec.errors import DatasetError, ModelError, counted
from treespec.text.settings import TextSettings

if TYPE_CHECKING:
    from treespec.data.messages import Message
    from treespec.decoding.plans import Plan
    from treespec.models.drafts import Draft
    from treespec.models.pairs import Target, TargetInfo
    from treespec.text.generated import Generated
    from treespec.text.writing import Writer, Writing
    from treespec.trees.tree import SpeculationTree

_CHAIN = 4
"""Depth of the tree for a draft that comes without one: a chain, which every way of drafting takes."""
_MOST_CHARACTERS = 4_000_000
"""Largest length of a prompt on standard input, as of a row of a data set."""


@dataclass(frozen=True)
class Asked:
    """The prompt, and the additions to a conversation."""

    prompt: str | None
    chat: bool
    system: str | None
    chat_args: tuple[tuple[str, Any], ...]

    def __post_init__(self) -> None:
        check_chat_args(self.chat_args)
        _ = self.options  # checks the names

    @property
    def options(self) -> ChatOptions:
        """The additions to a conversation."""
        return ChatOptions(self.system, dict(self.chat_args))


@click.command(
    cls=TreeoptCommand,
    epilog=example("treeopt run --target embedded-target --draft embedded-draft --prompt 'def main('"),
)
@model_options(draft_required=False)
@tree_options()
@bundle(
    "asked",
    Asked,
    click.option(
        "--prompt", metavar="TEXT", help="Text to go on with, or with --chat the one message to answer. [default: standard input]"
    ),
    click.option("--chat", is_flag=True, help="A conversation in the tokenizer's chat template: each line of standard input is a message."),
    click.option("--system", metavar="TEXT", help="System prompt for --chat. [default: none]"),
    chat_arg_option,
    heading="Prompt",
)
@sampling_options()
@drafting_options(verifier=True)
@bundle(
    "settings",
    TextSettings,
    setting(TextSettings, "max_new_tokens", type=POSITIVE, help="Most tokens to generate for a prompt, or for an answer."),
    click.option("--stop", metavar="TEXT", multiple=True, help="String before which the text ends. May be given several times."),
    seed_option(TextSettings),
    processors_option(TextSettings),
    heading="Text",
)
@text_format_option
def run(models: ModelOptions, plan: TreeOptions, asked: Asked, settings: TextSettings, output_format: str) -> None:
    """Decode a prompt to the terminal, as it is made.

    The prompt is that of --prompt, or else all of standard input; with --chat there is a conversation. --draft is required with
    --growmap FILE, --budget FILE and --dynamic --size N --depth D. With a draft alone, a chain of 4 tokens is drafted; without one, the target decodes alone.

    On a terminal, tokens that were accepted from the draft are green. Figures follow on stderr. Ctrl-C ends the answer.
    """
    from treeopt.cli.hub import check_hub

    plan.check(settings.drafting, models.draft)
    note_unused()
    check_hub(models)
    from treeopt.cli.inputs import info_of, load, note_not_applied
    from treespec.text.prompts import read_prompt
    from treespec.text.writing import Writer

    named = plan.named or models.draft is None
    drafted: Plan | None = planned(plan, read_named(plan.growmap, plan.budget)) if named else _chain()
    known = info_of(models)
    _check_tokenizer(known, asked)
    if drafted is not None:
        settings.drafting.require(drafted, known.vocabulary_size)
    prompt = None
    if not asked.chat or asked.prompt is not None:
        text = of_first(_standard_input) if asked.prompt is None else asked.prompt
        given = [{"role": "user", "content": text}] if asked.chat else text
        prompt = read_prompt(known, given, asked.options)
    note_not_applied(known, settings.sampling, processed=settings.processors)
    pair = load(known, models)
    if not named:
        drafted = _chain(pair.models["draft"])
    writer = Writer(pair, drafted, settings, notice=note)
    shows = output_format != "json"
    answers = _converse(writer, pair, asked.options, shows) if prompt is None else [_answer(writer.write(prompt), shows)]
    if not shows:
        from treeopt.cli.results import conversation_summary, text_summary

        emit(output_format, text_summary(answers[0]) if prompt is not None else conversation_summary(answers), [])
    if prompt is not None and answers[0].ended == "interrupted":
        click.get_current_context().exit(exit_code(KeyboardInterrupt()))


def _chain(draft: "Draft | None" = None) -> "SpeculationTree":
    """Return what is drafted where no tree is named. For a `draft` that is loaded it is no deeper than heads propose at once, and said."""
    from treespec.models.heads.bound import BoundHead
    from treespec.trees.tree import SpeculationTree

    most = draft.parallel_levels if isinstance(draft, BoundHead) else None
    depth = _CHAIN if most is None else min(_CHAIN, most)
    if draft is not None:
        note(f"no tree is named, so a chain of {counted(depth, 'token')} is drafted; --growmap or --dynamic name one")
    return SpeculationTree.chain(depth)


def _check_tokenizer(known: "TargetInfo", asked: Asked) -> None:
    """Raise an error for a target that cannot read text, or none of a conversation; name arguments that its template does not read."""
    from treespec.data.chat import require_template, unread_arguments

    if known.tokenizer is None:
        raise ModelError(f"{known.target.name} comes without a tokenizer, which makes tokens of text; add its files to the folder")
    if asked.chat:
        require_template(known.tokenizer)
        for name in unread_arguments(known.tokenizer, asked.options):
            note(f"the chat template does not read {name}: --chat-arg {name} changes nothing")


def _answer(writing: "Writing", shows: bool) -> "Generated":
    """Return a text, shown while it is made, with its figures on stderr. Ctrl-C ends the text."""
    telling = Telling() if shows else None
    try:
        with nullcontext() if are_several() else Interrupting(writing.interrupt):  # together, they end together
            for piece in writing:
                if telling is not None:
                    telling.piece(piece.text, styled=piece.accepted)
    finally:  # an error has a line of its own, too
        if telling is not None:
            telling.end_line()
    made = writing.result()
    if telling is not None:
        legend = f"; {telling.style}: accepted from the draft" if telling.style and any(made.accepted_ranks) else ""
        note(f"{made.figures()}{legend}")
    return made


def _converse(writer: "Writer", pair: "Target", options: ChatOptions, shows: bool) -> "list[Generated]":
    """Return the answers of a conversation, whose other side is standard input. Answers that were ended early stay in it as they are."""
    from treespec.text.prompts import read_prompt

    messages: list[Message] = []
    answers: list[Generated] = []
    for said in _lines():
        messages.append({"role": "user", "content": said})
        prompt = read_prompt(pair, messages, options, "the conversation")
        answers.append(_answer(writer.write(prompt, len(answers)), shows))
        messages.append({"role": "assistant", "content": (answers[-1].text or "").strip()})
    return answers


def _lines() -> Iterator[str]:
    """Yield the lines of standard input that are not blank. Ctrl-C in front of one ends the command without a word."""
    while True:
        try:
            line = of_first(lambda: ask("> "))
        except KeyboardInterrupt as e:
            click.get_current_context().exit(exit_code(e))
        if line is None:
            return
        if line.strip():
            yield line.strip()


def _standard_input() -> str:
    """Return standard input without the line end that `echo` puts at its end. Raises DatasetError for what is no text."""
    if sys.stdin.isatty():
        note("the prompt is read from here; end it with Ctrl-D on a line of its own")
    try:
        text = sys.stdin.read(_MOST_CHARACTERS + 1)
    except UnicodeDecodeError as e:
        raise DatasetError(f"standard input is no text: {e.reason} at byte {e.start}; pass text, or `prompt`") from e
    if len(text) > _MOST_CHARACTERS:
        raise DatasetError(f"standard input has more than {_MOST_CHARACTERS:,} characters; pass a shorter prompt")
    text = text.removesuffix("\n")
    if not text:
        raise DatasetError("standard input is empty, and there is no `prompt`; pass one of the two")
    return text
