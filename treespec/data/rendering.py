"""Chat templates are programs from outside: they run in a process of their own, with limits of time, memory and output.

Jinja's sandbox keeps a template from files and from Python's internals, but not from loops without end or from `"x" * 10**10`, and a single
such operation cannot be stopped from within. So the sandbox (transformers' own, with everything that its templates may use) runs in
`template_process.py`, one process for all conversations, which the system ends at the limits.
"""

import atexit
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from treespec.data.messages import Message
from treespec.data.template_process import CPU_SECONDS, MAX_CHARACTERS, MEMORY_BYTES

_WALL_SECONDS = 60.0
"""Longest wait for an answer, the start of the process included. A template's own limit is one of processor time, for busy machines."""


class TemplateError(Exception):
    """A template that refuses a conversation; `broken` is true if it would refuse any."""

    def __init__(self, reason: str, *, broken: bool = False) -> None:
        super().__init__(reason)
        self.broken = broken


def rendered(template: str, messages: Sequence[Message], arguments: Mapping[str, Any]) -> str:
    """Return what a template makes of messages and arguments, up to where the model is to answer. Raises TemplateError."""
    try:
        asked = json.dumps({"template": template, "messages": list(messages), "arguments": dict(arguments)}, default=str)
    except (ValueError, RecursionError) as e:
        raise TemplateError(f"cannot read the conversation: {e}") from e
    answer = _process().ask(asked.encode() + b"\n")
    if "text" in answer:
        return str(answer["text"])
    raise TemplateError(str(answer["reason"]), broken=bool(answer.get("broken")))


class _Process:
    """The process that renders templates; it is started when it is first asked, and again after a template has ended it."""

    def __init__(self) -> None:
        self._running: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def ask(self, line: bytes) -> dict[str, Any]:
        """Return the answer to one line of JSON; `reason` says why there is no `text`."""
        with self._lock:
            if self._running is None:
                script = Path(__file__).with_name("template_process.py")
                self._running = subprocess.Popen(
                    [sys.executable, "-P", str(script)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C is for this process, which may go on to ask
                )
            assert self._running.stdin is not None and self._running.stdout is not None
            late = threading.Timer(_WALL_SECONDS, self._running.kill)
            late.daemon = True
            late.start()
            try:
                self._running.stdin.write(line)
                self._running.stdin.flush()
                answer = self._running.stdout.readline()
            except BrokenPipeError:
                answer = b""
            except BaseException:  # Ctrl-C: else the next one who asks would get the answer to this line
                self._running.kill()
                self.close()
                raise
            finally:
                late.cancel()
            if answer.endswith(b"\n"):
                found: dict[str, Any] = json.loads(answer)
                return found
            return {"reason": _reason(self.close()), "broken": True}

    def close(self) -> int | None:
        """End the process, and return its exit status."""
        if self._running is None:
            return None
        process, self._running = self._running, None
        if process.stdin is not None and process.stdout is not None:
            process.stdout.close()
            try:
                process.stdin.close()
            except BrokenPipeError:
                process.kill()
        return process.wait()


def _reason(status: int | None) -> str:
    """Return why the process ended without an answer."""
    if status and status == -getattr(signal, "SIGPROF", 0):
        return f"takes more than {CPU_SECONDS:g} s of processor time for one conversation"
    if status and status == -getattr(signal, "SIGKILL", 0):
        return f"takes more than {_WALL_SECONDS:g} s for one conversation, or more memory than there is"
    return f"ended the process that runs it (status {status}); its limits are {MEMORY_BYTES >> 20} MB and {MAX_CHARACTERS:,} characters"


@lru_cache(maxsize=1)
def _process() -> _Process:
    """Return the one process for all templates."""
    process = _Process()
    atexit.register(process.close)
    return process
