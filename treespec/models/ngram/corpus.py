"""Corpus: the texts that an n-gram draft counts beforehand. They are read and checked here, before a weight is read. No torch."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from treespec.errors import ModelError, counted
from treespec.files.reading import StrPath, read_bytes, user_path
from treespec.models.ngram import NGRAM, model_beside, reads_corpus

MAX_CORPUS_BYTES = 64 << 20
"""Most bytes of all files of a corpus together. The tables take up to 30 times as many."""

_PIECE = 1 << 16
"""Characters of a piece of text that is made into tokens at once, to the end of its last line."""
_CUT = "pass a part of it as `corpus`"
_DIGITS = 12
"""Digits of the SHA-256 of a corpus in the name of its draft."""


@dataclass(frozen=True)
class Corpus:
    """The texts of some files, and the SHA-256 of their contents in their order."""

    texts: tuple[str, ...] = field(repr=False)
    sha256: str

    @classmethod
    def read(cls, files: Sequence[StrPath]) -> "Corpus | None":
        """Read files of UTF-8 text; None if none is named. Raises ModelError for one that cannot be read, is empty, no UTF-8 or too large."""
        if not files:
            return None
        texts, digest, left = [], hashlib.sha256(), MAX_CORPUS_BYTES
        for file in files:
            content = read_bytes(user_path(file, ModelError), limit=MAX_CORPUS_BYTES, error=ModelError, remedy=_CUT)
            left -= len(content)
            if left < 0:
                raise ModelError(
                    f"the files of `corpus` have more than {counted(MAX_CORPUS_BYTES, 'byte')} together, which is the limit; pass fewer, or cut them"
                )
            try:
                text = content.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise ModelError(
                    f"{file}, which `corpus` names, is no UTF-8 text (byte {error.start}); convert it, or name another file"
                ) from error
            if not text.strip():
                raise ModelError(f"{file}, which `corpus` names, holds no text; name a file with text, or leave `corpus` out")
            texts.append(text)
            digest.update(hashlib.sha256(content).digest())
        return cls(tuple(texts), digest.hexdigest())

    def pieces(self) -> Iterator[Iterator[str]]:
        """Yield each text as pieces that end with a line, so that a tokenizer never has a whole file before it."""
        return (_pieces(text) for text in self.texts)


def draft_name(corpus: Corpus | None, model: str | None = None) -> str:
    """Return the name of the draft in messages and records, which tells corpora apart: `ngram`, or `ngram+3f21c0a97be4`.

    Beside a `model`, it comes after that: `model+ngram`, or `model+ngram+3f21c0a97be4`.
    """
    ngrams = NGRAM if corpus is None else f"{NGRAM}+{corpus.sha256[:_DIGITS]}"
    return ngrams if model is None else f"{model}+{ngrams}"


def name_of(draft: str, files: Sequence[StrPath]) -> str:
    """Return the name that records have for a draft and the files of its corpus. Raises ModelError as `Corpus.read` does."""
    return draft_name(Corpus.read(files), model_beside(draft)) if reads_corpus(draft) else draft


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        line = text.find("\n", start + _PIECE)
        end = len(text) if line < 0 else line + 1
        yield text[start:end]
        start = end
