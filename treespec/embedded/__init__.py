"""The embedded pair: a tiny Llama target and draft, trained on the standard library's sources and shipped with treespec."""

from pathlib import Path

_FOLDER = Path(__file__).parent

TARGET_FOLDER = _FOLDER / "target"
"""12 layers x 256, head_dim 128, vocabulary 4,096: a plain Hugging Face model folder with its tokenizer."""

DRAFT_FOLDER = _FOLDER / "draft"
"""1 layer x 128, head_dim 64, distilled from the target, with the same tokenizer."""

EMBEDDED = {"embedded-target": TARGET_FOLDER, "embedded-draft": DRAFT_FOLDER}
"""The names by which they are loaded."""
