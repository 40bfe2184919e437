"""Write tune_a_pair.ipynb from tune_a_pair.py, whose cells begin at lines with `# %%`."""

import json
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("tune_a_pair.py")


def notebook_of(script: str) -> dict[str, Any]:
    """Return a notebook, without outputs, of a script's cells."""
    cells: list[dict[str, Any]] = []
    for number, part in enumerate(script.split("# %%")[1:]):
        head, _, body = part.partition("\n")
        words = "markdown" in head
        lines = [line.removeprefix("#").removeprefix(" ") if words else line for line in body.strip("\n").split("\n")]
        source = [f"{line}\n" for line in lines[:-1]] + lines[-1:]
        cell = {"cell_type": "markdown" if words else "code", "id": f"cell-{number}", "metadata": {}, "source": source}
        cells.append(cell if words else cell | {"execution_count": None, "outputs": []})
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}


if __name__ == "__main__":
    SCRIPT.with_suffix(".ipynb").write_text(json.dumps(notebook_of(SCRIPT.read_text()), indent=1) + "\n")
