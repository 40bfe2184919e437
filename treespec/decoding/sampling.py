"""Pure functions that turn logits into the target's distribution and choice, with temperature, top-p and a random stream per prompt."""

import hashlib

import torch
from torch import Tensor

from treespec.decoding.rules import Sampling
from treespec.errors import ModelError
from treespec.kernels import dispatch

_COLDEST = 1e-30
"""At lower temperatures, any difference between two logits gives the smaller one probability 0, and the reciprocal may overflow."""
_HOTTEST = 1e30
"""At higher temperatures, all finite logits have the same probability, and the temperature may overflow."""


def distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """Return the probabilities that the target samples from: [..., vocabulary] -> the same shape; float32, or float64 for float64.

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
    """Return logits [..., vocabulary] at a temperature above 0, shifted so that the largest is 0. Their softmax is the distribution."""
    differences = logits - logits.amax(-1, keepdim=True)  # before the division, which overflows at tiny temperatures
    return differences / min(max(temperature, _COLDEST), _HOTTEST)


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator | None) -> Tensor:
    """Choose one token per row: [rows, vocabulary] -> int64 [rows]. Tokens of probability 0 are never drawn. No host synchronisation."""
    if sampling.greedy:
        return logits.argmax(-1)
    return race(distribution(logits, sampling), generator).argmax(-1)


def race(weights: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return random speeds of competing exponential clocks [..., vocabulary]: token x is fastest with probability weights(x) / sum.

    The order by speed is that of sampling without replacement. Tokens of weight 0 come last, with speed 0.
    """
    return weights / torch.empty_like(weights).exponential_(generator=generator)


def draw(weights: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Draw `count` independent tokens per row: [rows, vocabulary] -> int64 [rows, count]. Uses the inverse distribution in `widest`."""
    totals = weights.to(widest(weights.device)).cumsum(-1)
    uniforms = torch.rand(weights.shape[0], count, dtype=totals.dtype, device=weights.device, generator=generator)
    places = torch.searchsorted(totals, uniforms * totals[:, -1:], right=True)
    return places.clamp_max(weights.shape[-1] - 1)


def widest(device: torch.device) -> torch.dtype:
    """Return the dtype for sums of probabilities and for draws: float64, or float32 on MPS, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def prompt_generator(seed: int, index: int, device: torch.device | str) -> torch.Generator:
    """Return the random stream of prompt `index`, which depends on (seed, index) alone."""
    digest = hashlib.sha256(f"treeopt:{seed}:{index}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def choose_checked(logits: Tensor, sampling: Sampling, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Choose one token per row of logits [rows, vocabulary]; return (tokens int64 [rows], the largest logit of each row [rows])."""
    if sampling.greedy:
        largest, tokens = dispatch.top_tokens(logits, 1)
        return tokens[:, 0], largest[:, 0]
    return choose(logits, sampling, generator), logits.amax(-1)


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
