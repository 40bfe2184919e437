"""Conversations become token ids by the tokenizer's own chat template."""

from typing import Any

from treespec.data.rows import Row
from treespec.errors import DatasetError


def require_template(tokenizer: Any) -> None:
    """Raise DatasetError if a tokenizer of transformers has no chat template, a broken one, or several without a default."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise DatasetError(
            "`chat` needs a chat template, but the target's tokenizer has none; drop `chat`, "
            "or add a chat_template.jinja or the tokenizer_config.json of an instruction-tuned model to its folder"
        )
    try:
        tokenizer.get_chat_template()
    except ValueError as e:
        raise DatasetError(
            "`chat` needs a chat template, but the target's tokenizer has several and none is the default; drop `chat`"
        ) from e
    from jinja2 import TemplateSyntaxError

    try:
        tokenizer.apply_chat_template([{"role": "user", "content": ""}], tokenize=False)
    except TemplateSyntaxError as e:
        raise DatasetError(
            f"the tokenizer's chat template is broken at its line {e.lineno}: {e.message}; correct it in the target's folder, or drop `chat`"
        ) from e
    except Exception:  # whole templates may refuse this conversation, and take those of the data set
        return


def chat_ids(tokenizer: Any, row: Row) -> tuple[int, ...]:
    """Return the token ids of a row's conversation, up to where the model is to answer.

    The chat template writes the special tokens itself, so none are added. Raises DatasetError that begins with the row's name: there is
    no message of a user, or the template refuses the conversation.
    """
    if not row.messages:
        raise DatasetError(f'{row.name}: the conversation has no message of role "user" to answer')
    messages = [{"role": role, "content": content} for role, content in row.messages]
    return tuple(templated(tokenizer, messages, row.name, tokenize=True, return_dict=False))


def templated(tokenizer: Any, messages: list[dict[str, Any]], name: str, **options: bool) -> Any:
    """Return messages as the tokenizer's chat template writes them, up to where the model is to answer.

    Raises DatasetError beginning with `name`.
    """
    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, **options)
    except Exception as e:  # templates are programs, which refuse in their own words or break in many ways
        reason = " ".join(str(e).split())[:200] or type(e).__name__
        raise DatasetError(f"{name}: the tokenizer's chat template refuses the conversation: {reason}") from e


def reply_ids(tokenizer: Any, row: Row) -> tuple[int, ...]:
    """Return the token ids of the row's own reply to its conversation, tokenised alone; they are empty if it has none."""
    return tuple(tokenizer.encode(row.reply, add_special_tokens=False)) if row.reply else ()
