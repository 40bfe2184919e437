"""Profiles: the measurements of a pair of models, as files. Nothing here measures, and nothing imports torch."""
