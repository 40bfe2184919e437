"""The draft tokens of a head: which of the target's tokens each of them is."""

import torch
from torch import Tensor

from treespec.errors import ModelError
from treespec.models.heads.files import HeadFiles
from treespec.models.heads.target import HeadTarget

_REMEDY = "use the head that was made for this target, or download it again"


def target_ids(files: HeadFiles, weights: dict[str, Tensor], target: HeadTarget) -> Tensor | None:
    """Take `d2t` and `t2d` out of the weights and return the target's id of every draft token, int64 [Vd]; None if they are the same.

    `d2t` int64 [Vd] holds the target's id minus the draft's, and `t2d` bool [V] which of the target's tokens have one.
    Raises ModelError for ids outside the target's vocabulary, for two draft tokens of one id, and if the two tables differ.
    """
    offsets, known = weights.pop("d2t", None), weights.pop("t2d", None)
    if offsets is None:
        return None
    _require_whole(files, "d2t", offsets)
    ids = offsets.long() + torch.arange(offsets.shape[0], device=offsets.device)
    outside = ids[(ids < 0) | (ids >= target.vocabulary_size)]
    if outside.numel():
        raise ModelError(
            f"{files.name} is an EAGLE-3 head whose d2t leads to the token {int(outside[0])}, but target {target.name} has the tokens 0 to "
            f"{target.vocabulary_size - 1}; {_REMEDY}"
        )
    order = ids.sort().values
    twice = order[1:][order[1:] == order[:-1]]
    if twice.numel():
        raise ModelError(f"{files.name}: d2t leads from two draft tokens to the token {int(twice[0])}, but only one can; {_REMEDY}")
    if known is not None:
        marked = torch.zeros(known.shape, dtype=torch.bool, device=known.device).index_fill_(0, ids, True)
        odd = (marked != (known != 0)).nonzero()
        if odd.numel():
            raise ModelError(f"{files.name}: t2d and d2t do not agree on whether the token {int(odd[0])} is a draft token; {_REMEDY}")
    return ids


def vocabulary_shapes(files: HeadFiles, rows: int, target: HeadTarget) -> dict[str, tuple[int, ...]]:
    """Return the shapes that `d2t` and `t2d` must have beside logits of so many draft tokens. Raises ModelError if `d2t` is needed and missing."""
    if rows != target.vocabulary_size and not files.has("d2t"):
        raise ModelError(
            f"{files.name} is an EAGLE-3 head of {rows} draft tokens without a d2t that says which of the {target.vocabulary_size} "
            f"tokens of target {target.name} they are; {_REMEDY}"
        )
    if files.has("t2d") and files.shapes["t2d"] != (target.vocabulary_size,):
        raise ModelError(
            f"{files.name} is an EAGLE-3 head for a target of {files.shapes['t2d'][0] if files.shapes['t2d'] else 0} tokens (t2d), "
            f"but target {target.name} has {target.vocabulary_size}; {_REMEDY}"
        )
    known = {"d2t": (rows,), "t2d": (target.vocabulary_size,)}
    return {name: shape for name, shape in known.items() if files.has(name)}


def _require_whole(files: HeadFiles, name: str, table: Tensor) -> None:
    if table.is_floating_point() or table.dtype == torch.bool:
        raise ModelError(f"{files.name} holds {name} as {str(table.dtype).removeprefix('torch.')}, but it must be int64; {_REMEDY}")
