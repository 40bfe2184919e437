"""Limits of a tree's size. The module needs no NumPy, so that settings can be checked without it."""

MAX_SIZE = 1 << 16
"""Largest size of a tree; larger ones are refused before anything of their size is allocated."""
