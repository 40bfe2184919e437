"""The process of the command `treeopt`: how it starts, and how it ends.

Next to nothing is imported before the signals are set, so that Ctrl-C is one line from the first moment on.
"""

from __future__ import annotations

import gc
import os
import sys

from treeopt.cli.signals import INTERRUPTED, SIGNALS, UNREAD, Signals, die, exit_code

TYPE_CHECKING = False  # that of `typing`, whose import takes as long as all others here
if TYPE_CHECKING:
    from typing import Any, NoReturn


_COLLECTED_AFTER = (50_000, 20, 100)
"""Python looks for garbage in cycles this seldom; imports make hundreds of thousands of objects that stay."""


def run() -> NoReturn:
    """Run the command line, and end the process as shells expect: with an exit code, or by the signal that stopped it."""
    signals = Signals()
    signals.listen()
    gc.set_threshold(*_COLLECTED_AFTER)
    had_output = sys.stdout is not None
    _open_standard_files()
    from treeopt.cli.main import main
    from treeopt.cli.memory import watch_imports
    from treeopt.cli.output import open_doors, say

    watch_imports()
    open_doors()
    if not had_output:
        say("error: standard output is closed, and results go there; redirect it to a file, or to /dev/null", err=True)
        sys.exit(1)
    if not _has_working_folder():
        say("error: the working folder was deleted; change to another one", err=True)
        sys.exit(1)
    try:
        signals.raising = True
        code = _run(main)
    except KeyboardInterrupt as error:  # outside of a command: while it is looked for, or after its end
        say(INTERRUPTED, err=True)
        code = exit_code(error)
    if code == UNREAD:
        _drop_output()
    if code == UNREAD or code - 128 in SIGNALS:
        die(code - 128)
    gc.freeze()  # else Python looks for garbage among all that was imported, for seconds, before the process ends
    sys.exit(code)


def _run(main: Any) -> int:
    """Run the command `main` and return its exit code; what it printed is out when this returns. Raises KeyboardInterrupt."""
    import click

    from treeopt.cli.errors import explain, one_line
    from treeopt.cli.output import say

    try:
        code = main.main(prog_name="treeopt", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.UsageError as error:
        shown = one_line(error)
        shown.show()
        return shown.exit_code
    except click.Abort as error:
        raise error.__cause__ if isinstance(error.__cause__, KeyboardInterrupt) else KeyboardInterrupt from None
    except BrokenPipeError:
        return UNREAD
    except Exception as error:  # a command explains its own; these come from around it, as where the help goes to a full disk
        if "--debug" in sys.argv:
            raise
        if isinstance(error, OSError):
            error.filename = error.filename or "standard output"
            _drop_output()
        say(f"error: {explain(error)}", err=True)
        return 1


def _has_working_folder() -> bool:
    """Return whether the working folder is there: without one some libraries end the process where they are loaded."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def _drop_output() -> None:
    """Send what was not printed to /dev/null: Python would try once more at its end, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _open_standard_files() -> None:
    """Put /dev/null in the place of standard files that are closed: else the next file that is opened would take their number."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - it stays open until the process ends
