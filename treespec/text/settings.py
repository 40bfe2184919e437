"""The settings of a text, as plain data. No torch."""

from collections.abc import Iterable
from dataclasses import dataclass

from treespec.checks import require_kind, require_whole
from treespec.decoding.drafting import Drafting
from treespec.decoding.rules import Sampling
from treespec.errors import SettingsError


@dataclass(frozen=True)
class TextSettings:
    """The settings of a text: its length, the ways to choose and to draft its tokens, and the strings at which it ends.

    At most `max_new_tokens` tokens are generated. The text ends before the first of the `stop` strings; see `Stops` for which is the
    first. Prompt i draws from the random stream of (`seed`, i).
    """

    max_new_tokens: int = 128
    sampling: Sampling = Sampling()
    drafting: Drafting = Drafting()
    stop: tuple[str, ...] = ()
    seed: int = 0
    processors: bool = True
    """Whether logits pass through the processors that the target's generation config asks for, as in `generate` of transformers."""

    def __post_init__(self) -> None:
        require_whole(1, max_new_tokens=self.max_new_tokens)
        require_whole(0, seed=self.seed)
        require_kind(Sampling, sampling=self.sampling)
        require_kind(Drafting, drafting=self.drafting)
        require_kind(tuple, stop=self.stop)
        for number, string in enumerate(self.stop):
            if not isinstance(string, str):
                raise SettingsError(f"`stop` has {string!r:.40} at place {number}, but it must be a string or several; pass strings")
            if not string:
                raise SettingsError(
                    "`stop` has an empty string, which stands at the start of every text; pass strings of 1 character or more"
                )


def stop_strings(given: str | Iterable[str] | None) -> tuple[str, ...]:
    """Return stop strings as settings have them; one string is one of them, and not a sequence of characters. None is none.

    Raises SettingsError for what is neither.

    >>> stop_strings("User:"), stop_strings(["a", "b"])
    (('User:',), ('a', 'b'))
    """
    if given is None:
        return ()
    if not isinstance(given, Iterable):
        raise SettingsError(f"`stop` is {given!r:.40}, but it must be a string or several; pass strings")
    return (given,) if isinstance(given, str) else tuple(given)
