"""Sequoia's acceptance vectors: `.pt` files with one float tensor, read without trusting them."""

import math
import os

from treespec.errors import ProfileError
from treespec.files.pt import load_pt

_NONE_COLUMN_SLACK = 5e-4
_LIMIT = 16 << 20


def read_vector(path: str | os.PathLike[str]) -> tuple[tuple[float, ...], float]:
    """Return the chance of each rank and the chance that none is accepted, from `[0, p_1 ... p_W, none]` or `[0, p_1 ... p_W]`.

    The last number is `none` if they all add up to 1, as in published vectors. Raises ProfileError.
    """
    import torch

    vector = load_pt(path, limit=_LIMIT, error=ProfileError)
    if not isinstance(vector, torch.Tensor) or vector.ndim != 1 or not vector.is_floating_point() or len(vector) < 2:
        plain = isinstance(vector, torch.Tensor)
        kind = f"a {vector.dtype} tensor of shape {list(vector.shape)}" if plain else f"a {type(vector).__name__}"
        raise ProfileError(f"{path} holds {kind}, but an acceptance vector is one float tensor [0, p_1, ..., p_W, none]")
    values = [float(x) for x in vector.tolist()]
    if values[0] != 0:
        raise ProfileError(f"{path} starts with {values[0]:.6g}, but an acceptance vector starts with 0: [0, p_1, ..., p_W, none]")
    total = math.fsum(values)
    if len(values) > 2 and abs(total - 1) <= _NONE_COLUMN_SLACK:
        return tuple(values[1:-1]), values[-1]
    return tuple(values[1:]), max(0.0, 1 - total)
