"""The pace of a stage in words: how far it is, how fast it goes and how long it still takes, and whether that is to be said."""

import click

_QUIET = "treeopt.quiet"

_UNITS = {
    "profiling acceptance": "passes",
    "profiling latency": "rounds",
    "choosing what to time": "points",
    "evaluating": "prompts",
    "writing replies": "replies",
    "training": "steps",
    "measuring potential": "passes",
}
"""Words for what the stages count. The name of a stage may go on behind a colon; others are shown without a unit."""


def quiet_option() -> click.Option:
    """Return the option `--quiet`, which leaves progress unsaid."""

    def take(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
        ctx.meta[_QUIET] = value

    told = "No progress on stderr; results, notes and errors stay."
    return click.Option(["--quiet"], is_flag=True, expose_value=False, callback=take, help=told)


def is_quiet() -> bool:
    """Return whether the running command leaves progress unsaid."""
    ctx = click.get_current_context(silent=True)
    return bool(ctx is not None and ctx.meta.get(_QUIET))


def pace(what: str, done: int, total: int, first: int, seconds: float) -> str:
    """Return how far a stage is, in its unit, and, when it is known, how fast it goes and how long it still takes.

    `first` units were done `seconds` ago, when the stage was first heard of.

    >>> pace("evaluating", 6, 12, 2, 2.0)
    '6/12 prompts, 2.0 prompts/s, 3 s left'
    """
    unit = _UNITS.get(what.partition(":")[0], "")
    said = f"{done}/{total} {unit}".rstrip()
    if done <= first or seconds <= 0:
        return said
    rate = (done - first) / seconds
    fast = f"{rate:.1f} {unit or 'units'}/s" if rate >= 0.1 else f"{1 / rate:.0f} s each"
    return f"{said}, {fast}" + (f", {_duration((total - done) / rate)} left" if done < total else "")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{rest} s" if not minutes else f"{minutes} min {rest:02d} s"
