"""Measurements side by side. Each module prints a table and writes JSON. Run one with `python -m benchmarks.NAME`."""
