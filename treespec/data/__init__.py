"""Data sets: from a name or a path to prompts.

Rows are read by `rows` and `sources`, made prompts by `prompts`, and `chat` and `pictures` say how a model reads them.
"""
