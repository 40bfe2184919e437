"""Measure a pair of models: which draft ranks are accepted, and how long each pass takes."""
