"""Rows in memory: texts, token ids, conversations or objects that a caller has in a list."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from treespec.data.rows import BadRow, Row, keys_of, read_row

IN_MEMORY = "in memory"
"""The name of the data set that a list of rows is."""


def listed_rows(items: Sequence[object], field: str | None = None) -> Iterator[Row | BadRow]:
    """Yield a row per item, as a line of a .jsonl file would give it. `field` is the key of the texts of objects, if it is no usual one."""
    for number, item in enumerate(items):
        record, keys = _record(item), keys_of(field)
        yield read_row(record, name=f"row {number}", keys=keys if record is item else keys_of(None))


def is_conversation(item: object) -> bool:
    """Return whether an item is a list of messages, or an object with one.

    >>> is_conversation([{"role": "user", "content": "Hello"}]), is_conversation("Hello"), is_conversation([15496])
    (True, False, False)
    """
    messages = item.get("messages") if isinstance(item, Mapping) else item
    return isinstance(messages, list | tuple) and bool(messages) and all(isinstance(message, Mapping) for message in messages)


def held(item: Any) -> Any:
    """Return what a tensor or an array holds, where a batch of one is its only row; anything else as it is."""
    if not hasattr(item, "tolist"):
        return item
    found = item.tolist()
    return found[0] if isinstance(found, list) and len(found) == 1 and isinstance(found[0], list) else found


def _record(item: Any) -> object:
    """Return an item as the object that a line of a .jsonl file holds."""
    if isinstance(item, str):
        return {"text": item}
    item = held(item)
    if isinstance(item, list | tuple):
        item = [held(each) for each in item]
        return {"messages": item} if is_conversation(item) else {"input_ids": item}
    return item
