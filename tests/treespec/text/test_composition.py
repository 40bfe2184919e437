"""Tokens become pieces: who proposed them, stop strings across them, and special tokens."""

from typing import Any

import pytest

from tests.reference.tokenizers import of_bytes, of_letters
from tests.treespec.text.test_characters import single_bytes
from treespec.text.composition import Composition, Piece

LETTERS = of_letters(258, special=("<end>", "<|turn|>"))


def composed(tokens: list[tuple[str, bool]], *stop: str, tokenizer: Any = LETTERS) -> tuple[list[Piece], Composition]:
    """The pieces of tokens, each of which the draft proposed or not."""
    made = Composition(tokenizer, [tokenizer.convert_tokens_to_ids("a")], stop)
    pieces: list[Piece] = []
    for token, accepted in tokens:
        made.add(tokenizer.convert_tokens_to_ids(token), accepted)
        pieces += made.take()
        if made.stop is not None:
            break
    made.end()
    return [*pieces, *made.take()], made


def mine(*tokens: str) -> list[tuple[str, bool]]:
    return [(token, False) for token in tokens]


@pytest.mark.parametrize(
    ("tokens", "stop", "text"),
    [
        (["abc", "def"], ["cd"], "ab"),
        (["abc", "d", "eff"], ["cdef"], "ab"),
        (["abc"], ["abc"], ""),
        (["abc", "ab"], ["abc"], ""),
        (["fab", "cde"], ["abcdef", "bc"], "fa"),
        (["ab", "ab"], ["abc"], "abab"),
        (["ab", "<end>", "c"], ["abc"], ""),
        (["ab", "<|turn|>", "c"], ["<|turn|>"], "ab"),
        (["ab", "<|turn|>", "c"], ["abd", "<|turn|>"], "ab"),
        (["ab", "<|turn|>", "c"], ["turn"], "abc"),
    ],
)
def test_the_text_ends_before_the_stop_string(tokens: list[str], stop: list[str], text: str) -> None:
    pieces, made = composed(mine(*tokens), *stop)
    assert "".join(piece.text for piece in pieces) == made.text == text
    assert (made.stop is None) == ("".join(tokens).replace("<end>", "") == text or "turn" in stop)


def test_pieces_say_who_proposed_them_also_when_they_were_held_back() -> None:
    pieces, _ = composed([("a", False), ("b", True), ("c", True), ("d", False), ("ab", True), ("e", False)], "abx")
    assert pieces == [Piece("a", False), Piece("bc", True), Piece("d", False), Piece("ab", True), Piece("e", False)]
    pieces, _ = composed([("ab", True), ("ab", False), ("ff", True)], "abc", "bab")
    assert pieces == [Piece("a", True)]


def test_what_was_held_back_is_given_out_at_the_end() -> None:
    pieces, made = composed([("ab", True)], "abc")
    assert (pieces, made.stop) == ([Piece("ab", True)], None)


def test_tokens_of_one_step_are_one_piece() -> None:
    made = Composition(LETTERS, [5], ())
    for token in ("ab", "c", "d"):
        made.add(LETTERS.convert_tokens_to_ids(token), token != "d")
    assert list(made.take()) == [Piece("abc", True), Piece("d", False)]
    assert list(made.take()) == []


def test_a_character_of_several_tokens_belongs_to_the_last() -> None:
    tokenizer = of_bytes()
    made = Composition(tokenizer, [5], ["é"])
    first, last = single_bytes(tokenizer, "è")
    made.add(first, True)
    assert list(made.take()) == []
    made.add(last, False)
    assert list(made.take()) == [Piece("è", False)]
    for token in single_bytes(tokenizer, "é"):
        made.add(token, True)
    assert (made.stop, made.text) == ("é", "è")
