"""The model hub: whether it can be asked at all, found out within seconds and not after the libraries' long retries."""

import re
import ssl
import threading
import time
import urllib.error
import urllib.request
from functools import lru_cache

from huggingface_hub import constants

PATIENCE_SECONDS = 2.5
ANSWER_HOLDS_SECONDS = 30
PROXY_LOGIN_NEEDED = 407
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
_REPOSITORY = re.compile(rf"(?:{_PART}/)?{_PART}")


def endpoint() -> str:
    """Return the hub's address (HF_ENDPOINT)."""
    return str(constants.ENDPOINT)


def is_offline() -> bool:
    """Return whether offline mode is set, in which the hub is never asked."""
    return bool(constants.HF_HUB_OFFLINE)


def is_repository_id(name: str) -> bool:
    """Return whether the hub could hold a repository of this name: `owner/name` or a bare `name`.

    >>> is_repository_id("JackFram/llama-68m"), is_repository_id("./models/llama"), is_repository_id("a/b/c")
    (True, False, False)
    """
    return len(name) <= 96 and "--" not in name and ".." not in name and _REPOSITORY.fullmatch(name) is not None


def is_reachable(patience: float = PATIENCE_SECONDS) -> bool:
    """Return whether the hub answers within `patience` seconds, the look-up of its name included; in offline mode it does not.

    A page that says no counts as an answer, a server failure does not (the libraries would retry it for long). The
    answer holds for half a minute, so that loading two models and their tokenizers asks once.
    """
    return not is_offline() and _answers(endpoint(), patience, int(time.monotonic() // ANSWER_HOLDS_SECONDS))


@lru_cache(maxsize=8)
def _answers(address: str, patience: float, moment: int) -> bool:
    """Return whether the address answers. A thread of its own asks, since the look-up of a host name has no time limit. `moment` ages the cache."""
    answered = threading.Event()

    def ask() -> None:
        try:
            request = urllib.request.Request(address, method="HEAD", headers={"User-Agent": "treeopt"})
            with urllib.request.urlopen(request, timeout=patience):
                answered.set()
        except urllib.error.HTTPError as error:
            with error:
                if error.code < 500 and error.code != PROXY_LOGIN_NEEDED:
                    answered.set()
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLError):  # it answers; the libraries bring certificates of their own
                answered.set()
        except (OSError, ValueError):
            return

    thread = threading.Thread(target=ask, daemon=True, name="hub-reachability")
    thread.start()
    thread.join(patience)
    return answered.is_set()
