"""Conversations of which the user's turns are known: the target's own replies stand between them."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.reference.journals import line_of
from tests.treespec.data.test_chat import WORDS, chat_tokenizer, load, words, write
from treespec.errors import DatasetError, ModelError
from treespec.evaluation.conversations import with_replies
from treespec.models.pairs import Target
from treespec.models.tree_model import TreeModel

EOS = WORDS.index("</s>")


@pytest.fixture(scope="module")
def pair() -> Target:
    """A random target over the letters."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.5
    )
    return Target(TreeModel(LlamaForCausalLM(config).eval(), name="talker"), chat_tokenizer(), frozenset({EOS}))


def reply(pair: Target, ids: tuple[int, ...], length: int) -> str:
    """By transformers' own generate; special tokens are not said."""
    module = pair.target.module
    out = module.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.int64), max_new_tokens=length, do_sample=False,
        eos_token_id=EOS, pad_token_id=0,
    )  # fmt: skip
    return " ".join(WORDS[i] for i in out[0, len(ids) :].tolist() if WORDS[i] in "abcdefgh")


def test_every_turn_is_a_prompt_behind_the_targets_own_replies(tmp_path: Path, pair: Target) -> None:
    prompts = load(write(tmp_path, {"turns": ["a b", "c", "d"]}, {"text": "e"}, {"turns": ["f", "g h"]}), prompt_len=90)
    seen: list[tuple[int, int]] = []
    found = with_replies(pair, prompts, 5, 90, progress=lambda what, done, total: seen.append((done, total)))
    assert [(p.row, p.name.partition(", ")[2].removeprefix("line ")) for p in found] == [
        (0, "1"), (0, "1, turn 2"), (0, "1, turn 3"), (1, "2"), (2, "3"), (2, "3, turn 2"),
    ]  # fmt: skip
    assert seen == [(1, 3), (2, 3), (3, 3)]
    first, second, third, *_, other, last = found.prompts
    one = reply(pair, first.ids, 5)
    assert words(second.ids) == f"<s> <u> a b <a> {one} </s> <u> c <a>".replace("  ", " ")
    two = reply(pair, second.ids, 5)
    assert words(third.ids) == f"<s> <u> a b <a> {one} </s> <u> c <a> {two} </s> <u> d <a>".replace("  ", " ")
    assert words(last.ids) == f"<s> <u> f <a> {reply(pair, other.ids, 5)} </s> <u> g h <a>".replace("  ", " ")
    assert found.fingerprint != prompts.fingerprint


def test_a_conversation_ends_before_it_is_too_long(tmp_path: Path, pair: Target) -> None:
    prompts = load(write(tmp_path, {"turns": ["a", "b", "c"]}, {"turns": ["d", "e"]}), prompt_len=12)
    whole = with_replies(pair, prompts, 2, 99)
    lengths = {p.name: len(p.ids) for p in whole}
    limit = lengths["chats.jsonl, line 1, turn 2"]
    found = with_replies(pair, prompts, 2, limit)
    assert [p.name for p in found] == [name for name, length in lengths.items() if length <= limit]
    assert found.too_long == len(lengths) - len(found) > 0


def test_prompts_without_further_turns_stay_as_they_are(tmp_path: Path, pair: Target) -> None:
    prompts = load(write(tmp_path, {"text": "a"}, {"messages": [{"role": "user", "content": "b"}]}))
    assert with_replies(pair, prompts, 5, 90) is prompts


def test_a_target_without_a_tokenizer_cannot_converse(tmp_path: Path, pair: Target) -> None:
    prompts = load(write(tmp_path, {"turns": ["a", "b"]}))
    with pytest.raises(ModelError, match="conversations need the target's tokenizer"):
        with_replies(Target(pair.target, None, pair.eos_token_ids), prompts, 5, 90)


def test_a_turn_of_no_tokens_ends_its_conversation(tmp_path: Path, pair: Target) -> None:
    """Which a template makes that writes the last message alone."""
    bare = chat_tokenizer("{{ messages[-1].content }}")
    prompts = load(write(tmp_path, {"turns": ["a", "", "b"]}, {"turns": ["c", "d"]}), bare)
    talker = Target(pair.target, bare, pair.eos_token_ids)
    with pytest.raises(DatasetError, match=r"^chats\.jsonl, line 1, turn 2: the turn has no tokens, but a prompt has at least one"):
        with_replies(talker, prompts, 3, 90)
    found = with_replies(talker, prompts, 3, 90, skip_bad_rows=True)
    assert [words(p.ids) for p in found] == ["a", "c", "d"]
    assert [row.name for row in found.bad] == ["chats.jsonl, line 1, turn 2"]


@pytest.mark.parametrize("odd", [3, None, ["a"]], ids=repr)
def test_a_journal_whose_reply_is_no_text_is_not_believed(odd: object, tmp_path: Path, pair: Target) -> None:
    prompts, journal = load(write(tmp_path, {"turns": ["a b", "c"]}), prompt_len=90), tmp_path / "journal"
    first = with_replies(pair, prompts, 5, 90, journal=journal)
    header, line = journal.read_text().splitlines()
    damaged = line_of({**json.loads(line), "value": odd})
    journal.write_text(f"{header}\n{damaged}\n")
    assert with_replies(pair, prompts, 5, 90, journal=journal) == first
    assert journal.read_text().splitlines() == [header, damaged, line]
