"""Whether the model hub can be asked at all, found out within seconds instead of the libraries' retries."""

import re
import ssl
import threading
import urllib.error
import urllib.request

from huggingface_hub import constants

PATIENCE_SECONDS = 3.5
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
_REPOSITORY = re.compile(rf"(?:{_PART}/)?{_PART}")


def endpoint() -> str:
    """The hub's address (HF_ENDPOINT)."""
    return str(constants.ENDPOINT)


def is_repository_id(name: str) -> bool:
    """Whether the hub could hold a repository of this name: `owner/name` or a bare `name`.

    >>> is_repository_id("JackFram/llama-68m"), is_repository_id("./models/llama"), is_repository_id("a/b/c")
    (True, False, False)
    """
    return len(name) <= 96 and "--" not in name and ".." not in name and _REPOSITORY.fullmatch(name) is not None


def is_reachable(patience: float = PATIENCE_SECONDS) -> bool:
    """Whether the hub answers at all within `patience` seconds, name look-up included; False in offline mode.

    Any answer counts, an error page too. The question runs in a thread of its own since a look-up of a host name cannot
    be given a time limit.
    """
    if constants.HF_HUB_OFFLINE:
        return False
    answered = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(endpoint(), method="HEAD", headers={"User-Agent": "treeopt"})
        try:
            with urllib.request.urlopen(request, timeout=patience):
                answered.set()
        except urllib.error.HTTPError:
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
