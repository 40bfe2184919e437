"""How large a tree may be. No NumPy, so that settings can be checked without it."""

MAX_SIZE = 1 << 16
"""Trees beyond this are refused before anything of their size is allocated."""
