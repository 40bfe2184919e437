"""The model hub: whether it can be asked at all, found out within seconds and not after the libraries' long retries."""

import re
import ssl
import threading
import time
import urllib.error
import urllib.request
from functools import lru_cache
from pathlib import Path

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
    """Return whether the hub could hold a repository of this name: `owner/name` or a bare `name`. The name of a GGUF file is none.

    >>> is_repository_id("JackFram/llama-68m"), is_repository_id("./models/llama"), is_repository_id("a/b/c")
    (True, False, False)
    """
    if len(name) > 96 or "--" in name or ".." in name or name.lower().endswith(".gguf"):
        return False
    return _REPOSITORY.fullmatch(name) is not None


def cached_snapshot(name: str, revision: str | None = None) -> Path | None:
    """Return the folder of the local cache that holds a model's files at a revision; None if there is none. It need not be complete.

    The last part of the folder is the commit.
    """
    folder = _cached(name)
    wanted = revision or constants.DEFAULT_REVISION
    reference = folder / "refs" / wanted
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else wanted
    snapshot = folder / "snapshots" / commit
    return snapshot if commit and snapshot.is_dir() else None


def cannot_help(name: str, revision: str | None = None) -> str:
    """Return the sentence for a name that leads nowhere: no folder, not in the local cache, and the hub cannot be asked."""
    wanted = revision or constants.DEFAULT_REVISION
    snapshots = _cached(name) / "snapshots"
    others = sorted(path.name for path in snapshots.iterdir()) if snapshots.is_dir() else []
    if others:
        return (
            f"{name} is in the local cache, but not at revision {wanted}, and {unreachable()}; "
            f"pass `revision` {others[0]}, which is there, or give a local folder instead"
        )
    return (
        f"there is no folder {name}, {unreachable()}, and {name} is not in the local cache; check the path, or give a local folder instead"
    )


def unreachable() -> str:
    """Return why the hub was not asked, in words. It must have been found unreachable before."""
    if is_offline():
        return "the hub is not asked in offline mode (HF_HUB_OFFLINE)"
    return f"the hub ({endpoint()}) cannot be reached"


def _cached(name: str) -> Path:
    """Return the folder where the local cache keeps a model; it need not exist."""
    return Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"


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
