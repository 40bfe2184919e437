"""Every kind of tokenizer that transformers reads is loaded, with no package beyond the declared ones; what it cannot read is named."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from transformers import PreTrainedModel

from treespec.errors import ModelError
from treespec.models.loading import load_tokenizer, tokenizer_or_none
from treespec.models.pairs import load_pair

TEXTS = ["the cat sat on the mat and the dog sat on the log", "a quick brown fox jumps over the lazy dog 123", "hello world"] * 5
RANKS = [bytes([byte]) for byte in range(256)] + [b"th", b"the"]
TIKTOKEN = b"".join(base64.b64encode(token) + f" {rank}\n".encode() for rank, token in enumerate(RANKS))
LLAMA = {"tokenizer_class": "LlamaTokenizer"}


@pytest.fixture(scope="session")
def pieces() -> dict[str, bytes]:
    """Kind -> a trained model of sentencepiece."""

    def trained(kind: str) -> bytes:
        found = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS), model_writer=found, vocab_size=300, model_type=kind, byte_fallback=True, minloglevel=2,
            hard_vocab_limit=False,
        )  # fmt: skip
        return found.getvalue()

    return {kind: trained(kind) for kind in ("bpe", "unigram")}


def tekken(specials: bool = True) -> bytes:
    content: dict[str, Any] = {
        "config": {"pattern": r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+|\s+", "default_vocab_size": 268, "default_num_special_tokens": 10},
        "vocab": [{"rank": rank, "token_bytes": base64.b64encode(token).decode()} for rank, token in enumerate(RANKS)],
    }
    if specials:
        content["special_tokens"] = [{"rank": i, "token_str": name} for i, name in enumerate(("<unk>", "<s>", "</s>"))]
    return json.dumps(content).encode()


@pytest.fixture
def model(tmp_path: Path, tiny_module: Callable[..., PreTrainedModel]) -> Callable[..., Path]:
    """A folder with a tiny model, a file and a tokenizer_config.json."""

    def write(file: str | None, content: bytes, settings: dict[str, Any] | None = None, family: str = "llama", name: str = "model") -> Path:
        folder = tmp_path / name
        tiny_module(family, vocab_size=400).save_pretrained(folder)
        if file is not None:
            (folder / file).write_bytes(content)
        if settings is not None:
            (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return folder

    return write


@pytest.mark.parametrize(
    ("file", "kind", "settings"),
    [
        ("tokenizer.model", "bpe", LLAMA),
        ("tokenizer.model", "bpe", None),
        ("tokenizer.model", "unigram", {"tokenizer_class": "PreTrainedTokenizerFast"}),
        ("spiece.model", "unigram", None),
        ("spiece.model", "bpe", LLAMA),
        ("sentencepiece.bpe.model", "bpe", None),
    ],
)
@pytest.mark.parametrize("family", ["llama", "mistral", "phi3"])
def test_files_of_sentencepiece(
    family: str, file: str, kind: str, settings: dict[str, Any] | None, pieces: dict[str, bytes], model: Callable[..., Path]
) -> None:
    tokenizer = load_tokenizer(str(model(file, pieces[kind], settings, family)))
    own = sentencepiece.SentencePieceProcessor(model_proto=pieces[kind])
    assert len(tokenizer.get_vocab()) == own.vocab_size()
    assert tokenizer.convert_tokens_to_ids(["▁the", "▁s", "o"]) == [own.piece_to_id(piece) for piece in ("▁the", "▁s", "o")]
    assert tokenizer.decode(tokenizer.encode("the cat sat on"), skip_special_tokens=True) == "the cat sat on"


@pytest.mark.parametrize("file", ["tokenizer.model", "tiktoken.model"])
def test_files_of_tiktoken(file: str, model: Callable[..., Path]) -> None:
    folder = model(file, TIKTOKEN)
    assert load_tokenizer(str(folder)).encode("the cat") == [257, 32, 99, 97, 116]
    swapped = TIKTOKEN.replace(base64.b64encode(b"the"), base64.b64encode(b"thx"))
    (folder / file).write_bytes(swapped)
    assert load_tokenizer(str(folder)).encode("thx cat") == [257, 32, 99, 97, 116], "tiktoken keeps no copy of a file that has changed"


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_tekken(family: str, model: Callable[..., Path]) -> None:
    tokenizer = load_tokenizer(str(model("tekken.json", tekken(), family=family)))
    assert tokenizer.encode("the cat") == [267, 42, 109, 107, 126]
    assert tokenizer.decode([267, 42, 109]) == "the c"


def test_a_pair_with_tokenizer_model_is_loaded(pieces: dict[str, bytes], model: Callable[..., Path]) -> None:
    """As JackFram/llama-68m lies on the hub."""
    target, draft = (str(model("tokenizer.model", pieces["bpe"], LLAMA, name=name)) for name in ("target", "draft"))
    pair = load_pair(target, draft)
    assert pair.tokenizer is not None
    assert pair.tokenizer.decode(pair.tokenizer.encode("hello world")) == "hello world"


@pytest.mark.parametrize(
    ("file", "content", "settings", "family", "message"),
    [
        ("tokenizer.tiktoken", TIKTOKEN, None, "llama", "is tokenizer.tiktoken, which transformers does not read without code of its own"),
        ("qwen.tiktoken", TIKTOKEN, None, "qwen2", "is qwen.tiktoken, which transformers does not read"),
        ("tekken.json", tekken(specials=False), None, "llama", "its tokenizer needs the package mistral-common, which is not installed"),
        ("tokenizer.json", b"version https://git-lfs.github.com/spec/v1\n", None, "llama", "tokenizer.json of .* is a pointer of git-lfs"),
        ("tokenizer.model", b"", LLAMA, "llama", "tokenizer.model of .* is empty"),
        ("tokenizer.model", b"\0junk", None, "llama", "cannot be loaded: its tokenizer: ValueError"),
        (None, b"", LLAMA, "llama", r"has tokenizer_config.json of a tokenizer, but no file .* \(tokenizer.json, tokenizer.model\)"),
        (None, b"", {"eos_token": "</s>"}, "qwen2", r"has tokenizer_config.json .*no file .* \(merges.txt, tokenizer.json, vocab.json\)"),
        (None, b"", {"eos_token": "</s>"}, "mistral", "has tokenizer_config.json of a tokenizer, but no file"),
        ("vocab.txt", b"[UNK]\nthe\n", None, "gemma", "has vocab.txt of a tokenizer, but no file in which transformers looks"),
    ],
)
def test_a_tokenizer_that_cannot_be_read_is_one_line(
    file: str | None, content: bytes, settings: dict[str, Any] | None, family: str, message: str, model: Callable[..., Path]
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        tokenizer_or_none(str(model(file, content, settings, family)))
    assert "\n" not in str(caught.value)


def test_no_files_are_no_tokenizer(model: Callable[..., Path]) -> None:
    assert tokenizer_or_none(str(model(None, b""))) is None


def test_what_lies_beside_a_whole_tokenizer_is_not_looked_at(model: Callable[..., Path], tokenizer_into: Callable[..., None]) -> None:
    folder = model("tokenizer.model", b"version https://git-lfs.github.com/spec/v1\n")
    tokenizer_into(folder)
    assert tokenizer_or_none(str(folder)) is not None


@pytest.mark.parametrize(("file", "limit"), [("tokenizer.json", 64), ("tokenizer_config.json", 16), ("chat_template.jinja", 4)])
def test_a_file_that_is_too_large_is_refused_before_it_is_read(file: str, limit: int, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with (tmp_path / file).open("wb") as large:
        large.truncate(1 << 30)
    with pytest.raises(ModelError, match=rf"{file} of .* has 1073741824 bytes, but the limit is {limit} MB"):
        load_tokenizer(str(tmp_path))
