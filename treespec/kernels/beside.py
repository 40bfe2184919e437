"""The beginning of a pass that reads two vectors for each token: its embedding, and a feature beside it, as EAGLE-3 heads do.

`reference_start_beside` defines the result.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from treespec.kernels.dependent_launch import launch_options, overlaps, wait_for_inputs
from treespec.kernels.pointwise import reference_add_norm
from treespec.kernels.product import Norm


def reference_start_beside(embedding: Tensor, tokens: Tensor, features: Tensor, norms: tuple[Norm, Norm]) -> Tensor:
    """Define the result of `start_beside`."""
    parts = zip((embedding[tokens], features), norms, strict=True)
    return torch.cat([reference_add_norm(part, norm)[1] for part, norm in parts], dim=-1)


def start_beside(embedding: Tensor, tokens: Tensor, features: Tensor, norms: tuple[Norm, Norm]) -> Tensor:
    """Return the RMSNorm of each token's embedding, and behind it that of its feature, [rows, 2 inner].

    embedding [vocabulary, inner] and features [rows, inner], contiguous; tokens int64 [rows]; `norms` are that of embeddings and that of features.
    """
    rows, inner = features.shape
    out = torch.empty(rows, 2 * inner, dtype=features.dtype, device=features.device)
    _beside_kernel[(rows, 2)](
        embedding,
        tokens,
        features,
        norms[0].weight,
        norms[1].weight,
        out,
        inner,
        norms[0].epsilon,
        norms[1].epsilon,
        BLOCK=triton.next_power_of_2(inner),
        OVERLAP=2 if overlaps(features.device) else 0,  # the first kernel of its pass; see `dependent_launch`
        num_warps=8 if inner > 2048 else 4,
        **launch_options(features.device),
    )
    return out


@triton.jit
def _beside_kernel(
    embedding_ptr: "Any",
    tokens_ptr: "Any",
    features_ptr: "Any",
    token_norm_ptr: "Any",
    feature_norm_ptr: "Any",
    out_ptr: "Any",
    inner: "Any",
    token_epsilon: "Any",
    feature_epsilon: "Any",
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Write one half of a row: the RMSNorm of a token's row of the embedding, or that of its feature. out [rows, 2 inner].

    Reads early: token_norm, feature_norm.
    """
    row, half, column = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, BLOCK)
    mask = column < inner
    if half == 0:
        weight = tl.load(token_norm_ptr + column, mask=mask, other=0.0).to(tl.float32)
    else:
        weight = tl.load(feature_norm_ptr + column, mask=mask, other=0.0).to(tl.float32)
    # Above: only what is older than the pass: the norms' weights.
    wait_for_inputs(OVERLAP)
    if half == 0:
        token = tl.load(tokens_ptr + row)
        value = tl.load(embedding_ptr + token * inner + column, mask=mask, other=0.0).to(tl.float32)
        epsilon = token_epsilon
    else:
        value = tl.load(features_ptr + row * inner + column, mask=mask, other=0.0).to(tl.float32)
        epsilon = feature_epsilon
    scale = 1 / tl.sqrt(tl.sum(value * value, axis=0) / inner + epsilon)
    tl.store(out_ptr + (2 * row + half) * inner + column, (value * scale * weight).to(out_ptr.dtype.element_ty), mask=mask)
