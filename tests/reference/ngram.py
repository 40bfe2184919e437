"""The n-gram draft as it is defined, by counting in strings of tokens: no tensors, no tables, and the contexts one after the other."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

LONGEST, MOST_FOLLOWING = 8, 32
TEXT_PRIOR, CORPUS_PRIOR, TOKEN_PRIOR = 2.0, 16.0, 64.0
TEXT_BESIDE, CORPUS_BESIDE = 8.0, 128.0
SHORTEST_IN_TEXT, SHORTEST_IN_CORPUS = 2, 4


def log_chances(text: Sequence[int], vocabulary: int, corpus: Sequence[Sequence[int]] = ()) -> list[float]:
    """The logarithms of the chances of every token after a text."""
    frequencies = Counter(token for other in corpus for token in other)
    whole = sum(1 / (token + 2) for token in range(vocabulary))
    chances = [1 / (token + 2) / whole for token in range(vocabulary)]
    if corpus:
        total = sum(frequencies.values()) + 1
        chances = [(frequencies[token] + chance) / total for token, chance in enumerate(chances)]
    contexts = [tuple(text[len(text) - length :]) for length in range(min(LONGEST, len(text)) + 1)]
    evidence: list[tuple[dict[int, float], float]] = [
        (own_counts(text, ()), TOKEN_PRIOR),
        *((corpus_counts(corpus, context), CORPUS_PRIOR) for context in contexts[1:]),
        *((own_counts(text, context), TEXT_PRIOR) for context in contexts[1:]),
    ]
    return [math.log(chance) for chance in _refined(chances, evidence)]


def mixed_log_chances(text: Sequence[int], model: Sequence[float], corpus: Sequence[Sequence[int]] = ()) -> list[float]:
    """The logarithms of the chances of every token after a text, where a model says the chances `model`."""
    contexts = [tuple(text[len(text) - length :]) for length in range(min(LONGEST, len(text)) + 1)]
    evidence = [
        *((corpus_counts(corpus, context), CORPUS_BESIDE) for context in contexts[SHORTEST_IN_CORPUS:]),
        *((own_counts(text, context), TEXT_BESIDE) for context in contexts[SHORTEST_IN_TEXT:]),
    ]
    return [math.log(chance) for chance in _refined(list(model), evidence)]


def _refined(chances: list[float], evidence: Sequence[tuple[dict[int, float], float]]) -> list[float]:
    """Chances after all evidence, the weakest first."""
    for counts, prior in evidence:
        total = sum(counts.values()) + prior
        chances = [(counts.get(token, 0) + prior * chance) / total for token, chance in enumerate(chances)]
    return chances


def own_counts(text: Sequence[int], context: tuple[int, ...]) -> dict[int, float]:
    """What followed a context earlier in a text; the later, the more it counts."""
    found, last = defaultdict[int, float](float), len(text) - 1
    for place in range(last):
        before = place + 1 - len(context)
        if before >= 0 and tuple(text[before : place + 1]) == context:
            found[text[place + 1]] += (64 + 64 * (place + 1) // (last + 1)) / 128
    return found


def corpus_counts(corpus: Sequence[Sequence[int]], context: tuple[int, ...]) -> dict[int, float]:
    """What followed a context in other texts, unless what followed a shorter one was known from a single place."""
    if len(context) > 1 and sum(_following(corpus, context[1:]).values()) < 2:
        return {}
    found = _following(corpus, context)
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0]))[:MOST_FOLLOWING])


def _following(corpus: Sequence[Sequence[int]], context: Sequence[int]) -> Counter[int]:
    size = len(context)
    return Counter(
        other[place + size]
        for other in corpus
        for place in range(len(other) - size)
        if tuple(other[place : place + size]) == tuple(context)
    )
