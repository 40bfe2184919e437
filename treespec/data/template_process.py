"""The program that renders chat templates, run by `rendering` in a process of its own: a line of JSON in, a line of JSON out.

It needs only what it imports here and in `main`, since it is run as a file and not as a module of treespec.
"""

import json
import signal
import sys
from collections.abc import Callable
from typing import Any

CPU_SECONDS = 1.0
MEMORY_BYTES = 512 << 20
MAX_CHARACTERS = 4_000_000
"""Limits of one conversation: processor time, memory beyond what the libraries take, and length of what is written."""


def main() -> None:
    """Answer each line of stdin with one on stdout."""
    from transformers.utils.chat_template_utils import render_jinja_template

    _limit_memory()
    for line in sys.stdin.buffer:
        sys.stdout.write(json.dumps(answer(render_jinja_template, json.loads(line))) + "\n")
        sys.stdout.flush()


def answer(render: Callable[..., Any], asked: dict[str, Any]) -> dict[str, Any]:
    """Return the `text` of what was asked for, or the `reason` why there is none, and whether the template is `broken`."""
    from jinja2 import TemplateSyntaxError

    timed = hasattr(signal, "setitimer")
    try:
        if timed:
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # nothing handles its signal, so it ends the process wherever it is
        found = render([asked["messages"]], chat_template=asked["template"], add_generation_prompt=True, **asked["arguments"])
        text = found[0][0]
    except TemplateSyntaxError as e:
        return {"reason": f"is broken at its line {e.lineno}: {e.message}", "broken": True}
    except MemoryError:
        return {"reason": f"takes more than {MEMORY_BYTES >> 20} MB of memory for one conversation", "broken": True}
    except Exception as e:  # templates are programs, which refuse in their own words or break in many ways
        return {"reason": f"refuses the conversation: {' '.join(str(e)[:1000].split())[:200] or type(e).__name__}"}
    finally:
        if timed:
            signal.setitimer(signal.ITIMER_PROF, 0)
    if len(text) > MAX_CHARACTERS:
        return {"reason": f"writes {len(text):,} characters for one conversation, above the limit of {MAX_CHARACTERS:,}", "broken": True}
    return {"text": text}


def _limit_memory() -> None:
    """Let this process take MEMORY_BYTES more than it has. Systems without such a limit, or without its size, go by time and length alone."""
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[0])
    except (ImportError, OSError):
        return
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY_BYTES,) * 2)


if __name__ == "__main__":
    main()
