"""The folder form of `tree_generate`, which takes `assistant_model`, `streamer` and `tokenizer` by the names that `generate` has for them."""

from pathlib import Path
from typing import Any

from transformers import StoppingCriteriaList, StopStringCriteria

from treespec.errors import SettingsError
from treespec.integrations.transformers.generating import tree_generate


def folder() -> str:
    """Return the folder for `model.generate(..., custom_generate=folder(), trust_remote_code=True, assistant_model=draft)`."""
    return str(Path(__file__).with_name("recipe"))


def generate_from_folder(
    model: Any,
    *,
    assistant_model: Any = None,
    draft: Any = None,
    streamer: Any = None,
    tokenizer: Any = None,
    stop_strings: str | list[str] | None = None,
    stopping_criteria: Any = None,
    **arguments: Any,
) -> Any:
    """Run `generate` with `tree_generate`. `arguments` are those of `generate` and of `tree_generate`.

    `assistant_model` is another name of `draft`, `streamer` of `tree_streamer`; `stop_strings` need a `tokenizer`, as in `generate`. Raises
    SettingsError, and the errors of `tree_generate`.
    """
    if assistant_model is not None and draft is not None:
        raise SettingsError("`assistant_model` and `draft` are two names of one thing; pass one of them")
    stops = StoppingCriteriaList(stopping_criteria or [])
    if stop_strings is None:
        configs = arguments.get("generation_config"), model.generation_config
        stop_strings = next((found for config in configs if (found := getattr(config, "stop_strings", None)) is not None), None)
    if stop_strings is not None:
        if tokenizer is None:
            raise SettingsError("`stop_strings` are found by a tokenizer; pass `tokenizer` as well")
        stops.append(StopStringCriteria(tokenizer, stop_strings))
        arguments["stop_strings"] = None  # `generate` would look for a tokenizer, which it keeps from callables
    if streamer is not None:
        arguments["tree_streamer"] = streamer
    kept = {key: value for key, value in arguments.items() if value is not None or key == "stop_strings"}
    # by the class: `generate` of the object itself may be this very function
    return type(model).generate(
        model, custom_generate=tree_generate, draft=draft if assistant_model is None else assistant_model, stopping_criteria=stops, **kept
    )
