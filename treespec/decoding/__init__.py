"""Decoding: draft a tree, verify it in one pass of the target, accept, commit.

`drafters` and `verifiers` are tables by name, `step` joins one of each, and `loop` repeats the step until a text ends. `protocol` holds
everything that decoding asks of a model; no module here imports a model.
"""
