"""Stop strings, against a search that reads a text character by character."""

import random

import pytest

from treespec.text.stops import Stops


def expected(text: str, strings: list[str]) -> tuple[str, str | None]:
    """Where the first stop string ends, and the longest that ends there."""
    for end in range(1, len(text) + 1):
        found = [string for string in strings if text[:end].endswith(string)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


def cuts(text: str, chance: random.Random) -> list[str]:
    places = sorted(chance.sample(range(len(text) + 1), k=chance.randint(0, len(text))))
    return [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]


@pytest.mark.parametrize("seed", range(40))
def test_the_text_ends_where_it_does_character_by_character_however_it_is_cut(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(60):
        text = "".join(chance.choices("abc", k=chance.randint(0, 14)))
        strings = ["".join(chance.choices("abc", k=chance.randint(1, 5))) for _ in range(chance.randint(1, 3))]
        stops = Stops(strings)
        given = ""
        for piece in cuts(text, chance):
            given += stops.push(piece)
            held = stops._held
            assert not held or any(string.startswith(held) and string != held for string in strings), "more is held back than must be"
        given += stops.end()
        assert (given, stops.found) == expected(text, strings), (text, strings)


@pytest.mark.parametrize(
    ("pieces", "strings", "text", "found"),
    [
        (["ab", "c"], ["abc"], "", "abc"),
        (["x", "abc"], ["abc"], "x", "abc"),
        (["xa", "b", "cy"], ["abc"], "x", "abc"),
        (["xabab", "ac"], ["abac"], "xab", "abac"),
        (["abcd"], ["abcd", "bc"], "a", "bc"),
        (["abc"], ["c", "bc", "abc"], "", "abc"),
        (["ab"], ["abc"], "ab", None),
        (["aaaa"], ["aab"], "aaaa", None),
        (["\n", "\nQ"], ["\n\n"], "", "\n\n"),
        ([], ["a"], "", None),
    ],
)
def test_cases_by_hand(pieces: list[str], strings: list[str], text: str, found: str | None) -> None:
    stops = Stops(strings)
    given = "".join([*map(stops.push, pieces), stops.end()])
    assert (given, stops.found) == (text, found)
    assert stops.push("more") == "more" if found is None else stops.push("more") == ""


def test_without_stop_strings_nothing_is_held_back() -> None:
    stops = Stops([])
    assert [stops.push("a"), stops.push(""), stops.push("b"), stops.end()] == ["a", "", "b", ""]
