"""The command `treeopt`: the group that the commands hang on."""

import os
import sys
from copy import copy
from typing import Any

import click

from treeopt import __version__
from treeopt.cli.compare import compare
from treeopt.cli.convert import convert
from treeopt.cli.demo import demo
from treeopt.cli.env import env
from treeopt.cli.errors import TreeoptGroup
from treeopt.cli.evaluate import evaluate
from treeopt.cli.export import export
from treeopt.cli.generate import generate
from treeopt.cli.help import example
from treeopt.cli.inspect import inspect
from treeopt.cli.output import Door, doors
from treeopt.cli.potential import potential
from treeopt.cli.profile import profile
from treeopt.cli.replay import replay
from treeopt.cli.run import run
from treeopt.cli.train_draft import train_draft
from treeopt.cli.tune import tune

_COMPLETING = "_TREEOPT_COMPLETE"
"""The variable by which a shell asks click for completions."""

_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # else its store prints a stack where another process has ended
}


class Treeopt(TreeoptGroup):
    """The group of all commands. Whatever is printed while it runs passes the doors of `treeopt.cli.output`."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the command line, or answer a shell that completes a line, which is told names of commands and options alone."""
        if _COMPLETING in os.environ:
            for name in ("stdout", "stderr"):
                stream = getattr(sys, name)
                setattr(sys, name, stream.stream if isinstance(stream, Door) else stream)  # click writes bytes here
            return super().main(*args, **options)
        with doors():
            return super().main(*args, **options)


@click.group(
    cls=Treeopt,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=example("treeopt demo --out treeopt-demo"),
)
@click.version_option(__version__, package_name="treeopt", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show tracebacks and the libraries' own messages; may stand anywhere on the line.")
@click.option("--quiet", is_flag=True, help="Show no progress and no notes, only results and errors; may stand anywhere on the line.")
def main(debug: bool, quiet: bool) -> None:
    """Find the speculation tree that is fastest for your draft, target and hardware.

    The loop is: profile acceptance, profile latency, grow, evaluate. `treeopt demo` runs all of it on a tiny model pair that
    comes with treeopt. Results go to stdout and progress to stderr; --format json prints one JSON object.
    """
    if debug:
        return
    for variable, value in _QUIET.items():  # read by the libraries when a command imports them
        os.environ.setdefault(variable, value)
    import warnings

    warnings.simplefilter("ignore")


for command in (demo, tune, potential, profile, replay, evaluate, run, train_draft, inspect, export, convert, compare, env):
    main.add_command(command)

same = copy(generate)
same.short_help = "The same as grow."
main.add_command(generate, "grow")
main.add_command(same, "generate")
