"""Measure a pair of models: the acceptance of the draft's ranks, and the time of each pass."""
