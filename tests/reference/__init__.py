"""Slow, obvious implementations that the real ones are tested against."""
