"""NgramInfo: the facts about an n-gram draft before anything is counted."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from treespec.data.encoding import encoded
from treespec.errors import DatasetError, ModelError
from treespec.files.reading import StrPath
from treespec.models.ngram import NGRAM
from treespec.models.ngram.corpus import Corpus, draft_name
from treespec.models.ngram.draft import NgramDraft
from treespec.models.ngram.table import NgramTable
from treespec.models.tree_model import TreeModel


@dataclass(frozen=True)
class NgramInfo:
    """The facts about an n-gram draft for a target: its logits are those of the target, and its corpus is read in the target's tokens."""

    vocabulary_size: int
    tokenizer: PreTrainedTokenizerBase | None = None
    corpus: Corpus | None = field(default=None, repr=False)
    max_positions: int | None = None
    rope_note: str = ""
    quantization: str | None = None

    @classmethod
    def of(cls, target: str, tokenizer: PreTrainedTokenizerBase | None, vocabulary: int, corpus: Sequence[StrPath]) -> "NgramInfo":
        """Return the n-gram draft of a target's name, tokenizer and logits; the files of its corpus are read. Raises ModelError."""
        found = Corpus.read(corpus)
        if found is not None and tokenizer is None:
            raise ModelError(
                f"a `corpus` is read in the target's tokens, but {target} comes without a tokenizer; put its files into the folder, or leave `corpus` out"
            )
        return cls(vocabulary, tokenizer, found)

    @property
    def name(self) -> str:
        """Return its name in messages and records."""
        return draft_name(self.corpus)

    @property
    def has_weights(self) -> bool:
        """Return that it has none."""
        return False

    def positions_of(self, prompt: Sequence[int]) -> int:
        """Return the number of positions that a prompt takes."""
        return len(prompt)

    def load_draft(self, target: TreeModel, *, device: str, dtype: str = "auto") -> NgramDraft:
        """Count the corpus, and return the draft. It has no weights, so `dtype` changes nothing. Raises ModelError."""
        return NgramDraft(self.vocabulary_size, device, self.corpus, self.table())

    def table(self) -> NgramTable | None:
        """Count the corpus; None without one. Raises ModelError."""
        if self.corpus is None:
            return None
        try:
            texts = [
                [token for piece in pieces for token in encoded(self.tokenizer, piece, NGRAM, special=False)]
                for pieces in self.corpus.pieces()
            ]
        except DatasetError as error:
            raise ModelError(f"the `corpus` cannot be read in the target's tokens: {error}") from error
        highest = max((max(text, default=0) for text in texts), default=0)
        if highest >= self.vocabulary_size:
            raise ModelError(
                f"the `corpus` has the token {highest}, but the target has {self.vocabulary_size} logits; use another tokenizer, or leave `corpus` out"
            )
        if max(map(len, texts)) < 2:
            raise ModelError("the `corpus` is of one token, after which nothing follows; name a longer text, or leave `corpus` out")
        return NgramTable.of(texts, self.vocabulary_size)
