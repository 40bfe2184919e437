"""The n-gram draft: it proposes what followed the same tokens before, in the text so far and in a corpus, and needs no second model."""

NGRAM = "ngram"
"""The name by which the draft is asked for. A folder of this name is `./ngram`."""

LONGEST = 8
"""Most tokens of a context. A longer one rarely tells more than that the text repeats itself, which 8 tokens tell already."""


def is_ngram(name: str) -> bool:
    """Return whether a name of records is that of the n-gram draft, with a corpus or without."""
    return name.partition("+")[0] == NGRAM
