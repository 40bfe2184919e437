"""Sequoia's acceptance vectors: `.pt` files with one float tensor, read without trusting them."""

import io
import math
import os

from treespec.errors import ProfileError
from treespec.files import read_bytes

_NONE_COLUMN_SLACK = 5e-4
_LIMIT = 16 << 20


def read_vector(path: str | os.PathLike[str]) -> tuple[tuple[float, ...], float]:
    """(chance of each rank, chance that none is accepted) of `[0, p_1 ... p_W, none]` or `[0, p_1 ... p_W]`.

    The last number is `none` where they all add up to 1, as published vectors do. Raises ProfileError.
    """
    import torch

    content = read_bytes(path, limit=_LIMIT, error=ProfileError)
    try:
        vector = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as e:  # torch raises whatever the damaged bytes lead to; none of it runs code of the file's
        raise ProfileError(
            f"{path} is no acceptance vector: torch cannot read it as plain tensors; save one float tensor with torch.save"
        ) from e
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
