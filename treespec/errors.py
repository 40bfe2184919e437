"""The errors that people are meant to read: each message names the value, the limit and the remedy.

Parameters stand in backticks, by the names that they have in Python. The command line shows them as its own options, prints the message
alone and exits with 1, or with 2 if its options make no sense. Any other exception that escapes is a bug in treeopt.
"""

import errno
import re
from collections.abc import Iterable, Mapping, Sequence
from textwrap import shorten


def reason_of(error: BaseException) -> str:
    """Return the message of a library's error in one readable line."""
    return shorten(f"{type(error).__name__}: {error}", 200, placeholder=" ...").rstrip(".")


def renamed(message: str, names: Mapping[str, str]) -> str:
    """Return the message with other names for parameters, for a caller that knows them by these."""
    for name, other in names.items():
        message = message.replace(f"`{name}`", f"`{other}`")
    return message


def counted(count: float, one: str, many: str = "", *, form: str = "") -> str:
    """Return a count with words that agree with it; `many` is `one` with an s if it is left out. `form` is the count's own format.

    >>> counted(1, "step"), counted(0, "step"), counted(2000, "step", form=","), counted(1, "weight is", "weights are")
    ('1 step', '0 steps', '2,000 steps', '1 weight is')
    """
    return f"{count:{form}} {one if count == 1 else many or one + 's'}"


def listed(words: Sequence[str]) -> str:
    """Return words as a sentence lists them.

    >>> listed(["0", "0.2", "1"]), listed(["0"])
    ('0, 0.2 and 1', '0')
    """
    return " and ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)


def listed_in_short(words: Sequence[str], most: int = 4) -> str:
    """Return words as a sentence lists them, the first `most` of them if there are more.

    >>> listed_in_short(["a", "b", "c", "d"], 2), listed_in_short(["a", "b"], 2)
    ('a, b and 2 more', 'a and b')
    """
    return listed(words) if len(words) <= most else f"{', '.join(words[:most])} and {len(words) - most} more"


_NEAR = 0.7
"""Least likeness of a name to be suggested in the place of another, by `difflib`. Words that share an ending alone have less."""


def nearest(name: str, known: Iterable[str], most: int = 1) -> list[str]:
    """Return the known names that one may have meant, the nearest first; none where no name is near.

    >>> nearest("tempratur", ["temperature", "top_p"]), nearest("settings", ["repetitions"])
    (['temperature'], [])
    """
    from difflib import get_close_matches  # here, since only errors need it

    return get_close_matches(name, list(known), most, _NEAR)


_FULL = re.compile(r"can(no|')t allocate memory|not enough memory|failed to map segment|bad_alloc|can't start new thread", re.IGNORECASE)


def is_memory_full(error: BaseException) -> bool:
    """Return whether an error says that the host's memory is full, which libraries say by exceptions of many kinds.

    >>> is_memory_full(OSError(12, "Cannot allocate memory")), is_memory_full(RuntimeError("size mismatch"))
    (True, False)
    """
    return isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM or _FULL.search(str(error)) is not None


def is_panic(error: BaseException) -> bool:
    """Return whether an error is a library's in Rust that met a bug of its own: it reaches Python as something else than an Exception."""
    return type(error).__name__ == "PanicException"


class TreeoptError(Exception):
    """Base of every error that the user can act on."""


class SettingsError(TreeoptError, ValueError):
    """A setting that makes no sense, alone or beside another. The message has the names of parameters in backticks."""


class TreeError(TreeoptError, ValueError):
    """A speculation tree that cannot exist: cycles, forward parents, gaps in ranks."""


class GrowMapError(TreeoptError):
    """A growmap file that is corrupt, unsafe or inconsistent, or that does not fit its use."""


class ProfileError(TreeoptError):
    """An acceptance or latency profile that cannot be read, or that lacks what is asked of it."""


class MissingRuleError(ProfileError):
    """A latency profile without the times of the rule that is asked for.

    `what` says so without a remedy; each of `settings` are those of a missing rule to profile the latency with, by parameter.
    """

    def __init__(self, what: str, *settings: Mapping[str, str]) -> None:
        asked = ", and ".join("with " + " and ".join(f"`{name}` {value}" for name, value in one.items()) for one in settings)
        super().__init__(f"{what}; profile the latency {asked or 'of that rule'} too")
        self.what, self.settings = what, settings


class OptimizerError(TreeoptError, ValueError):
    """Limits that no tree meets, or a solver that would not be exact."""


class ModelError(TreeoptError):
    """A model that cannot be loaded, cannot be exact with trees, or does not fit its partner."""


class DatasetError(TreeoptError):
    """A data set that is unknown, unreachable or holds no usable prompt."""


class NoPromptError(DatasetError):
    """A slice of a data set that holds no usable prompt, or no row at all."""


class CapacityError(TreeoptError):
    """More positions or cache slots are needed than there are."""


class OutputError(TreeoptError):
    """A result that cannot be written to the place that was asked for."""


class ProcessesError(TreeoptError):
    """Several processes that cannot work together: one has ended, is not there, or was started with something else."""


class TrainingError(TreeoptError):
    """A training run that cannot start, cannot go on, or was interrupted."""
