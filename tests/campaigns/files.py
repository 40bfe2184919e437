"""The files campaign: thousands of damaged and hostile files of every kind that is read; run it as `python tests/campaigns/files.py`.

Each file is read by the command (or the reader) that people would use, in a fork of this process that may take `LIMIT_BYTES` beyond what the
libraries take, and `LIMIT_SECONDS`. Reported are files that were executed (they would make a folder), tracebacks and "unexpected" errors, messages of
more than one line or with control characters, and the largest time and memory beyond the libraries.
"""

import argparse
import contextlib
import copy
import io
import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

ROOT = Path(__file__).parents[2]
LIMIT_BYTES, LIMIT_SECONDS = 1 << 30, 30
CANARY = "/tmp/treeopt-campaign-was-executed"
ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        0.5,
        -0.0,
        2**31,
        2**63,
        10**400,
        1e308,
        float("nan"),
        float("inf"),
        "",
        "x",
        "\x1b[2J\x07",
        "\u202e\ud800",
        "a" * 10_000,
    ),
    *([], {}, [[]], [[[[1]]]], {"a": {"b": []}}, [0] * 10_000, [None], ["1"], "../../etc/passwd", "nan", "torch.float32"),
)
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]")

Mutation = Callable[[bytes, random.Random], bytes]


class Code:
    """A pickle that makes a folder if it is ever run."""

    def __reduce__(self) -> Any:
        return os.mkdir, (CANARY,)


def flipped(data: bytes, draws: random.Random) -> bytes:
    """Return the data with some bits flipped."""
    found = bytearray(data)
    for _ in range(draws.choice((1, 1, 2, 8))):
        if found:
            found[draws.randrange(len(found))] ^= 1 << draws.randrange(8)
    return bytes(found)


def cut(data: bytes, draws: random.Random) -> bytes:
    """Return the data without its end, or without a part in the middle."""
    start = draws.randrange(len(data) + 1)
    return data[:start] + (b"" if draws.random() < 0.5 else data[draws.randrange(start, len(data) + 1) :])


def stuffed(data: bytes, draws: random.Random) -> bytes:
    """Return the data with something put into it."""
    at = draws.randrange(len(data) + 1)
    block = draws.choice(
        (draws.randbytes(20), b"\0" * 4096, b"[" * 5000, b'{"a":' * 2000, b"\xff\xfe", b"\x1b[31m", b"9" * 5000, data[:2000])
    )
    return data[:at] + block + data[at:]


def other(data: bytes, draws: random.Random) -> bytes:
    """Return what is no such file at all."""
    return draws.choice(
        (
            b"",
            b"\0" * 5000,
            b"version https://git-lfs.github.com/spec/v1\n",
            b"<!DOCTYPE html>",
            b"PK\x03\x04",
            pickle.dumps(Code()),
            draws.randbytes(300),
        )
    )


def odd_json(data: bytes, draws: random.Random) -> bytes:
    """Return JSON in which some values are replaced, some keys are gone, and some are new. Lines are mutated one by one."""
    lines = data.split(b"\n") if data.count(b"\n{") else [data]
    at = draws.randrange(len(lines))
    try:
        value = json.loads(lines[at] or b"{}")
    except ValueError:
        return flipped(data, draws)
    for _ in range(draws.choice((1, 1, 3))):
        value = _odd(value, draws)
    lines[at] = json.dumps(value).encode()
    return b"\n".join(lines)


def _odd(value: Any, draws: random.Random) -> Any:
    if isinstance(value, dict) and value and draws.random() < 0.85:
        key = draws.choice(list(value))
        deed = draws.random()
        if deed < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if deed < 0.2:
            return {**value, draws.choice(("\x1b]0;x\x07", "_class", "x" * 500)): draws.choice(ODD)}
        return {**value, key: _odd(value[key], draws)}
    if isinstance(value, list) and value and draws.random() < 0.7:
        at = draws.randrange(len(value))
        return [*value[:at], _odd(value[at], draws), *value[at + 1 :]]
    return copy.deepcopy(draws.choice(ODD))


def odd_pt(data: bytes, draws: random.Random) -> bytes:
    """Return a file of torch.save whose content is odd, vast when unfolded, or code."""
    import torch

    content = torch.load(io.BytesIO(data), weights_only=True)
    deed = draws.randrange(6)
    if deed == 0:
        content = {**content, "treeopt": Code()} if isinstance(content, dict) else [content, Code()]
    elif deed == 1 and isinstance(content, dict):
        content[draws.choice(list(content))] = draws.choice(
            (*ODD, torch.zeros(1).expand(1 << 25), torch.zeros(3, dtype=torch.complex64), torch.tensor(3))
        )
    elif deed == 2:
        inner: list[Any] = []
        for _ in range(60):
            inner = [inner, inner]
        content = {**content, draws.choice(("Successors", "treeopt", "roots")): inner} if isinstance(content, dict) else inner
    elif deed == 3:
        content = _odd(content, draws)
    elif deed == 4 and isinstance(content, dict) and "mask" in content:
        content["mask"] = draws.choice(
            (torch._neg_view(content["mask"]), content["mask"].T, content["mask"].to_sparse(), content["mask"].bfloat16())
        )
    else:
        return stuffed(data, draws)
    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()


def odd_pickle(data: bytes, draws: random.Random) -> bytes:
    """Return a file of torch.save in whose pickle bytes are changed, with the checksums made good."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, draws.choice((flipped, cut, stuffed))(content, draws) if name.endswith("data.pkl") else content)
    return out.getvalue()


def odd_header(data: bytes, draws: random.Random) -> bytes:
    """Return a safetensors file whose header is odd."""
    size = struct.unpack("<Q", data[:8])[0]
    header = odd_json(data[8 : 8 + size], draws)
    length = len(header) if draws.random() < 0.8 else draws.choice((0, 2**40, 2**63, len(header) * 2))
    return struct.pack("<Q", length) + header + data[8 + size :]


def seeds(folder: Path) -> dict[str, tuple[Path, tuple[Mutation, ...], Callable[[Path], None]]]:
    """Return for each kind of file a good one, how it may be mutated, and how it is read."""
    growmaps, embedded = ROOT / "growmaps", ROOT / "treespec" / "embedded"
    for name in ("68m_7b-64.pt", "68m_7b-64.json", "profiles/68m_7b.acceptance.json", "profiles/68m_7b-l40.latency.json"):
        shutil.copy(growmaps / name, folder)
    import torch

    torch.save(torch.tensor([0.0, 0.6, 0.2, 0.1, 0.1]), folder / "vector.pt")
    rows = [
        {"text": "The quick brown fox jumps over the lazy dog. " * 8},
        {"turns": ["a", "b"]},
        {"input_ids": [1, 2, 3]},
        {"prompt": "x y"},
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rows.txt").write_text("one\ntwo\n")
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": [rows[0]["text"]] * 20}), folder / "rows.parquet")
    from treespec.files.journal import Journal

    with Journal(folder / "work.journal", "work") as log:
        for key in range(5):
            log.put(str(key), {"row": key, "tokens": [1, 2, 3], "seconds": 0.5})
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        run("evaluate", *MODELS, "--growmap", folder / "68m_7b-64.pt", *TEXTS, "-o", folder / "report.json")
        run("potential", *MODELS, *TEXTS, "-o", folder / "potential.json")
        run("profile", "acceptance", *MODELS, *TEXTS, "-o", folder / "own.json", "--trace", folder / "trace.json")
    shutil.copytree(embedded / "target", folder / "model")
    plain, jsons, pts = (flipped, cut, stuffed, other), (odd_json,) * 6, (odd_pt, odd_pt, odd_pickle)
    show = lambda path: run("inspect", path)  # noqa: E731
    acceptance = lambda path: run("grow", "--acceptance", path, "--size", 8, "--depth", 4, "-o", folder / "t.pt")  # noqa: E731
    model = lambda path: run("evaluate", "--target", folder / "model", "--mode", "baseline", *TEXTS, "-o", folder / "m.json")  # noqa: E731
    return {
        "growmap": (folder / "68m_7b-64.pt", plain + pts, show),
        "sidecar": (folder / "68m_7b-64.json", plain + jsons, lambda path: run("inspect", path.with_suffix(".pt"))),
        "vector": (folder / "vector.pt", plain + pts, acceptance),
        "acceptance profile": (folder / "68m_7b.acceptance.json", plain + jsons, acceptance),
        "latency profile": (
            folder / "68m_7b-l40.latency.json",
            plain + jsons,
            lambda path: run(
                *(
                    "grow",
                    "--acceptance",
                    growmaps / "profiles/68m_7b.acceptance.json",
                    "--latency",
                    path,
                    "--max-size",
                    32,
                    "-o",
                    folder / "t.pt",
                )
            ),
        ),
        "trace": (folder / "trace.json", plain + jsons, lambda path: run("replay", "68m_7b-16", "--trace", path)),
        "report": (folder / "report.json", plain + jsons, show),
        "potential": (folder / "potential.json", plain + jsons, show),
        "journal": (folder / "work.journal", plain + jsons, read_journal),
        "rows.jsonl": (folder / "rows.jsonl", plain + jsons, read_rows),
        "rows.txt": (folder / "rows.txt", plain, read_rows),
        "rows.parquet": (folder / "rows.parquet", plain, read_rows),
        "config.json": (folder / "model" / "config.json", plain + jsons, model),
        "tokenizer.json": (folder / "model" / "tokenizer.json", plain + jsons, model),
        "safetensors": (folder / "model" / "model.safetensors", (*plain, odd_header, odd_header, odd_header), model),
    }


MODELS = ("--target", "embedded-target", "--draft", "embedded-draft")
TEXTS = ("--dataset", "stdlib", "--num-prompts", "1", "--prompt-len", "8", "--gen-len", "3", "--device", "cpu")


def run(*words: Any) -> None:
    """Run a command line in this process. Raises SystemExit."""
    from treeopt.cli.main import main

    main(list(map(str, words)), prog_name="treeopt", standalone_mode=False)


def read_rows(path: Path) -> None:
    """Make prompts of a data set."""
    from treespec.data.prompts import load_prompts
    from treespec.models.info import ModelInfo
    from treespec.models.pairs import TargetInfo

    load_prompts(str(path), TargetInfo(ModelInfo.of("embedded-target", None)).tokenizer, num_prompts=4, prompt_len=4)


def read_journal(path: Path) -> None:
    """Open a journal and read all that it has."""
    from treespec.files.journal import Journal

    with Journal(path, "work", lambda key, value: value["row"] + len(value["tokens"])) as log:
        for key in range(5):
            log.get(str(key))


def attempt(read: Callable[[Path], None], path: Path, log: Path) -> tuple[str, float, int]:
    """Read a file in a fork, and return what is wrong with the outcome (or nothing), its seconds and the bytes beyond this process's."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        os.write(writing, str(_resident()).encode())
        signal.alarm(LIMIT_SECONDS)
        resource.setrlimit(resource.RLIMIT_AS, (_size() + LIMIT_BYTES, -1))
        file = os.open(log, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = open(1, "w", errors="backslashreplace"), open(2, "w", errors="backslashreplace")  # noqa: SIM115
        from treeopt.cli.errors import explain
        from treeopt.cli.output import open_doors, say
        from treespec.errors import TreeoptError

        open_doors()
        try:
            read(path)
        except SystemExit:
            pass
        except TreeoptError as error:
            say(f"error: {explain(error)}", err=True)
        except BaseException as error:
            import click

            if isinstance(error, click.UsageError):
                say(f"error: {error.format_message()}", err=True)
            else:
                import traceback

                traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    _, status, usage = os.wait4(process, 0)
    before = int(os.read(reading, 100))
    os.close(reading)
    os.close(writing)
    text = log.read_text(errors="surrogateescape")
    wrong = [line for line in text.splitlines() if line.startswith("error: ")]
    found = ""
    if os.WIFSIGNALED(status):
        found = f"ended by signal {os.WTERMSIG(status)}"
    elif "Traceback" in text or "unexpected" in text.partition("error: ")[2][:11] or "panicked" in text:
        found = next(
            (line for line in reversed(text.splitlines()) if "error: unexpected" in line or "panicked" in line),
            text.strip()[-200:].replace("\n", " | "),
        )
    elif len(wrong) > 1 or _CONTROL.search(text):
        found = f"{len(wrong)} error lines, or control characters: {text[:200]!r}"
    return found, usage.ru_utime + usage.ru_stime, max(0, usage.ru_maxrss * 1024 - before)


def _resident() -> int:
    return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)) << 10  # type: ignore[union-attr]


def _size() -> int:
    return int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)) << 10  # type: ignore[union-attr]


def main() -> None:
    """Run the campaign and print a line per kind of file. Exit with 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only")
    options = parser.parse_args()
    from treeopt.cli.main import _QUIET
    from treeopt.cli.output import open_doors

    os.environ |= _QUIET
    open_doors()  # before libraries take hold of the standard streams, as a process of the command line does
    import torch

    import treeopt.growmap_making  # noqa: F401
    import treespec.data.prompts
    import treespec.evaluation.runner
    import treespec.models.loading  # noqa: F401
    from treeopt.cli import main as _

    torch.set_num_threads(1)
    shutil.rmtree(CANARY, ignore_errors=True)
    draws, faults, most, longest = random.Random(options.seed), 0, 0, 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)
        kinds = seeds(folder)
        chosen = {kind: seed for kind, seed in kinds.items() if options.only in (None, kind)}
        weights = [1 if "model" in seed[0].parts else 4 for seed in chosen.values()]
        for (kind, (path, mutations, read)), weight in zip(chosen.items(), weights, strict=True):
            good, count = path.read_bytes(), round(options.files * weight / sum(weights))
            wrong: Counter[str] = Counter()
            worst, memory = 0.0, 0
            for _ in range(count):
                path.write_bytes(draws.choice(mutations)(good, draws))
                found, seconds, size = attempt(read, path, folder / "log")
                worst, memory = max(worst, seconds), max(memory, size)
                if found:
                    wrong[re.sub(r"[0-9]+", "N", found)[:160]] += 1
                    keep = Path(tempfile.gettempdir()) / "treeopt-campaign"
                    keep.mkdir(exist_ok=True)
                    shutil.copy(path, keep / f"{kind.replace(' ', '-')}-{sum(wrong.values())}{path.suffix}")
                for left in folder.glob("work.journal.old*"):
                    left.unlink()
            path.write_bytes(good)
            faults, most, longest = faults + sum(wrong.values()), max(most, memory), max(longest, worst)
            print(f"{kind}: {count} files, {sum(wrong.values())} faults, at most {worst:.1f} s and {memory >> 20} MiB")
            for what, times in wrong.most_common(8):
                print(f"  {times} x {what}")
            sys.stdout.flush()
    executed = os.path.exists(CANARY)
    print(
        f"executed: {'YES' if executed else 'none'}; {faults} faults; at most {longest:.1f} s of processor time and {most >> 20} MiB beyond the libraries"
    )
    sys.exit(1 if faults or executed else 0)


if __name__ == "__main__":
    main()
