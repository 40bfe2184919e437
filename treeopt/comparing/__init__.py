"""Comparing: growmaps, profiles or reports side by side, their differences with 95 % intervals. What must not be mixed is refused by name."""
