"""Data sets: from a name or a path to prompts.

`sources` and `rows` read rows, `prompts` makes prompts of them, and `chat` and `pictures` say how a model reads them.
"""
