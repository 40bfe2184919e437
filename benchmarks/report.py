"""Make docs/results.md from benchmarks/results/*.json: `python -m benchmarks.report`. Needs no GPU and a fraction of a second.

`--check` writes nothing, and exits with 1 where the page is not what the files give.
"""

import argparse
import difflib
import json
import sys
from pathlib import Path

from benchmarks.reporting.page import page
from treespec.files.writing import write_bytes

ROOT = Path(__file__).parents[1]


def main(words: list[str] | None = None) -> int:
    """Write the page, or compare it. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing; exit code 1 where the page differs")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the files")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results.md")
    arguments = parser.parse_args(words)
    wanted = page({path.name: json.loads(path.read_text()) for path in sorted(arguments.results.glob("*.json"))})
    if not arguments.check:
        write_bytes(arguments.page, wanted.encode())
        return 0
    there = arguments.page.read_text() if arguments.page.exists() else ""
    if there == wanted:
        return 0
    sys.stderr.writelines(difflib.unified_diff(there.splitlines(True), wanted.splitlines(True), arguments.page.name, "what the files give"))
    print(f"{arguments.page.name} is not what the files give: run `python -m benchmarks.report`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
