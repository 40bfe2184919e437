"""The signals that stop the process, and the exit codes that tell of them. The module needs next to nothing, so that it is there at once."""

from __future__ import annotations

import os
import signal
import sys
import time

TYPE_CHECKING = False  # that of `typing`, whose import takes as long as all others here
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any, NoReturn

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_SAME_SECONDS = 1.0
"""A signal that comes this soon after the first one is the same wish: it does not disturb the clean-up."""
_AGAIN_SECONDS = 0.02
"""An interruption that was lost is sent again this much later."""
INTERRUPTED = "interrupted; run the same command again to go on"
UNREAD = 128 + getattr(signal, "SIGPIPE", 13)
"""The exit code where whoever read the output has seen enough, as `head` does."""


def exit_code(error: KeyboardInterrupt) -> int:
    """Return the exit code for an interruption: 128 and the number of its signal, which is SIGINT if it names none."""
    return 128 + int(error.args[0] if error.args and isinstance(error.args[0], int) else signal.SIGINT)


class Signals:
    """Signals that stop the process. While `raising`, the first raises KeyboardInterrupt with its number; any other ends the process at once."""

    def __init__(self) -> None:
        self.raising = False
        self._first: float | None = None
        self._process = os.getpid()

    def listen(self) -> None:
        """Set the handlers. A signal that is ignored, as nohup does it, stays so."""
        for number in SIGNALS:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(number, self._handle)
        self._unraisable = sys.unraisablehook
        sys.unraisablehook = self._raise_again

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # in a child of ours
            die(number)
        now = time.monotonic()
        if self._first is None and self.raising:
            self._first = now
            raise KeyboardInterrupt(number)
        if self._first is None or now - self._first > _SAME_SECONDS:
            os.write(2, INTERRUPTED.encode() + b"\n")
            die(number)

    def _raise_again(self, found: Any) -> None:
        """Send an interruption again that Python could not raise where it came, as in a destructor; show other errors as before.

        It must come once this function has returned, because Python would not let it out of here either. So a thread sends it.
        """
        if not issubclass(found.exc_type, KeyboardInterrupt):
            self._unraisable(found)
            return
        from threading import Timer

        self._first = None
        again = Timer(_AGAIN_SECONDS, os.kill, (self._process, exit_code(found.exc_value or KeyboardInterrupt()) - 128))
        again.daemon = True
        again.start()


class Interrupting:
    """A block in which the first Ctrl-C calls `act` and nothing else. A later one that is another wish is as any other."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act
        self._before: Any = None
        self._first: float | None = None

    def __enter__(self) -> None:
        """Set the handler, unless Ctrl-C is ignored or this is not the main thread."""
        before = signal.getsignal(signal.SIGINT)
        if before in (signal.SIG_IGN, None):
            return
        try:
            signal.signal(signal.SIGINT, self._handle)
        except ValueError:
            return
        self._before = before

    def __exit__(self, *error: object) -> None:
        """Set the handler of before again."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now
            self._act()
        elif now - self._first > _SAME_SECONDS:
            signal.signal(signal.SIGINT, self._before)
            signal.raise_signal(number)


def die(number: int) -> NoReturn:
    """End the process by a signal, as if it had no handler. A loop of a shell over several runs then stops with this one."""
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
    os._exit(128 + number)  # where the signal is blocked
