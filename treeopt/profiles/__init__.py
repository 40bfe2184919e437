"""Profiles: what was measured on a pair of models, as files. Nothing here measures, and nothing imports torch."""
