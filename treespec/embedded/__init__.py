"""The embedded pair: a tiny Llama target and draft, and an EAGLE-3 head, trained on the standard library's sources and shipped with treespec."""

from pathlib import Path

_FOLDER = Path(__file__).parent

TARGET_FOLDER = _FOLDER / "target"
"""12 layers x 256, head_dim 128, vocabulary 4,096: a plain Hugging Face model folder with its tokenizer."""

DRAFT_FOLDER = _FOLDER / "draft"
"""1 layer x 128, head_dim 64, distilled from the target, with the same tokenizer."""

HEAD_FOLDER = _FOLDER / "eagle3"
"""An EAGLE-3 head for the target, in the layout of its authors: one layer x 256, with all tokens of the target, whose `lm_head` it borrows."""

EMBEDDED = {"embedded-target": TARGET_FOLDER, "embedded-draft": DRAFT_FOLDER, "embedded-eagle3": HEAD_FOLDER}
"""The names by which they are loaded."""


def is_named_as_embedded(name: str) -> bool:
    """Return whether a name is one of `EMBEDDED`, or can only be one misspelt: it begins like them and has no owner."""
    return name.startswith("embedded-") and "/" not in name
