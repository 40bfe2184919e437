"""Messages of conversations: the many spellings that data sets have become the one that chat templates read."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from treespec.errors import DatasetError

Message = Mapping[str, Any]
"""One message of a conversation: its `role`, its `content` as a string, and what else templates read, such as `tool_calls`."""

CONVERSATIONS = ("messages", "conversations", "conversation")
"""Keys that hold the messages of a conversation; any other text key may hold them too."""

BEFORE = "message of the assistant before the first of a user"
"""The kind of message that is left out of conversations which the assistant begins."""

_ROLE, _CONTENT = ("role", "from"), ("content", "value", "text")
_ROLES = {
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "bot", "chatbot", "ai", "model"), "assistant"),
    **dict.fromkeys(("function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("tool", "function", "function_response", "tool_response", "tool_result", "observation", "ipython"), "tool"),
    "system": "system",
}
_TEXT_PARTS = ("text", "input_text", "output_text")
_ASKING = ("user", "tool")
_SPOKEN = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking", "refusal")
"""Keys of what an assistant may say in the place of a content."""


@dataclass(frozen=True)
class Conversation:
    """Messages up to the last one that is to be answered, the row's own `reply` to it, and the `text` of all of them.

    `left_out` counts what a model of text cannot read, by kind.
    """

    messages: tuple[Message, ...]
    reply: str | None
    text: str
    left_out: Mapping[str, int] = field(default_factory=dict)


def listed_messages(value: object) -> Sequence[Mapping[str, Any]] | None:
    """Return a list of messages, which may be given as a string of JSON; None for anything else."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
        if not (isinstance(value, list) and all(isinstance(item, Mapping) and _first(item, _ROLE) is not None for item in value)):
            return None
    if isinstance(value, list | tuple) and value and all(isinstance(item, Mapping) for item in value):
        return value
    return None


def conversation(messages: Sequence[Mapping[str, Any]], key: str, name: str) -> Conversation:
    """Return a conversation from the messages under a row's key, whatever their spelling.

    What the assistant says before the first message of a user is left out, since it answers nobody. Raises DatasetError beginning with `name`.
    """
    left_out: Counter[str] = Counter()
    found = [_message(message, name, f'message {number} in "{key}"', left_out) for number, message in enumerate(messages)]
    text = "\n".join(message["content"] for message in found)
    roles = [message["role"] for message in found]
    start = roles.index("user") if "user" in roles else 0
    spoken = roles.index("assistant") if "assistant" in roles[:start] else start
    left_out[BEFORE] += start - spoken
    kept = found[:spoken] + found[start:]
    end = max((i + 1 for i, message in enumerate(kept) if message["role"] in _ASKING), default=0)
    reply = kept[end]["content"] if 0 < end < len(kept) and kept[end]["role"] == "assistant" else None
    return Conversation(tuple(kept[:end]), reply, text, +left_out)


def dialogue(messages: Sequence[Mapping[str, Any]], name: str) -> tuple[Message, ...]:
    """Return the messages of a conversation that is to be answered as it stands, whatever their spelling.

    Unlike those of a data set's rows, they are neither cut nor thinned. Raises DatasetError beginning with `name` for parts that are no
    text, and for a conversation that ends with the assistant's own words.
    """
    left_out: Counter[str] = Counter()
    found = tuple(_message(message, name, f"message {number}", left_out) for number, message in enumerate(messages))
    if left_out:
        raise DatasetError(f"{name}: its messages have a {next(iter(left_out))}, but here only text is read; leave it out")
    if found[-1]["role"] == "assistant":
        raise DatasetError(
            f"{name}: its last message is the assistant's own, so there is nothing to answer; end with a message of the user"
        )
    return found


def _first(message: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((message[key] for key in keys if message.get(key) is not None), None)


def _message(message: Mapping[str, Any], name: str, place: str, left_out: Counter[str]) -> dict[str, Any]:
    role, content = _first(message, _ROLE), _first(message, _CONTENT)
    if not any(key in message for key in _ROLE):
        found = ", ".join(repr(key) for key in list(message)[:8])
        raise DatasetError(f'{name}: {place} has no "role" and no "from" (its keys: {found}); give it one')
    if not isinstance(role, str):
        raise DatasetError(f'{name}: the "role" of {place} is {kind(role)}, but it must be a string')
    others = {str(key): value for key, value in message.items() if value is not None and key not in (*_ROLE, *_CONTENT)}
    if isinstance(calls := json_of(others.get("tool_calls")), list | tuple):
        others["tool_calls"] = [_call(call) for call in calls]
    role = _ROLES.get(role.strip().lower(), role)
    if role == "tool" and content is not None and not isinstance(content, str) and not _is_parts(content):
        content = json.dumps(content, ensure_ascii=False, default=str)
    speaks = any(others.get(key) for key in _SPOKEN)
    return {"role": role, "content": _text(content, f'{name}: the "content" of {place}', left_out, needed=not speaks), **others}


def _is_parts(content: object) -> bool:
    """Return whether a content is a list of parts, or one part, and not what a tool returned."""
    parts = content if isinstance(content, list | tuple) else [content]
    return bool(parts) and all(isinstance(part, str) or (isinstance(part, Mapping) and "type" in part) for part in parts)


def _text(content: object, where: str, left_out: Counter[str], *, needed: bool) -> str:
    """Return a message's content as a string: its own, or its parts of text, one per line. Other parts are counted in `left_out`.

    Raises DatasetError if there is no text although it is `needed`.
    """
    if isinstance(content, str):
        return content
    if not content and not needed:
        return ""
    parts = [content] if isinstance(content, Mapping) else content
    if not isinstance(parts, list | tuple) or not parts or not all(isinstance(part, str | Mapping) for part in parts):
        raise DatasetError(f"{where} is {kind(content)}, but it must be a string or a list of parts")
    texts = []
    for part in parts:
        said = part if isinstance(part, str) else part.get("text") if part.get("type", "text") in _TEXT_PARTS else None
        if isinstance(said, str):
            texts.append(said)
        else:
            left_out[f"part of the type {str(part['type']) if 'type' in part else 'unknown':.40}"] += 1
    if not texts and needed:
        raise DatasetError(f"{where} has no part of text")
    return "\n".join(texts)


def _call(call: Any) -> Any:
    """Return a tool call whose arguments are an object, as templates expect, if they are the JSON of one."""
    if not isinstance(call, Mapping):
        return call
    if isinstance(function := call.get("function"), Mapping):
        return {**call, "function": _arguments(function)}
    return _arguments(call)


def _arguments(call: Mapping[str, Any]) -> Mapping[str, Any]:
    arguments = json_of(call.get("arguments"))
    return {**call, "arguments": arguments} if isinstance(arguments, dict) else call


def json_of(value: object) -> Any:
    """Return the value of a string of JSON, and anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def kind(value: object) -> str:
    """Return the words for a value of the wrong type."""
    if value is None:
        return "null"
    if isinstance(value, list | tuple):
        return "an empty list" if not value else "a list with something else than strings in it"
    if value == "":
        return "an empty string"
    names = {dict: "an object", str: "a string", bool: "a truth value", int: "a number", float: "a number"}
    return names.get(type(value), f"a {type(value).__name__}")
