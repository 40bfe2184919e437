"""Settings of a text that make no sense are refused in a line."""

from typing import Any

import pytest

from treespec.errors import SettingsError
from treespec.text.settings import TextSettings


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_new_tokens": 0}, "`max_new_tokens` is 0, but it must be 1 or more"),
        ({"max_new_tokens": 1.5}, "`max_new_tokens` is 1.5, but it must be a whole number"),
        ({"seed": -1}, "`seed` is -1, but it must be 0 or more"),
        ({"stop": ("a", "")}, "`stop` has an empty string"),
        ({"stop": ("a", 3)}, "`stop` has 3 at place 1"),
        ({"stop": "a"}, "`stop` is 'a', but it must be a tuple"),
        ({"sampling": 0.0}, "`sampling` is 0.0, but it must be a Sampling"),
        ({"drafting": "topk"}, "`drafting` is 'topk', but it must be a Drafting"),
    ],
)
def test_settings_are_checked(options: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError) as found:
        TextSettings(**options)
    assert words in str(found.value)
    assert "\n" not in str(found.value)
