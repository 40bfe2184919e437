"""The code that transformers runs for `custom_generate=folder(), trust_remote_code=True`. It hands all that it gets to treespec."""

from typing import Any

from treespec.integrations.transformers.folder import generate_from_folder


def generate(model: Any, **arguments: Any) -> Any:
    """Generate with trees; see `generate_from_folder`."""
    return generate_from_folder(model, **arguments)
