"""Headers of GGUF files: read without the weights, and held against the length of the file before anything is believed."""

import mmap
import re
import shlex
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from treespec.errors import TreeoptError, reason_of

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""The types of metadata that have a fixed width, as `struct` spells them."""
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)
_PLAIN = {"F32", "F16", "BF16", "F64"}
_LONGEST_NAME = 1 << 16
_MOST_DIMENSIONS = 4
_LAYER = re.compile(r"(?:^|\.)blk\.(\d+)\.")


@dataclass(frozen=True)
class GgufArray:
    """An array of the metadata, which was passed over."""

    length: int


@dataclass(frozen=True)
class GgufHeader:
    """The facts that a GGUF file states before its weights."""

    architecture: str
    quantization: str | None
    """The type that most of the quantised weights have, for example Q4_1; None where none is quantised."""
    shapes: Mapping[str, tuple[int, ...]]
    """Name to shape of every tensor, by their names in the file."""
    metadata: Mapping[str, Any]
    """Name to value of the metadata; of an array, only the length is known."""

    @property
    def layers(self) -> int:
        """Return the number of layers that have tensors."""
        return len({match[1] for name in self.shapes if (match := _LAYER.search(name))})

    @property
    def has_tokenizer(self) -> bool:
        """Return whether the file holds the tokens of a tokenizer."""
        tokens = self.metadata.get("tokenizer.ggml.tokens")
        return isinstance(tokens, GgufArray) and tokens.length > 0


def read_header(path: Path, error: type[TreeoptError]) -> GgufHeader:
    """Return the header of a GGUF file. No weight is read.

    Raises `error` if the file is no GGUF file, ends too early, is one part of several or a part of a model (an adapter, eyes, a head), or
    claims another model than its tensors are of.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            header = _Reader(content).header()
    except (struct.error, ValueError, OverflowError, UnicodeDecodeError) as e:
        raise error(f"{path} is not a whole GGUF file ({reason_of(e)}); download or make it again") from e
    parts = header.metadata.get("split.count", 1)
    if isinstance(parts, int) and parts > 1:
        raise error(
            f"{path} is one of {parts} parts of a GGUF file, which transformers cannot read; join them: "
            f"llama-gguf-split --merge {shlex.quote(path.name)} whole.gguf"
        )
    kind = str(header.metadata.get("general.type", "model"))
    if kind == "model" and "token_embd.weight" not in header.shapes:
        kind = f"{header.architecture} without token_embd.weight"
    if kind != "model":
        raise error(f"{path} is no whole model ({kind:.60}); give the GGUF file of a causal language model")
    for setting, claimed, found in _claims(header):
        if isinstance(claimed, int) and claimed != found:
            raise error(f"{path} claims {setting} {claimed}, but its tensors have {found}; download or make it again")
    return header


def _claims(header: GgufHeader) -> Iterator[tuple[str, Any, int]]:
    """Yield sizes that the metadata claims for a text model: the setting, the claim, and what the tensors show."""

    def setting(name: str) -> Any:
        return header.metadata.get(f"{header.architecture}.{name}")

    if setting("nextn_predict_layers") is None:  # layers that predict further tokens are counted by some and not by others
        yield "block_count", setting("block_count"), header.layers
    for name, tensor in (("embedding_length", "token_embd.weight"), ("feed_forward_length", "blk.0.ffn_down.weight")):
        if tensor in header.shapes:
            yield name, setting(name), header.shapes[tensor][-1]
    if "token_embd.weight" in header.shapes:
        yield "vocab_size", setting("vocab_size"), header.shapes["token_embd.weight"][0]
    width, heads = setting("attention.key_length"), setting("attention.head_count")
    for name, tensor in (("head_count", "blk.0.attn_q.weight"), ("head_count_kv", "blk.0.attn_k.weight")):
        count = setting(f"attention.{name}")
        if tensor in header.shapes and isinstance(width, int) and isinstance(count, int):
            yield f"attention.{name} times attention.key_length", count * width, header.shapes[tensor][0]
    if isinstance(heads, int) and width is None and "blk.0.attn_q.weight" in header.shapes:
        rows = header.shapes["blk.0.attn_q.weight"][0]
        yield "attention.head_count", heads, heads if 0 < heads <= rows else rows


class _Reader:
    """Reads one value after another. A count or a length beyond the end of the file raises ValueError before anything is made of it."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content, self.at = content, 0

    def header(self) -> GgufHeader:
        if self.content[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self.at = 4
        version = self.number("I")
        if version not in _VERSIONS:
            raise ValueError(f"its version is {version}, and {_VERSIONS[0]} and {_VERSIONS[1]} are known")
        tensors, entries = self.number("Q"), self.number("Q")
        self.bounded(tensors, 24)
        self.bounded(entries, 13)
        metadata = {self.string(): self.value(self.number("I")) for _ in range(entries)}
        architecture = metadata.get("general.architecture")
        if not isinstance(architecture, str):
            raise ValueError("its metadata has no general.architecture")
        found = [self.tensor() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"general.alignment is {alignment}")
        start = -(-self.at // alignment) * alignment
        weights: Counter[str] = Counter()
        for name, shape, kind, offset in found:
            ggml_type, size = _stored(kind, prod(shape))
            weights[ggml_type] += prod(shape)
            if start + offset + size > len(self.content):
                raise ValueError(f"{name} would end at byte {start + offset + size}, and the file at {len(self.content)}")
        return GgufHeader(architecture, _main(weights), {name: shape for name, shape, _, _ in found}, metadata)

    def number(self, form: str) -> Any:
        (value,) = struct.unpack_from(f"<{form}", self.content, self.at)
        self.at += struct.calcsize(f"<{form}")
        return value

    def string(self) -> str:
        length = self.number("Q")
        self.bounded(length, 1)
        self.at += length
        return self.content[self.at - length : self.at].decode()

    def value(self, kind: int) -> Any:
        """Return one value of the metadata. Arrays are passed over, and only their length is returned."""
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise ValueError(f"metadata of type {kind}")
        inner, count = self.number("I"), self.number("Q")
        if inner in _NUMBERS:
            size = struct.calcsize(f"<{_NUMBERS[inner]}")
            self.bounded(count, size)
            self.at += count * size
        elif inner == _STRING:
            self.bounded(count, 8)
            for _ in range(count):
                length = self.number("Q")
                self.bounded(length, 1)
                self.at += length
        else:
            raise ValueError(f"an array of type {inner}")
        return GgufArray(count)

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Return name, shape, type and offset of one tensor."""
        name, dimensions = self.string(), self.number("I")
        if len(name) > _LONGEST_NAME or dimensions > _MOST_DIMENSIONS:
            raise ValueError(f"a tensor of {dimensions} dimensions")
        shape = tuple(self.number("Q") for _ in range(dimensions))
        return name, shape[::-1], self.number("I"), self.number("Q")

    def bounded(self, count: int, size: int) -> None:
        """Raise ValueError unless `count` things of `size` bytes each fit into the rest of the file."""
        if count * size > len(self.content) - self.at:
            raise ValueError(f"it claims {count} values at byte {self.at}, and has {len(self.content) - self.at} more bytes")


def _stored(kind: int, numbers: int) -> tuple[str, int]:
    """Return the name of a tensor's type, and the bytes that so many numbers take."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    return GGMLQuantizationType(kind).name, numbers // block * size


def _main(weights: "Counter[str]") -> str | None:
    """Return the quantised type of most weights; None where none is quantised."""
    return max(((count, name) for name, count in weights.items() if name not in _PLAIN), default=(0, None))[1]
