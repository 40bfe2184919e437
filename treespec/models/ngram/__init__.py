"""The n-gram draft: it proposes what followed the same tokens before, in the text so far and in a corpus.

It needs no second model (`draft.py`), or stands beside one (`mixed.py`).
"""

import re

NGRAM = "ngram"
"""The name by which the draft is asked for. A folder of this name is `./ngram`."""

BESIDE = f"+{NGRAM}"
"""The end of the name of a draft that is a model and n-grams beside it: MODEL+ngram."""

_RECORDED = re.compile(rf"(?:(?P<model>.+)\+)?{NGRAM}(?P<corpus>\+[0-9a-f]{{12}})?")

LONGEST = 8
"""Most tokens of a context. A longer one rarely tells more than that the text repeats itself, which 8 tokens tell already."""


def model_beside(draft: str) -> str | None:
    """Return the model in the name of a draft that has n-grams beside it; None for any other draft.

    >>> model_beside("embedded-draft+ngram"), model_beside("ngram")
    ('embedded-draft', None)
    """
    return draft.removesuffix(BESIDE) if draft.endswith(BESIDE) else None


def reads_corpus(draft: str) -> bool:
    """Return whether a draft of this name counts n-grams, so that it reads a corpus if there is one."""
    return draft == NGRAM or draft.endswith(BESIDE)


def in_records(name: str) -> tuple[str, bool, bool]:
    """Return the model in a name of records ("" for none), whether there are n-grams, and whether they have a corpus.

    >>> in_records("owner/model"), in_records("owner/model+ngram"), in_records("ngram+3f21c0a97be4")
    (('owner/model', False, False), ('owner/model', True, False), ('', True, True))
    """
    found = _RECORDED.fullmatch(name)
    return (name, False, False) if found is None else (found["model"] or "", True, found["corpus"] is not None)
