"""The files that a tokenizer is made of: whether there are any, and whether a tokenizer was made of them."""

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from treespec.errors import ModelError
from treespec.models.weights import require_real

_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "tiktoken.model", "tekken.json")
"""Files of a whole vocabulary, which transformers finds by itself for every kind of tokenizer."""
_OLDER = ("vocab.json", "vocab.txt")
"""Files of a vocabulary that only some kinds of tokenizers have."""
_KNOWN = (*_VOCABULARIES, *_OLDER, "tokenizer_config.json", "*.model")
_FOREIGN = ("*.tiktoken", "tokenizer.model.v*")
"""Vocabularies that transformers does not read."""
_MOST_MEGABYTES = {
    **dict.fromkeys((*_VOCABULARIES, *_OLDER, "merges.txt", "*.model"), 64),
    **dict.fromkeys(("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.json"), 16),
    **dict.fromkeys(("*.jinja", "additional_chat_templates/*.jinja"), 4),
}
"""Largest size of each file that transformers reads whole, in MB; those of real tokenizers have half as much at most."""
_CACHE = "TIKTOKEN_CACHE_DIR"


def has_tokenizer(files: Collection[str], name: str, folder: Path | None = None) -> bool:
    """Return whether files are of a tokenizer. Those in a `folder` must have content.

    Raises ModelError for a tokenizer that only other programs read, and for a file that is empty or only stands in for one.
    """
    known = [file for file in sorted(files) if any(fnmatch(file, pattern) for pattern in _KNOWN)]
    if folder is not None:
        for file in ["tokenizer.json"] if "tokenizer.json" in known else known:  # it has all that the others have
            require_real(name, folder / file)
    if known:
        return True
    foreign = [file for file in files if any(fnmatch(file, pattern) for pattern in _FOREIGN)]
    if foreign:
        raise ModelError(
            f"the tokenizer of {name} is {foreign[0]}, which transformers does not read without code of its own; "
            "convert it to tokenizer.json, or copy the tokenizer files of a model with the same tokens"
        )
    return False


def require_small(folder: Path, name: str) -> None:
    """Raise ModelError if a file of a folder's tokenizer is larger than those of tokenizers are."""
    for pattern, most in _MOST_MEGABYTES.items():
        for path in folder.glob(pattern):
            size = path.stat().st_size
            if size > most * 10**6:
                raise ModelError(f"{path.name} of {name} has {size} bytes, but the limit is {most} MB; download or copy it again")


def vocabulary_file(files: Collection[str]) -> str | None:
    """Return the one file of a vocabulary that transformers finds only if told; None if it needs no telling."""
    own = [file for file in files if fnmatch(file, "*.model")]
    return own[0] if len(own) == 1 and not any(file in (*_VOCABULARIES, *_OLDER) for file in files) else None


def require_vocabulary(tokenizer: PreTrainedTokenizerBase, files: Collection[str], name: str) -> None:
    """Raise ModelError if a tokenizer was made without any file of its vocabulary: it would know a handful of tokens only."""
    wanted = set(type(tokenizer).vocab_files_names.values())
    if wanted and vocabulary_file(files) is None and not any(file in {*wanted, *_VOCABULARIES} for file in files):
        raise lacks_vocabulary(name, files, wanted)


def lacks_vocabulary(name: str, files: Collection[str], wanted: Collection[str] = _VOCABULARIES) -> ModelError:
    """Return the error for a tokenizer without a file in which transformers looks for its tokens."""
    there = [file for file in sorted(files) if any(fnmatch(file, pattern) for pattern in _KNOWN)]
    return ModelError(
        f"{name} has {', '.join(there)} of a tokenizer, but no file in which transformers looks for its tokens here "
        f"({', '.join(sorted(wanted))}); copy one from the model that it was made of"
    )


@contextmanager
def read_anew() -> Iterator[None]:
    """Keep tiktoken from taking a file that it read earlier at the same path for the one that is there now."""
    before = os.environ.get(_CACHE)
    os.environ[_CACHE] = ""
    try:
        yield
    finally:
        del os.environ[_CACHE]
        if before is not None:
            os.environ[_CACHE] = before
