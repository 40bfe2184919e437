"""Characters one by one, against the tokenizer's own decoding of everything at once."""

import random
from typing import Any

import pytest

from tests.reference.tokenizers import ALL, TEXTS, of_bytes, of_pieces
from treespec.text.characters import Characters

BROKEN = "\ufffd"


@pytest.fixture(scope="module", params=ALL)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return ALL[request.param]()


def decoded(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def broken(text: str) -> int:
    return min(3, len(text) - len(text.rstrip(BROKEN)))


def behind(tokenizer: Any, prompt: list[int], ids: list[int]) -> str:
    """What all tokens decode to behind what the prompt does. A character that the prompt left unfinished is finished."""
    before, both = decoded(tokenizer, prompt), decoded(tokenizer, prompt + ids)
    stem = before[: len(before) - broken(before)]
    if not both.startswith(stem):  # a token per byte: the unfinished character took the ones before it along
        shorter = (decoded(tokenizer, prompt[:-count]) for count in (1, 2, 3))
        before = stem = next(text for text in shorter if not text.endswith(BROKEN))
    assert both.startswith(stem)
    rest = both[len(stem) :]
    return rest[min(broken(before), len(rest) - len(rest.lstrip(BROKEN))) :]


def written(tokenizer: Any, prompt: list[int], ids: list[int]) -> list[str]:
    characters = Characters(tokenizer, prompt)
    return [*(characters.push(token) for token in ids), characters.end()]


def texts(seed: int) -> str:
    chance = random.Random(seed)
    alphabet = "abc th\n é你👍🏽ũ—\u200d\x1b\ufeff"
    return "".join(chance.choice(alphabet) for _ in range(chance.randint(1, 90)))


@pytest.mark.parametrize("seed", range(12))
def test_pieces_are_what_everything_decodes_to(tokenizer: Any, seed: int) -> None:
    for text in [texts(seed), *TEXTS, "the é" * 40]:
        ids = tokenizer.encode(text, add_special_tokens=False)
        for cut in {0, 1, len(ids) // 2, len(ids) - 1}:
            for front in ([], [tokenizer.bos_token_id] * 20 if tokenizer.bos_token_id is not None else []):
                prompt, rest = [*front, *ids[:cut]], ids[cut:]
                pieces = written(tokenizer, prompt, rest)
                assert "".join(pieces) == behind(tokenizer, prompt, rest)


@pytest.mark.parametrize("seed", range(20))
def test_any_bytes_give_what_everything_decodes_to(seed: int) -> None:
    tokenizer, chance = of_bytes(), random.Random(seed)
    ids = [chance.randrange(len(tokenizer)) for _ in range(200)]
    cut = chance.randrange(len(ids))
    pieces = written(tokenizer, ids[:cut], ids[cut:])
    assert "".join(pieces) == behind(tokenizer, ids[:cut], ids[cut:])
    for at in range(len(ids) - cut):  # and no more than the beginning of one character is held back
        whole = behind(tokenizer, ids[:cut], ids[cut : cut + at + 1])
        given = "".join(pieces[: at + 1])
        assert whole.startswith(given)
        assert whole[len(given) :].strip(BROKEN) == ""
        assert len(whole) - len(given) <= 3


def test_a_character_comes_with_its_last_byte_and_no_piece_has_a_part_of_one() -> None:
    for tokenizer in (of_bytes(), of_pieces()):
        text = "a👍é"
        ids = [token for c in text for token in single_bytes(tokenizer, c)]
        pieces = written(tokenizer, [], ids)
        assert [piece for piece in pieces if piece] == ["a", "👍", "é"]
        assert BROKEN not in "".join(pieces)


def single_bytes(tokenizer: Any, text: str) -> list[int]:
    """A token for each byte of a text."""
    from tokenizers import pre_tokenizers

    if "<0x41>" in tokenizer.get_vocab():
        return [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in text.encode()]
    ((shown, _),) = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return [tokenizer.convert_tokens_to_ids(c) for c in shown]


def test_an_unfinished_character_at_the_end_is_shown_as_one() -> None:
    tokenizer = of_bytes()
    ids = single_bytes(tokenizer, "a👍")[:3]
    assert written(tokenizer, [], ids) == ["a", "", "", BROKEN]


def test_a_character_that_the_prompt_began_is_finished_or_left_to_the_prompt() -> None:
    for tokenizer in (of_bytes(), of_pieces()):
        first, *others = single_bytes(tokenizer, "é")
        assert "".join(written(tokenizer, [first], others)) == "é"
        assert "".join(written(tokenizer, [first], tokenizer.convert_tokens_to_ids(["a", "b"]))) == "ab"


def test_characters_stay_where_bytes_that_are_none_follow() -> None:
    """Tokenizers with a token per byte would take the whole run of bytes back."""
    tokenizer = of_pieces()
    wrong = tokenizer.convert_tokens_to_ids("<0xFF>")
    letter = tokenizer.convert_tokens_to_ids("a")
    ids = [*single_bytes(tokenizer, "你好"), wrong, wrong, letter]
    assert "".join(written(tokenizer, [letter], ids)) == f"你好{BROKEN}{BROKEN}a"
    assert "你" not in decoded(tokenizer, [letter, *ids])


def test_the_space_of_sentencepiece_is_there_behind_a_prompt_and_not_without_one() -> None:
    tokenizer = of_pieces()
    the, start = tokenizer.convert_tokens_to_ids("▁the"), tokenizer.bos_token_id
    assert "".join(written(tokenizer, [start, the], [the, the])) == " the the"
    assert "".join(written(tokenizer, [start], [the, the])) == "the the"
    assert "".join(written(tokenizer, [the] + [start] * 50, [the])) == " the", "special tokens only, as far as a window looks"


def test_special_tokens_have_no_text() -> None:
    for tokenizer in (of_bytes(), of_pieces(), ALL["words"]()):
        start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        (a, *_) = tokenizer.encode("a", add_special_tokens=False)
        assert written(tokenizer, [start, a], [end, start]) == ["", "", ""]


def test_the_work_for_a_token_does_not_grow_with_the_text() -> None:
    tokenizer, longest = of_bytes(), 0

    class Watched:
        def decode(self, token_ids: list[int], **options: Any) -> str:
            nonlocal longest
            longest = max(longest, len(token_ids))
            return str(tokenizer.decode(token_ids, **options))

    ids = tokenizer.encode("naïve 你好 👩‍💻 the " * 100)
    characters = Characters(Watched(), ids)
    assert "".join([*(characters.push(token) for token in ids), characters.end()]) == behind(tokenizer, ids, ids)
    assert longest < 50
