"""Conversations become token ids by the tokenizer's own chat template."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from treespec.checks import require_kind
from treespec.data.encoding import encoded
from treespec.data.messages import Message, json_of, kind
from treespec.data.rendering import TemplateError, rendered
from treespec.data.rows import ARGUMENTS, SYSTEM, Row
from treespec.data.slices import ChatOptions
from treespec.errors import DatasetError, SettingsError, listed


@dataclass(frozen=True)
class Talk:
    """The input of a chat template: messages, and arguments by name."""

    messages: tuple[Message, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)


def talk_of(row: Row, options: ChatOptions) -> Talk:
    """Return what the template reads of a row; its own system prompt and arguments go before those of all rows.

    Raises DatasetError, and SettingsError for options of another kind.
    """
    require_kind(ChatOptions, chat_options=options)
    if not any(message["role"] == "user" for message in row.messages):
        raise DatasetError(f'{row.name}: the conversation has no message of role "user" to answer')
    own = next((row.beside[key] for key in SYSTEM if isinstance(row.beside.get(key), str)), None)
    system, messages = own or options.system, row.messages
    if system is not None and messages[0]["role"] not in ("system", "developer"):
        messages = ({"role": "system", "content": system}, *messages)
    tools, known = (json_of(row.beside.get(key)) for key in ARGUMENTS)
    tools = [json_of(tool) for tool in tools] if isinstance(tools, list | tuple) else tools
    if tools is not None and not (isinstance(tools, list | tuple) and all(isinstance(tool, Mapping) for tool in tools)):
        raise DatasetError(f'{row.name}: "tools" is {kind(tools)}, but it must be a list of objects')
    if known is not None and not isinstance(known, Mapping):
        raise DatasetError(f'{row.name}: "chat_template_kwargs" is {kind(known)}, but it must be an object')
    own_arguments = {str(key): value for key, value in (known or {}).items() if value is not None}
    try:
        ChatOptions(None, own_arguments)
    except SettingsError as e:
        raise DatasetError(f"{row.name}: {str(e).replace('`chat_args`', 'chat_template_kwargs')}") from e
    return Talk(messages, {**options.arguments, **own_arguments, **({"tools": list(tools)} if tools else {})})


def require_template(tokenizer: Any, options: ChatOptions = ChatOptions()) -> None:
    """Raise DatasetError if a tokenizer of transformers has no chat template, a broken one, several without a default, or one that refuses `options`."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise DatasetError(
            "`chat` needs a chat template, but the target's tokenizer has none; drop `chat`, "
            "or add a chat_template.jinja or the tokenizer_config.json of an instruction-tuned model to its folder"
        )
    try:
        template = tokenizer.get_chat_template()
    except ValueError as e:
        raise DatasetError(
            "`chat` needs a chat template, but the target's tokenizer has several and none is the default; drop `chat`"
        ) from e
    if not isinstance(template, str) or not template:
        raise DatasetError(
            f"the tokenizer's chat template is {kind(template)}, but it must be a text; correct it in the target's folder, or drop `chat`"
        )
    try:
        _written(tokenizer, Talk(({"role": "user", "content": "x"},)))
    except TemplateError as e:
        if e.broken:  # else it refuses this conversation, and may take those of the data set
            raise DatasetError(f"the tokenizer's chat template {e}; correct it in the target's folder, or drop `chat`") from e
        return
    try:
        _written(tokenizer, talk_of(Row.of_text("", "x"), options))
    except TemplateError as e:
        given = [*(["`system`"] if options.system is not None else []), *(["`chat_args`"] if options.arguments else [])]
        raise DatasetError(f"with {listed(given)}, the tokenizer's chat template {e}; correct or drop what it refuses") from e


def unread_arguments(tokenizer: Any, options: ChatOptions) -> list[str]:
    """Return the names of arguments that the tokenizer's chat template does not read."""
    template = str(tokenizer.get_chat_template())
    return [name for name in options.arguments if name not in template]


def chat_ids(tokenizer: Any, talk: Talk, name: str) -> tuple[int, ...]:
    """Return the token ids of a conversation, up to where the model is to answer.

    The chat template writes the special tokens itself, so none are added. Raises DatasetError that begins with `name`: the template
    refuses the conversation, or the tokenizer what it makes of it.
    """
    return encoded(tokenizer, templated(tokenizer, talk, name), name, special=False)


def templated(tokenizer: Any, talk: Talk, name: str) -> str:
    """Return messages as the tokenizer's chat template writes them, up to where the model is to answer. Raises DatasetError beginning with `name`."""
    try:
        return _written(tokenizer, talk)
    except TemplateError as e:
        raise DatasetError(f"{name}: the tokenizer's chat template {e}") from e


def _written(tokenizer: Any, talk: Talk) -> str:
    arguments = {"tools": None, **tokenizer.special_tokens_map, **talk.arguments}
    return rendered(tokenizer.get_chat_template(None, arguments["tools"]), talk.messages, arguments)


def reply_ids(tokenizer: Any, reply: str | None, name: str) -> tuple[int, ...]:
    """Return the token ids of a row's own reply to its conversation, tokenised alone; they are empty if it has none."""
    return encoded(tokenizer, reply, name, special=False) if reply else ()
