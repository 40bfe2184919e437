"""The matrices that a head runs with and does not train: the embedding, its own or its target's, and the target's `lm_head`."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from treespec.errors import ModelError
from treespec.models.heads.files import HeadFiles
from treespec.models.heads.settings import Settings
from treespec.models.heads.target import HeadTarget

Embedding = Literal["own", "target"]
"""Whose embedding a head reads tokens with."""


@dataclass(frozen=True)
class Borrowed:
    """The two largest matrices of a head, which are not copied where they are the target's."""

    embedding: Tensor
    """[V, H]."""
    lm_head: Tensor
    """[V, Ht]; the target's. A head that has one of its own does not use it."""
    lm_head_bias: Tensor | None = None
    """[V]; None for none."""

    def embedded(self, tokens: Tensor) -> Tensor:
        """Return embeddings [.., H] of tokens int64 [..] of the target's vocabulary."""
        return F.embedding(tokens, self.embedding)

    def logits(self, x: Tensor) -> Tensor:
        """Return logits [.., V] of x [.., H]."""
        return F.linear(x, self.lm_head, self.lm_head_bias)


def require_lendable(files: HeadFiles, kind: str, hidden: int, target: HeadTarget) -> None:
    """Raise ModelError if a head of this kind and of hidden size `hidden` lacks a matrix that its target cannot lend, as its own is of another width."""
    for name in ("embed_tokens.weight", "lm_head.weight"):
        if not files.has(name) and hidden != target.hidden_size:
            raise ModelError(
                f"{files.name} is {kind} and lacks {name}, and that of target {target.name} is {target.hidden_size} wide, but the head {hidden}; "
                "use a head made for it"
            )


def chosen_embedding(files: HeadFiles, own: Tensor, target: HeadTarget, embedding: Embedding | None) -> Tensor:
    """Return the embedding that a head with one in its files runs with. Raises ModelError if nothing says which."""
    if own.shape != target.embedding.shape:
        if embedding == "target":
            raise ModelError(
                f"{files.name} is an EAGLE-3 head whose embedding is {own.shape[1]} wide, but that of target {target.name} "
                f"{target.hidden_size}; leave out `embedding`"
            )
        return own
    if embedding == "target" or _is_copy(own, target.embedding):
        return target.embedding
    if embedding == "own" or Settings.of(files).flag("embed_requires_grad"):
        return own
    raise ModelError(
        f"{files.name} holds an embed_tokens.weight that is not that of target {target.name}, and nothing says whether it was trained or left as "
        'it began; give `embedding`: "own" if it was trained, else "target"'
    )


def _is_copy(own: Tensor, other: Tensor) -> bool:
    """Return whether two matrices are the same up to how a type of half the width rounds them, as after saving in float16 or bfloat16."""
    return any(own.to(half).equal(other.to(half)) for half in (torch.float16, torch.bfloat16))
