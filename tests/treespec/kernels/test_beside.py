"""The beginning of a pass over embeddings with features beside them, against its twin: in Triton's interpreter on the CPU, and on a GPU."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from tests.treespec.kernels.test_pointwise import DTYPES, close, some
from treespec.kernels.beside import reference_start_beside, start_beside
from treespec.kernels.product import Norm


@DTYPES
@pytest.mark.parametrize(("rows", "inner"), [(1, 16), (5, 100), (3, 2500)])
def test_norms_of_embeddings_and_features_stand_side_by_side(rows: int, inner: int, dtype: torch.dtype, device: str) -> None:
    embedding, features = some(11, inner, device=device, dtype=dtype), 3 * some(rows, inner, device=device, dtype=dtype, seed=1)
    tokens = torch.tensor([10, 0, 7, 7, 3], device=device)[:rows]
    norms = tuple(Norm(some(inner, device=device, dtype=dtype, seed=seed) + 1, epsilon) for seed, epsilon in ((2, 1e-2), (3, 1e-5)))
    found, wanted = start_beside(embedding, tokens, features, norms), reference_start_beside(embedding, tokens, features, norms)
    assert found.shape == (rows, 2 * inner)
    assert close(found, wanted)
    for wrong in ((embedding.roll(1, dims=0), features, norms), (embedding, 2 * features, (norms[0], replace(norms[1], epsilon=1.0)))):
        assert not close(start_beside(wrong[0], tokens, wrong[1], wrong[2]), wanted)
