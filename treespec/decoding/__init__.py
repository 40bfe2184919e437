"""Decoding: draft a tree, verify it in one pass of the target, accept, commit.

`protocol` says all that is asked of a model; nothing here imports one.
"""
