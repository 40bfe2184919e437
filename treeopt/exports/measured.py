"""A latency profile from an engine's own benchmark: `python -m treeopt.exports.measured ENGINE --target FILE... --draft FILE... -o FILE`.

Engines do not time the check of a tree, but they time passes. What counts there is how many tokens a pass reads: for B sequences with trees of n
nodes, a pass over B * n tokens is taken. For SGLang and vLLM that is a decoding pass over B * n sequences, which also reads the keys and values of
B * n contexts in place of B: for long contexts these times are too long, never too short. For llama.cpp it is a prompt of B * n tokens behind a context.
"""

import argparse
import json
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from treeopt.profiles.latency import LatencyProfile
from treeopt.profiles.samples import LatencySample
from treespec.checks import require_whole
from treespec.errors import ProfileError, TreeoptError, counted
from treespec.files.fields import listed, mapping, natural, seconds
from treespec.files.reading import StrPath, read_bytes
from treespec.files.writing import check_writable
from treespec.printable import printable

MAX_BYTES = 64 << 20
"""Largest output of a benchmark that is read."""

Passes = dict[tuple[int, int], list[float]]
"""Seconds of passes by the tokens that they read and the context behind these."""

_VLLM_NAME = re.compile(r"(\d{1,6})-(\d{1,7})-(\d{1,7})\.json")


def profile_of(
    engine: str, target: Sequence[StrPath], draft: Sequence[StrPath], *, batch: int = 1, overhead: float = 0.0
) -> LatencyProfile:
    """Return the latency profile of a batch size, from the outputs of an engine's benchmark of the target and of the draft.

    `overhead` are the seconds of a step beside its passes, which no such benchmark tells. Passes whose tokens are no multiple of the batch size
    are left out. Raises ProfileError, SettingsError for a `batch` that counts none.
    """
    require_whole(1, batch=batch)
    if engine not in READERS:
        raise ProfileError(f"engine is {engine!r:.40}, but it must be one of {', '.join(READERS)}")
    read = READERS[engine]
    samples = [_samples(read(files), batch, role) for role, files in (("target", target), ("draft", draft))]
    return LatencyProfile(samples[0], samples[1], (overhead,), engine=engine, batch=batch)


def _samples(passes: Passes, batch: int, role: str) -> tuple[LatencySample, ...]:
    if not passes:
        raise ProfileError(f"{role}: the benchmark's output holds no pass; run the benchmark again, or pass the file that it wrote")
    found = tuple(
        LatencySample(tokens // batch, context, tuple(took)) for (tokens, context), took in sorted(passes.items()) if tokens % batch == 0
    )
    if not found:
        raise ProfileError(
            f"{role}: no pass reads a multiple of {counted(batch, 'token')}; measure passes over {batch}, {2 * batch}, ... tokens"
        )
    return found


def read_sglang(files: Sequence[StrPath]) -> Passes:
    """Return the decoding passes of `sglang.bench_one_batch --result-filename`: a line of JSON for each batch size and input length."""
    found: Passes = defaultdict(list)
    for path in files:
        for line in _text(path).splitlines():
            if line.strip():
                row = _checked(path, line, mapping)
                tokens, context = (_field(path, row, key, natural) for key in ("batch_size", "input_len"))
                found[tokens, context].append(_field(path, row, "median_decode_latency", seconds))
    return found


def read_vllm(files: Sequence[StrPath]) -> Passes:
    """Return the decoding passes of `vllm bench latency --output-json BATCH-INPUT-OUTPUT.json`, run for two output lengths of each batch and input.

    The output does not say what was run, so that the file's name must. A pass is the difference of the two medians over that of the lengths.
    """
    runs: dict[tuple[int, int], dict[int, float]] = defaultdict(dict)
    for path in files:
        named = _VLLM_NAME.fullmatch(Path(path).name)
        if named is None:
            raise ProfileError(f"{path} does not say what was run; name it BATCH-INPUT-OUTPUT.json, such as 4-256-64.json")
        tokens, context, length = map(int, named.groups())
        row = _checked(path, _text(path), mapping)
        took = _field(path, row, "latencies", lambda value: [seconds(item) for item in listed(value)])
        if not took:
            raise ProfileError(f"{path} has no latencies; run the benchmark again")
        runs[tokens, context][length] = statistics.median(took)
    found: Passes = {}
    for (tokens, context), by_length in runs.items():
        if len(by_length) < 2:
            raise ProfileError(f"batch {tokens} with input {context} was run for one output length only; run it for two, such as 16 and 80")
        short, long = min(by_length), max(by_length)
        found[tokens, context] = [(by_length[long] - by_length[short]) / (long - short)]
    return found


def read_llama_cpp(files: Sequence[StrPath]) -> Passes:
    """Return the passes of `llama-bench -o json -p 1,2,4,... -n 0 -d CONTEXT`: prompts of so many tokens behind a context."""
    found: Passes = defaultdict(list)
    for path in files:
        for row in _checked(path, _text(path), lambda value: [mapping(item) for item in listed(value)]):
            tokens, generated, context = (_field(path, row, key, natural) for key in ("n_prompt", "n_gen", "n_depth"))
            if generated == 0:
                found[tokens, context] += _field(path, row, "samples_ns", lambda value: [seconds(item) / 1e9 for item in listed(value)])
    return found


READERS: Mapping[str, Callable[[Sequence[StrPath]], Passes]] = {
    "sglang": read_sglang,
    "vllm": read_vllm,
    "llama.cpp": read_llama_cpp,
}
"""Readers of the benchmarks' outputs, by engine."""


def _text(path: StrPath) -> str:
    try:
        return read_bytes(path, limit=MAX_BYTES, error=ProfileError).decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise ProfileError(f"{path} is no text in UTF-8; pass the benchmark's output") from e


def _checked(path: StrPath, text: str, read: Callable[[Any], Any]) -> Any:
    try:
        return read(json.loads(text))
    except (ValueError, TypeError, RecursionError) as e:
        raise ProfileError(f"{path} is not the output of that benchmark: {str(e)[:80]}; pass the file that it wrote") from e


def _field(path: StrPath, row: Mapping[str, Any], key: str, read: Callable[[Any], Any]) -> Any:
    try:
        return read(row[key])
    except KeyError as e:
        raise ProfileError(f"{path} has an entry without {key}; pass the file that the benchmark wrote") from e
    except (ValueError, TypeError) as e:
        raise ProfileError(f"{path} has a {key} that cannot be: {e}; run the benchmark again") from e


class _Parser(argparse.ArgumentParser):
    """A parser that tells wrong usage in one line."""

    def error(self, message: str) -> NoReturn:
        """End the process with what is wrong, and where the usage stands."""
        self.exit(2, f"error: {' '.join(printable(message).splitlines())} ({self.prog} --help says more)\n")


def _engine(text: str) -> str:
    if text not in READERS:
        raise argparse.ArgumentTypeError(f"it is {text!r:.40}, but it must be one of {', '.join(READERS)}")
    return text


def _sequences(text: str) -> int:
    try:
        found = int(text)
    except ValueError:
        found = 0
    if found < 1:
        raise argparse.ArgumentTypeError(f"it is {text!r:.40}, but it counts sequences: pass a whole number of 1 or more")
    return found


def _seconds(text: str) -> float:
    try:
        return seconds(float(text))
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"it is {text!r:.40}, but it must be a number of seconds, such as 0.001") from e


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the latency profile that the command line asks for. Whatever is wrong is told in one line."""
    parser = _Parser(prog="python -m treeopt.exports.measured", description="A latency profile from an engine's own benchmark.")
    parser.add_argument("engine", type=_engine, metavar="ENGINE", help=f"engine that was measured: {', '.join(READERS)}")
    for role in ("target", "draft"):
        parser.add_argument(f"--{role}", nargs="+", required=True, metavar="FILE", help=f"outputs of the benchmark of the {role}")
    parser.add_argument("--batch", type=_sequences, default=1, metavar="N", help="sequences per pass (default: 1)")
    parser.add_argument("--overhead", type=_seconds, default=0.0, metavar="SECONDS", help="time of a step beside its passes (default: 0)")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="latency profile to write")
    asked = parser.parse_args(arguments)
    try:
        check_writable(asked.output, "treeopt.latency")
        profile_of(asked.engine, asked.target, asked.draft, batch=asked.batch, overhead=asked.overhead).write(asked.output)
    except TreeoptError as e:
        sys.exit(f"error: {e}")


if __name__ == "__main__":
    main()
