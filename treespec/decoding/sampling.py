"""From logits to the target's distribution and choice: temperature, top-p, per-prompt random streams. Pure functions."""

import hashlib

import torch
from torch import Tensor

from treespec.decoding.rules import Sampling
from treespec.errors import ModelError
from treespec.kernels import dispatch

_COLDEST = 1e-30
"""Below this, any difference between two logits leaves the smaller one no chance, and the reciprocal may overflow."""
_HOTTEST = 1e30
"""Above this, all finite logits have the same chance, and the temperature may overflow."""


def distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities that the target samples from. [..., vocabulary] -> the same shape; float32, or float64 for float64 logits.

    Greedy gives all mass to the first most likely token. Top-p follows Holtzman et al. (arXiv 1904.09751): a token stays
    while the mass before it, in descending order, is below `top_p`, so at least one always stays.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if sampling.greedy:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    probabilities = scaled(logits, sampling.temperature).softmax(-1)
    if sampling.top_p >= 1.0:
        return probabilities
    descending, order = probabilities.sort(dim=-1, descending=True, stable=True)
    dropped = descending.cumsum(-1) - descending >= sampling.top_p
    dropped[..., :1].fill_(False)
    kept = torch.zeros_like(probabilities).scatter_(-1, order, descending.masked_fill(dropped, 0.0))
    return kept / kept.sum(-1, keepdim=True)


def scaled(logits: Tensor, temperature: float) -> Tensor:
    """Logits at a temperature above 0, 0 for the largest of every row; softmax makes probabilities of them. [..., vocabulary]."""
    differences = logits - logits.amax(-1, keepdim=True)  # before the division, which overflows at tiny temperatures
    return differences / min(max(temperature, _COLDEST), _HOTTEST)


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator | None) -> Tensor:
    """One token per row. [rows, vocabulary] -> int64 [rows]. No host synchronisation; zero-probability tokens are never drawn."""
    if sampling.greedy:
        return logits.argmax(-1)
    return race(distribution(logits, sampling), generator).argmax(-1)


def race(weights: Tensor, generator: torch.Generator | None) -> Tensor:
    """Speeds of competing exponential clocks: token x comes first with probability weights(x) / sum. [..., vocabulary] -> the same.

    The order of the others is that of sampling without replacement. Tokens of weight 0 come last, with speed 0.
    """
    return weights / torch.empty_like(weights).exponential_(generator=generator)


def draw(weights: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """`count` independent tokens per row. [rows, vocabulary] -> int64 [rows, count]. By inverse distribution function in float64."""
    totals = weights.double().cumsum(-1)
    uniforms = torch.rand(weights.shape[0], count, dtype=torch.float64, device=weights.device, generator=generator)
    places = torch.searchsorted(totals, uniforms * totals[:, -1:], right=True)
    return places.clamp_max(weights.shape[-1] - 1)


def prompt_generator(seed: int, index: int, device: torch.device | str) -> torch.Generator:
    """The random stream of prompt `index`: a function of (seed, index) alone."""
    digest = hashlib.sha256(f"treeopt:{seed}:{index}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def choose_checked(logits: Tensor, sampling: Sampling, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """(One token per row, int64 [rows]; its largest logit [rows]) of logits [rows, vocabulary]."""
    if sampling.greedy:
        largest, tokens = dispatch.top_tokens(logits, 1)
        return tokens[:, 0], largest[:, 0]
    return choose(logits, sampling, generator), logits.amax(-1)


def finite(logits: Tensor) -> Tensor:
    """int64 []: 1 when every row's largest logit is finite, which NaN and +inf never are. [rows, vocabulary]."""
    return logits.amax(-1).isfinite().all().to(torch.int64)


def require_finite(sound: int, position: int | None = None, role: str = "target") -> None:
    """Raise ModelError when `finite` said 0, naming the position of the step where it is known."""
    if not sound:
        place = "" if position is None else f" at position {position}"
        raise ModelError(
            f"the {role}'s logits are not finite{place} (NaN or infinite); "
            "the weights are damaged or overflow in this precision: try `dtype` float32 or bfloat16"
        )
