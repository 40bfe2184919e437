"""Formats of trees in files: Sequoia's `.pt`, and those of other projects, which are text. Each is read without trusting it."""
