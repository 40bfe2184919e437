"""The words for a person when something goes wrong: one line and an exit code, and no traceback unless asked for."""

import errno
from typing import IO, Any, TypeVar

import click

from treeopt.cli.flags import with_flags
from treeopt.cli.joining import complain
from treeopt.cli.memory import memory_is_full
from treeopt.cli.output import say
from treeopt.cli.signals import INTERRUPTED, UNREAD, exit_code
from treespec.errors import ProcessesError, TreeoptError, is_memory_full

E = TypeVar("E", bound=BaseException)

_LONGEST = 400
"""Largest number of characters of a message. A longer one is cut in the middle: its beginning and end name the culprit and the remedy."""

RUN = "; run: treeopt "
"""The words of a message before a command to run, which is never cut."""
_RUNS = (RUN, "; start it with: torchrun ")

_ANYWHERE = ("--debug", "--quiet")
"""Options of treeopt itself that may stand anywhere on the line."""

_SYSTEM = {
    errno.ENOSPC: "the disk is full; free some space or write elsewhere",
    errno.EDQUOT: "the disk quota is used up; free some space or write elsewhere",
    errno.EACCES: "permission is denied; choose a place that you may use",
    errno.EROFS: "the file system is read-only; write elsewhere",
}


class TreeoptGroup(click.Group):
    """A group of commands whose failures are explained in one line on stderr with exit code 1 (usage errors: 2).

    Names of parameters in a message are shown as the command's own options. `--debug`, which lets exceptions through, and `--quiet` are
    understood anywhere on the line.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Move `--debug` and `--quiet` to the front, so that they may follow the command's own options."""
        options, separator, rest = _split(args)
        name_at = next((at for at, word in enumerate(options) if not word.startswith("-")), len(options))
        refuse_empty(ctx, options[: name_at + 1])  # the command looks at its own words
        first = [option for option in _ANYWHERE if option in options]
        options = [*first, *(a for a in options if a not in first)]
        try:
            return super().parse_args(ctx, [*options, *separator, *rest])
        except click.UsageError as error:
            raise one_line(error) from None
        except KeyboardInterrupt as error:
            say(INTERRUPTED, err=True)
            ctx.exit(exit_code(error))
        except BrokenPipeError:  # click prints the help in there
            ctx.exit(UNREAD)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, and turn its exceptions into messages."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            raise one_line(error) from None
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:
            ctx.exit(UNREAD)
        except (KeyboardInterrupt, Exception) as error:
            interruption = None if isinstance(error, ProcessesError) else _made_from(error, KeyboardInterrupt)
            if ctx.find_root().params.get("debug") and interruption is None:
                raise
            meant = interruption is None or isinstance(error, TreeoptError)
            line = f"error: {explain(error, self.commands.get(ctx.invoked_subcommand or ''))}" if meant else INTERRUPTED
            complain(line, own=meant and not isinstance(error, ProcessesError))
            ctx.exit(1 if interruption is None else exit_code(interruption))


class WrongUsage(click.UsageError):
    """A usage error that is shown in one line like every other failure."""

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the error and the command that shows the help."""
        where = f" ({self.ctx.command_path} --help says more)" if self.ctx is not None else ""
        complain(f"error: {_in_short(self.format_message())}{where}")


def refuse_empty(ctx: click.Context, args: list[str]) -> None:
    """Raise WrongUsage for an option or an argument without a value; what follows `--` is not looked at."""
    options, _, _ = _split(args)
    for before, value in zip(["", *options], options, strict=False):
        if not value or (value.startswith("--") and value.endswith("=")):
            name = value or (before if before.startswith("-") else "an argument")
            raise WrongUsage(f"{name.rstrip('=')} is empty; pass a value, or drop it.", ctx)


def one_line(error: click.UsageError) -> click.UsageError:
    """Return the same usage error in one line; a command without arguments still shows its whole help."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return error
    message = error.format_message().replace("a valid integer range", "a whole number")
    return WrongUsage(message, error.ctx)


def explain(error: BaseException, command: click.Command | None = None) -> str:
    """Return one line for an exception: the message of a TreeoptError with the flags of the `command`, else the message and how to see more."""
    return _in_short(with_flags(str(error), command) if isinstance(error, TreeoptError) else _explain(error))


def _explain(error: BaseException) -> str:
    full = _made_from(error, MemoryError)
    if full is not None and str(full).startswith("memory is full"):
        return str(full)
    if full is not None or is_memory_full(error):
        return memory_is_full()
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        return where + _SYSTEM.get(error.errno, error.strerror or str(error))
    if type(error).__name__ == "OutOfMemoryError":  # torch's; importing torch for its name alone would take seconds
        return "the GPU's memory is full; use a smaller batch, tree, context or model, or a half precision --dtype"
    return f"unexpected {type(error).__name__}: {error} (run with --debug to see where)"


def _in_short(message: str) -> str:
    """Return the message in one line of at most `_LONGEST` characters, and the command to run behind it."""
    line = " ".join(message.split())
    line, run, command = line.partition(next((words for words in _RUNS if words in line), RUN))
    half = (_LONGEST - 5) // 2
    short = line if len(line) <= _LONGEST else f"{line[:half]} ... {line[-half:]}"
    return short + run + command


def _made_from(error: BaseException, kind: type[E]) -> E | None:
    """Return the exception of a kind (Ctrl-C, say) that an exception is, or was made from by a library or by treeopt, if there is one."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        if isinstance(cause, kind):
            return cause
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__
    return None


def _split(args: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Return the arguments before `--`, the `--` itself, and the arguments after it."""
    if "--" not in args:
        return args, [], []
    at = args.index("--")
    return args[:at], ["--"], args[at + 1 :]
