"""Make docs/results.md, and the tables in the README, docs/drafts.md and docs/scaling.md, from benchmarks/results/*.json: `python -m benchmarks.report`.

Needs no GPU and a fraction of a second. `--check` writes nothing, and exits with 1 where any is not what the files give.
"""

import argparse
import difflib
import json
import sys
from pathlib import Path

from benchmarks.reporting import drafts, multi_gpu, readme
from benchmarks.reporting.page import page
from benchmarks.reporting.tables import with_table
from treespec.files.writing import write_bytes

ROOT = Path(__file__).parents[1]


def main(words: list[str] | None = None) -> int:
    """Write the pages, or compare them. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing; exit code 1 where a page differs")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the files")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results.md")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--drafts", type=Path, default=ROOT / "docs" / "drafts.md")
    parser.add_argument("--scaling", type=Path, default=ROOT / "docs" / "scaling.md")
    arguments = parser.parse_args(words)
    files = {path.name: json.loads(path.read_text()) for path in sorted(arguments.results.glob("*.json"))}
    several = files["multi-gpu-h200.json"]
    tables = {
        arguments.readme: (readme.HEAD, readme.rows_of(files), None),
        arguments.drafts: (drafts.SHORT, drafts.short_rows(files), None),
        arguments.scaling: (multi_gpu.SHORT, multi_gpu.short_rows(several), multi_gpu.below(several)),
    }
    made = {path: with_table(path.read_text(), head, rows, path.name, said) for path, (head, rows, said) in tables.items()}
    wanted = {arguments.page: page(files), **made}
    wrong = {path: text for path, text in wanted.items() if not path.exists() or path.read_text() != text}
    if not arguments.check:
        for path, text in wrong.items():
            write_bytes(path, text.encode())
        return 0
    for path, text in wrong.items():
        there = path.read_text() if path.exists() else ""
        sys.stderr.writelines(difflib.unified_diff(there.splitlines(True), text.splitlines(True), path.name, "what the files give"))
        print(f"{path.name} is not what the files give: run `python -m benchmarks.report`", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
