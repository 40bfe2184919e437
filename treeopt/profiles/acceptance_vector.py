"""Sequoia's acceptance vectors: `.pt` files with one float tensor, read without trusting them."""

import logging
import math
import os
from collections.abc import Sequence

from treespec.errors import ProfileError, counted
from treespec.files.pt import load_pt
from treespec.trees.limits import MAX_SIZE

_log = logging.getLogger(__name__)

_NONE_COLUMN_SLACK = 5e-4
"""Largest distance from 1 of the sum of a published vector with a `none`."""
_ROUGH_SLACK = 0.05
"""Largest such distance where the last number cannot be a rank, because it exceeds the one before it."""
_CLEARLY = 5e-3
_LIMIT = 16 << 20


def read_vector(path: str | os.PathLike[str]) -> tuple[tuple[float, ...], float]:
    """Return the chance of each rank and the chance that none is accepted, from `[0, p_1 ... p_W, none]` or `[0, p_1 ... p_W]`.

    The last number is `none` if they all add up to 1, as in published vectors: as exactly as the tensor's type can hold them, or nearly
    where the last number clearly exceeds the one before it, which no rank does. A warning is logged where that is not certain. Raises ProfileError.
    """
    import torch

    vector = load_pt(path, limit=_LIMIT, error=ProfileError)
    if isinstance(vector, dict) and "Successors" in vector:
        raise ProfileError(f"{path} is a growmap, but an acceptance profile is needed; pass the profile from which it was grown")
    if not isinstance(vector, torch.Tensor) or vector.ndim != 1 or not vector.is_floating_point() or len(vector) < 2:
        plain = isinstance(vector, torch.Tensor)
        kind = f"a {vector.dtype} tensor of shape {list(vector.shape)}" if plain else f"a {type(vector).__name__}"
        raise ProfileError(f"{path} holds {kind}, but an acceptance vector is one float tensor [0, p_1, ..., p_W, none]")
    if len(vector) > MAX_SIZE + 2:
        raise ProfileError(
            f"{path} has {len(vector):,} numbers, but an acceptance vector has at most {MAX_SIZE:,} ranks; keep the first ones"
        )
    values = [float(x) for x in vector.detach().resolve_neg().tolist()]
    if values[0] != 0:
        raise ProfileError(f"{path} starts with {values[0]:.6g}, but an acceptance vector starts with 0: [0, p_1, ..., p_W, none]")
    total = math.fsum(values)
    if not _ends_with_none(values, torch.finfo(vector.dtype).eps):
        if len(values) > 2 and values[-1] > values[-2] + _CLEARLY:
            _log.warning(
                f"{path} adds up to {total:.4f}: its last number, {values[-1]:.4g}, exceeds the one before it, but is taken for that of a rank"
            )
        return tuple(values[1:]), max(0.0, 1 - total)
    if abs(total - 1) > _NONE_COLUMN_SLACK:
        kind = str(vector.dtype).removeprefix("torch.")
        _log.warning(
            f"{path} adds up to {total:.4f} in {kind}: its last number, {values[-1]:.4g}, is taken for the chance that none of "
            f"{counted(len(values) - 2, 'rank')} is accepted"
        )
    whole = total if total > 1 + _NONE_COLUMN_SLACK else 1.0  # chances add up to 1 at most
    return tuple(x / whole for x in values[1:-1]), values[-1] / whole


def _ends_with_none(values: Sequence[float], eps: float) -> bool:
    """Return whether the last number is the chance of none. Each number is within eps / 2 of its true value, as a share of that."""
    if len(values) <= 2:
        return False
    gap = abs(math.fsum(values) - 1)
    return gap <= max(_NONE_COLUMN_SLACK, eps / 2) or (gap <= _ROUGH_SLACK and values[-1] > values[-2] + _CLEARLY)
