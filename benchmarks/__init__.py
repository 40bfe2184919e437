"""Side-by-side measurements; each module prints a table and writes JSON. Run one with `python -m benchmarks.NAME`."""
