"""Pure functions that turn logits into the target's distribution and choice, with temperature, top-p and a random stream per prompt."""

import hashlib

import torch
from torch import Tensor

from treespec.decoding.rules import Sampling
from treespec.errors import ModelError
from treespec.kernels import dispatch, plain


def distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """Return the probabilities that the target samples from: [..., vocabulary] -> the same shape. See `plain.distribution`."""
    if logits.dim() != 2:
        return plain.distribution(logits, sampling.temperature, sampling.top_p)
    return dispatch.distribution(logits, sampling.temperature, sampling.top_p)[0]


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator | None) -> Tensor:
    """Choose one token per row: [rows, vocabulary] -> int64 [rows]. Tokens of probability 0 are never drawn. No host synchronisation."""
    return choose_checked(logits, sampling, generator)[0]


def prompt_generator(seed: int, index: int, device: torch.device | str, purpose: str = "") -> torch.Generator:
    """Return the random stream of prompt `index` for a purpose, which depends on (seed, index, purpose) alone."""
    digest = hashlib.sha256(f"treeopt:{seed}:{index}{purpose and ':'}{purpose}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def choose_checked(logits: Tensor, sampling: Sampling, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Choose one token per row of logits [rows, vocabulary]; return (tokens int64 [rows], the largest logit of each row [rows])."""
    if sampling.greedy:
        largest, tokens = dispatch.top_tokens(logits, 1)
        return tokens[:, 0], largest[:, 0]
    return dispatch.choose(logits, sampling.temperature, sampling.top_p, generator)


def finite(logits: Tensor) -> Tensor:
    """Return int64 [], 1 if the largest logit of every row of [rows, vocabulary] is finite: neither NaN nor infinite."""
    return logits.amax(-1).isfinite().all().to(torch.int64)


def require_finite(sound: int, position: int | None = None, role: str = "target") -> None:
    """Raise ModelError if `sound` is 0, as `finite` returns it. The message has the position of the step if it is known."""
    if not sound:
        place = "" if position is None else f" at position {position}"
        raise ModelError(
            f"the {role}'s logits are not finite{place} (NaN or infinite); "
            "the weights are damaged or overflow in this precision: try `dtype` float32 or bfloat16"
        )
