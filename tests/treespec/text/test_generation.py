"""Whole texts against transformers' own `generate`, and pieces against whole texts."""

import copy
import gc
import random
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.reference.pairs import VOCABULARY, tiny_pair
from tests.reference.tokenizers import of_bytes, of_letters
from tests.treespec.data.test_chat import TEMPLATE
from treespec.data.prompts import Prompt, PromptSet
from treespec.data.slices import ChatOptions
from treespec.decoding.drafting import Drafting
from treespec.decoding.loop import Request, decode_speculative
from treespec.decoding.plans import DynamicBudget
from treespec.decoding.rules import Sampling
from treespec.decoding.sampling import prompt_generator
from treespec.errors import CapacityError, DatasetError, ModelError, SettingsError
from treespec.models.pairs import Pair
from treespec.models.tree_model import TreeModel
from treespec.text.generation import TextStream, generate, stream
from treespec.text.settings import TextSettings
from treespec.text.writing import Writer
from treespec.trees.growmap import GrowMap
from treespec.trees.tree import SpeculationTree

TREE = SpeculationTree.from_paths([(0, 0, 0), (0, 1), (1, 0), (2,)])
PLANS = {"alone": None, "tree": TREE, "growmap": GrowMap(TREE), "dynamic": DynamicBudget.of(8, 3), "chain": SpeculationTree.chain(12)}
PROMPT = (5, 17, 3, 44)


@pytest.fixture(scope="module")
def pair() -> Pair:
    """A random pair that writes letters."""
    return replace(tiny_pair(), tokenizer=of_letters(VOCABULARY))


def ended_by(pair: Pair, *eos: int) -> Pair:
    return replace(pair, eos_token_ids=frozenset(eos))


def generated(pair: Pair, length: int, prompt: tuple[int, ...] = PROMPT, **options: Any) -> tuple[int, ...]:
    """The greedy continuation by transformers, at whose EOS tokens it stops."""
    module = pair.target.module
    ids = torch.tensor([prompt])
    eos = sorted(pair.eos_token_ids) or None
    output = module.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=length,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=eos,
        tokenizer=pair.tokenizer,
        **options,
    )
    return tuple(output[0, len(prompt) :].tolist())


def text_of(pair: Pair, ids: tuple[int, ...]) -> str:
    return "".join(pair.tokenizer.convert_ids_to_tokens(ids))


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_texts_are_those_of_generate(pair: Pair, plan: Any) -> None:
    found = generate(pair, PROMPT, plan=plan, max_new_tokens=40)
    assert found.ids == generated(pair, 40)
    assert (found.text, str(found)) == (text_of(pair, found.ids), text_of(pair, found.ids))
    assert (found.ended, found.tokens, found.prompt_tokens, found.stop) == ("length", 40, 4, None)
    assert found.steps == len(found.accepted_ranks)
    assert (found.steps < 39) == (plan is not None), "a draft that is never right tests nothing"
    if plan is None:
        assert set(found.accepted_ranks) == {()}
    assert sum(len(ranks) + 1 for ranks in found.accepted_ranks) >= 39
    assert found.tokens_per_step == pytest.approx(39 / found.steps)
    assert repr(found).startswith(f"Generated({found.text[:60]!r} ...: 40 tokens in {found.steps} steps, ")
    assert repr(found).endswith(" tokens per second; ended by length)")


@pytest.mark.parametrize("plan", [None, TREE], ids=["alone", "tree"])
def test_texts_end_at_stop_strings_where_those_of_generate_end(pair: Pair, plan: Any) -> None:
    whole = generate(pair, PROMPT, max_new_tokens=40)
    text, chance = str(whole.text), random.Random(0)
    ends = set()
    for _ in range(12):
        start = chance.randrange(1, len(text) - 8)
        stop = text[start : start + chance.randint(1, 8)]
        found = generate(pair, PROMPT, plan=plan, max_new_tokens=40, stop=stop)
        assert found.ids == generated(pair, 40, stop_strings=[stop]), stop
        assert (found.text, found.ended, found.stop) == (text[: text.index(stop)], "stop", stop)
        assert "".join(stream(pair, PROMPT, plan=plan, max_new_tokens=40, stop=stop)) == found.text
        ends.add(len(text_of(pair, found.ids)) - len(str(found.text)) - len(stop))
    assert len(ends) > 1, "stop strings end at the ends of tokens and inside them"


def test_the_first_of_several_stop_strings_counts(pair: Pair) -> None:
    text = str(generate(pair, PROMPT, max_new_tokens=40).text)
    near, far = text[6:9], text[20:26]
    for stop in ([far, near], (near, far), [near, text[4:9], far]):
        found = generate(pair, PROMPT, plan=TREE, max_new_tokens=40, stop=stop)
        assert found.ids == generated(pair, 40, stop_strings=list(stop))
        assert str(found.text) + str(found.stop) == text[: len(str(found.text) + str(found.stop))]
    first = pair.tokenizer.convert_ids_to_tokens(generated(pair, 1))[0]
    found = generate(pair, PROMPT, plan=TREE, stop=first)
    assert (found.text, found.tokens, found.steps, found.ended, found.tokens_per_step) == ("", 1, 0, "stop", None)


def test_a_stop_string_that_is_not_completed_is_given_out(pair: Pair) -> None:
    text = str(generate(pair, PROMPT, max_new_tokens=12).text)
    beginning = text[-2:] + "abcabcabcabc"
    found = generate(pair, PROMPT, plan=TREE, max_new_tokens=12, stop=beginning)
    assert (found.text, found.ended) == (text, "length")
    assert "".join(stream(pair, PROMPT, plan=TREE, max_new_tokens=12, stop=beginning)) == text


def test_a_text_ends_with_eos_which_is_no_part_of_it(pair: Pair) -> None:
    whole = generated(pair, 40)
    for end in (whole[0], whole[9]):
        found = generate(ended_by(pair, end, 60), PROMPT, plan=TREE, max_new_tokens=40)
        assert found.ids == generated(ended_by(pair, end, 60), 40) == whole[: whole.index(end) + 1]
        assert (found.ended, found.text) == ("eos", text_of(pair, found.ids[:-1]))
        held = str(found.text)[-1:] + "zzz"
        assert generate(ended_by(pair, end), PROMPT, max_new_tokens=40, stop=held).text == found.text


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_one_token_needs_no_step(pair: Pair, plan: Any) -> None:
    found = generate(pair, PROMPT, plan=plan, max_new_tokens=1)
    assert (found.ids, found.steps, found.ended) == (generated(pair, 1), 0, "length")
    assert (found.tokens_per_step, found.tokens_per_second) == (None, None)
    assert repr(found) == f"Generated({found.text!r}: 1 token in 0 steps; ended by length)"


@pytest.mark.parametrize(
    "plan", [None, TREE, SpeculationTree.chain(40), DynamicBudget.of(30, 20)], ids=["alone", "tree", "deep", "dynamic"]
)
def test_a_text_ends_at_the_last_position(plan: Any) -> None:
    pair = replace(tiny_pair(positions=24), tokenizer=of_letters(VOCABULARY))
    said: list[str] = []
    found = generate(pair, PROMPT, plan=plan, max_new_tokens=100, notice=said.append)
    assert (found.ended, len(PROMPT) + found.tokens) == ("room", 25)
    assert found.ids == generated(tiny_pair(positions=256), 21)
    deep = plan is not None and plan.depth == 40
    assert said == (["the tree is 40 deep, but only 20 positions are left behind the prompt: it is cut"] if deep else [])
    one = generate(pair, tuple(range(24)), plan=plan, max_new_tokens=9)
    assert (one.tokens, one.ended) == (1, "room")


def test_behind_the_positions_of_the_draft_the_target_goes_on(pair: Pair) -> None:
    short = replace(pair, draft=TreeModel(copy.deepcopy(pair.draft.module), name="short"))
    short.draft.module.config.max_position_embeddings = 16
    short = replace(short, draft=TreeModel(short.draft.module, name="short"))
    assert short.draft.max_positions == 16
    found = generate(short, PROMPT, plan=TREE, max_new_tokens=40)
    assert found.ids == generated(pair, 40)
    assert found.accepted_ranks[-20:] == ((),) * 20
    assert any(found.accepted_ranks)


@pytest.mark.parametrize("drafting", [Drafting(), Drafting("swor"), Drafting("swr", verifier="traversal")])
def test_sampled_texts_have_the_streams_of_an_evaluation(pair: Pair, drafting: Drafting) -> None:
    sampling = {"temperature": 0.9, "top_p": 0.95}
    found = generate(pair, [PROMPT, PROMPT], plan=TREE, max_new_tokens=20, seed=3, drafting=drafting, **sampling)
    for index, text in enumerate(found):
        request = Request(PROMPT, 20, sampling=Sampling(**sampling))
        records = decode_speculative(pair.target, pair.draft, TREE, request, prompt_generator(3, index, "cpu"), drafting=drafting)
        assert text.ids == tuple(token for record in records for token in record.tokens)
    assert found[0].ids != found[1].ids
    assert generate(pair, PROMPT, plan=TREE, max_new_tokens=20, seed=3, drafting=drafting, **sampling).ids == found[0].ids


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_pieces_add_up_to_the_text(pair: Pair, plan: Any) -> None:
    found = generate(pair, "abcdef", plan=plan, max_new_tokens=40)
    pieces = stream(pair, "abcdef", plan=plan, max_new_tokens=40)
    assert isinstance(pieces, TextStream)
    assert pieces.result().ids == ()
    first = next(pieces)
    assert pieces.result().text == first
    assert pieces.result().ended == "interrupted"
    others = list(pieces)
    assert (first + "".join(others), all(others)) == (found.text, True)
    assert replace(pieces.result(), seconds=found.seconds) == found


def test_pieces_of_random_bytes_never_split_a_character() -> None:
    pair = replace(tiny_pair(), tokenizer=of_bytes())  # its ids below 61 are single bytes
    found = generate(pair, PROMPT, plan=TREE, max_new_tokens=60)
    assert "".join(stream(pair, PROMPT, plan=TREE, max_new_tokens=60)) == found.text
    assert found.ids == generated(pair, 60)


def test_who_proposed_a_piece_is_told(pair: Pair) -> None:
    from treespec.text.prompts import read_prompt

    writing = Writer(pair, TREE, TextSettings(30)).write(read_prompt(pair, PROMPT))
    pieces = list(writing)
    made = writing.result()
    accepted = sum(map(len, made.accepted_ranks))
    tokens = [len(token) for token in pair.tokenizer.convert_ids_to_tokens(made.ids)]
    assert sum(len(piece.text) for piece in pieces) == sum(tokens)
    expected, at = [(False, tokens[0])], 1
    for ranks in made.accepted_ranks:
        step = tokens[at : at + len(ranks) + 1]
        expected += [(True, sum(step[: len(ranks)])), (False, sum(step[len(ranks) :]))]
        at += len(ranks) + 1
    assert accepted
    assert [(piece.accepted, len(piece.text)) for piece in pieces] == [part for part in expected if part[1]]


def test_an_interrupted_text_ends_with_the_step_that_ran(pair: Pair) -> None:
    from treespec.text.prompts import read_prompt

    writing = Writer(pair, TREE, TextSettings(40)).write(read_prompt(pair, PROMPT))
    next(writing)
    writing.interrupt()
    list(writing)
    made = writing.result()
    assert (made.ended, made.steps, made.ids) == ("interrupted", 0, generated(pair, 1))
    writing = Writer(pair, TREE, TextSettings(40)).write(read_prompt(pair, PROMPT))
    for number, piece in enumerate(writing):
        writing.interrupt()
        assert number == 0 or piece.text
    assert writing.result().ended == "interrupted"


def test_prompts_of_every_kind(pair: Pair) -> None:
    tokenizer = pair.tokenizer
    ids = tuple(tokenizer.encode("abcdef"))
    expected = generate(pair, ids, max_new_tokens=5).ids
    for prompt in (
        "abcdef",
        list(ids),
        ids,
        torch.tensor(ids),
        torch.tensor(ids).numpy(),
        list(torch.tensor(ids)),
        Prompt(3, "row 3", ids),
    ):
        assert generate(pair, prompt, max_new_tokens=5).ids == expected
    rows = PromptSet((Prompt(0, "row 0", ids), Prompt(1, "row 1", PROMPT)), "rows", 0, 2, 0)
    batches = [torch.tensor([ids]), torch.tensor([PROMPT])]
    for prompts in (["abcdef", PROMPT], ["abcdef", list(PROMPT)], rows, ("abcdef", Prompt(0, "", PROMPT)), batches):
        found = generate(pair, prompts, max_new_tokens=5)
        assert [text.ids for text in found] == [expected, generated(pair, 5)]
    assert [text.ids for text in generate(pair, torch.tensor([ids]), max_new_tokens=5)] == [expected]
    assert generate(pair, range(3), max_new_tokens=2).prompt_tokens == 3


def chatting(pair: Pair, template: str | None) -> Pair:
    tokenizer = of_letters(VOCABULARY, special=("<u>", "<a>", "<sys>"))
    tokenizer.chat_template = template
    return replace(pair, tokenizer=tokenizer)


def test_messages_go_through_the_chat_template(pair: Pair) -> None:
    talks = chatting(pair, TEMPLATE.replace(" ", ""))
    talks.tokenizer.chat_template = (
        "{% for m in messages %}{{ {'user': '<u>', 'assistant': '<a>', 'system': '<sys>'}[m.role] }}{{ m.content }}{% endfor %}{{ end }}<a>"
    )
    known = talks.tokenizer.get_vocab()
    ids = [known[token] for token in ("<u>", "a", "b", "<a>", "c", "<u>", "d", "<a>")]
    messages = [
        {"role": "user", "content": "ab"},
        {"from": "gpt", "value": "c"},
        {"role": "user", "content": [{"type": "text", "text": "d"}]},
    ]
    expected = generate(talks, ids, max_new_tokens=6)
    assert generate(talks, messages, max_new_tokens=6).ids == expected.ids
    assert "".join(stream(talks, messages, max_new_tokens=6)) == expected.text
    both = generate(talks, [messages, "ab"], max_new_tokens=6)
    assert both[0].ids == expected.ids
    with_system = [known["<sys>"], known["a"], *ids[:-1], known["f"], ids[-1]]
    found = generate(talks, messages, max_new_tokens=6, chat_options=ChatOptions("a", {"end": "f"}))
    assert (found.ids, found.prompt_tokens) == (generate(talks, with_system, max_new_tokens=6).ids, len(with_system))


def test_without_a_tokenizer_ids_go_in_and_out() -> None:
    pair = tiny_pair()
    found = generate(pair, PROMPT, plan=TREE, max_new_tokens=20)
    assert (found.text, found.ids) == (None, generated(pair, 20))
    assert str(found) == str(list(found.ids))
    assert repr(found).startswith(f"Generated({list(found.ids[:15])} ...: 20 tokens in ")
    for call, words in (
        (lambda: generate(pair, "abc"), "the prompt is text, but tiny comes without a tokenizer; pass token ids"),
        (lambda: generate(pair, [{"role": "user", "content": "a"}]), "the prompt is text, but tiny comes without a tokenizer"),
        (lambda: generate(pair, PROMPT, stop="a"), "`stop` needs the target's tokenizer"),
        (lambda: stream(pair, PROMPT), "pieces of text need the target's tokenizer"),
    ):
        with pytest.raises(ModelError, match=words):
            call()


def assistant_last() -> list[dict[str, str]]:
    return [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    ("prompt", "options", "error", "words"),
    [
        ("", {}, CapacityError, "the prompt is empty, but decoding needs at least 1 token"),
        ([], {}, CapacityError, "the prompt is empty"),
        (["ab", ""], {}, CapacityError, "prompt 1 is empty"),
        ([1, 61], {}, DatasetError, "the prompt has token 61, but the model has 61 embedding rows"),
        ([1, -1], {}, DatasetError, "the prompt has token -1, but ids are 0 or more"),
        ([1] * 257, {}, CapacityError, "the prompt has 257 tokens, but the target model reads 256; pass a shorter one"),
        ("a\udcff", {}, DatasetError, "the prompt holds half a surrogate pair"),
        (None, {}, DatasetError, "the prompt is a NoneType, but it must be a string, a list of token ids or a list of messages"),
        ([1, "a"], {}, DatasetError, "the prompt is a list of several kinds of things"),
        ([[1], 2.5], {}, DatasetError, "prompt 1 is a float"),
        ({"input_ids": [1]}, {}, DatasetError, "the prompt is a dict, but it must be"),
        ([{"role": "user", "content": "a"}], {}, DatasetError, "the prompt has messages, which need a chat template"),
        (PROMPT, {"stop": ["a", ""]}, SettingsError, "`stop` has an empty string"),
        (PROMPT, {"stop": ""}, SettingsError, "`stop` has an empty string"),
        (PROMPT, {"max_new_tokens": 0}, SettingsError, "`max_new_tokens` is 0"),
        (PROMPT, {"temperature": -1}, SettingsError, "`temperature` is -1"),
        (
            PROMPT,
            {"plan": DynamicBudget.of(8, 3), "drafting": Drafting("swor")},
            SettingsError,
            "`dynamic` drafts tokens that are not sampled",
        ),
        (PROMPT, {"plan": SpeculationTree.k_ary(70, 1)}, ModelError, "70"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(pair: Pair, prompt: Any, options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as found:
        generate(pair, prompt, **options)
    assert words in str(found.value)
    assert "\n" not in str(found.value)


def test_conversations_that_cannot_be_answered_are_refused(pair: Pair) -> None:
    talks = chatting(pair, "{% for m in messages %}<u>{{ m.content }}{% endfor %}<a>")
    for messages, words in (
        (assistant_last(), "its last message is the assistant's own"),
        ([{"role": "system", "content": "a"}], 'no message of role "user"'),
        ([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}], "part of the type image"),
        ([{"role": "user"}], 'the "content" of message 0'),
    ):
        with pytest.raises(DatasetError, match=words):
            generate(talks, messages)
    with pytest.raises(DatasetError, match="several prompts cannot be streamed"):
        stream(talks, ["a", "b"])
    for call in (generate, stream):
        with pytest.raises(SettingsError, match="a tree needs a draft model"):
            call(pair.alone(), PROMPT, plan=TREE)


def test_special_tokens_have_no_text_and_may_be_stop_strings(pair: Pair) -> None:
    ids = generated(pair, 40)
    string = pair.tokenizer.convert_ids_to_tokens(ids[5])
    tokenizer = of_letters(VOCABULARY)
    tokenizer.add_special_tokens({"additional_special_tokens": [string]})
    special = replace(pair, tokenizer=tokenizer)
    found = generate(special, PROMPT, plan=TREE, max_new_tokens=40)
    assert (found.ids, found.text) == (ids, text_of(pair, tuple(token for token in ids if token != ids[5])))
    stopped = generate(special, PROMPT, plan=TREE, max_new_tokens=40, stop=[string])
    end = ids.index(ids[5])
    if string not in text_of(pair, ids[:end]):  # it may also stand across the tokens before
        assert (stopped.ids, stopped.text, stopped.ended, stopped.stop) == (ids[: end + 1], text_of(pair, ids[:end]), "stop", string)
    assert "".join(stream(special, PROMPT, plan=TREE, max_new_tokens=40, stop=[string])) == stopped.text


@pytest.mark.gpu
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_captured_texts_are_those_of_generate_and_steps_are_captured_once(plan: Any) -> None:
    pair = replace(tiny_pair(device="cuda"), tokenizer=of_letters(VOCABULARY))
    alone = replace(tiny_pair(), tokenizer=of_letters(VOCABULARY))
    said: list[str] = []
    prompts = [PROMPT, PROMPT * 9, PROMPT * 3]
    found = generate(pair, prompts, plan=plan, max_new_tokens=40, notice=said.append)
    assert [text.ids for text in found] == [generated(alone, 40, prompt) for prompt in prompts]
    assert said == []
    generation = pair.target.generation
    again = generate(pair, PROMPT, plan=plan, max_new_tokens=40, stop=str(found[0].text)[9:14])
    assert again.text == str(found[0].text).partition(str(found[0].text)[9:14])[0]
    assert pair.target.generation == generation, "caches are kept from call to call, and captured steps with them"
    for length in range(2, 40):
        generate(pair, PROMPT * length, plan=plan, max_new_tokens=2)
    assert pair.target.generation < generation + 4, "caches that grow do so by half of what they were at least"


@pytest.mark.gpu
def test_captured_steps_go_with_the_models() -> None:
    pair = tiny_pair(device="cuda")
    generate(pair, PROMPT, plan=TREE, max_new_tokens=9)
    model = weakref.ref(pair.target)
    del pair
    gc.collect()
    assert model() is None


def test_another_text_in_the_middle_of_a_stream_ends_it_in_a_line(pair: Pair) -> None:
    pieces = stream(pair, PROMPT, plan=TREE, max_new_tokens=30)
    first = next(pieces)
    assert generate(pair, PROMPT, max_new_tokens=30).text.startswith(first)
    with pytest.raises(ModelError, match="another text was begun with .* read a stream to its end first"):
        list(pieces)
    assert pieces.result().ended == "interrupted"
    read = stream(pair, PROMPT, plan=TREE, max_new_tokens=1)
    next(read)
    generate(pair, PROMPT, max_new_tokens=2)
    assert list(read) == [] and read.result().ended == "length"
