"""A trial that a model is exact over trees: it compares a small random tree with its paths, each run alone."""

from typing import Protocol

import torch
from torch import Tensor

from treespec.decoding.protocol import ScoringModel, SlotModel
from treespec.errors import ModelError, TreeoptError
from treespec.models.families import Family
from treespec.trees.placement import Placement, Prefix
from treespec.trees.tree import SpeculationTree

PREFIX = 11
TREE = SpeculationTree.from_branches([[3], [2, 1, 1], [2, 1, 0, 1], [1, 0, 1, 0]])
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6, torch.float16: 0.05, torch.bfloat16: 0.2}
"""Largest logit difference allowed, as a share of the logits' standard deviation."""


class TrialModel(SlotModel, ScoringModel, Protocol):
    """A model that can be tried: it has passes over a tree in slots, and plain passes over whole texts to compare them with."""

    @property
    def name(self) -> str:
        """Return the name of the model in messages."""

    @property
    def family(self) -> Family:
        """Return the family, whose model type messages name."""

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the logits, on which the tolerance depends."""

    def prefill(self, tokens: Tensor, pixels: Tensor | None = None, chunk: int = 512) -> Tensor:
        """Read tokens int64 [length] causally into slots 0 .. length - 1, at most `chunk` per pass."""


def verify_exactness(model: TrialModel, seed: int = 0) -> float:
    """Run a random tree and its paths, compare all logits, and return the largest difference (in logit deviations).

    The trial does what decoding does, in small: the tree's nodes lie in scattered slots with unused ones between and after
    them, the tree grows in two passes, one of its paths is accepted and moved, and the next token is compared too. It costs
    about 15 short passes and a cache of 64 slots.

    Raises ModelError, with the family's name, if the difference is larger than rounding or the model refuses such passes.
    """
    try:
        difference = _largest_difference(model, torch.Generator().manual_seed(seed))
    except TreeoptError:
        raise
    except Exception as error:  # whatever a module raises on masks, caches or positions it was not made for
        raise ModelError(
            f"{model.name} (family {model.family.model_type}) is not verified with trees, and a trial tree failed: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        ) from error
    limit = TOLERANCE.get(model.dtype, 0.2)
    if not difference <= limit:
        raise ModelError(
            f"{model.name} (family {model.family.model_type}) is not verified with trees, and in a trial its tree logits differ from those of "
            f"the paths run alone by {difference:.3g} standard deviations (limit {limit:g}): speculative decoding would change its output"
        )
    return difference


def _largest_difference(model: TrialModel, generator: torch.Generator) -> float:
    def ids(values: list[int] | range | Tensor) -> Tensor:
        return torch.as_tensor(values, dtype=torch.int64).to(model.device)

    depths = ids(list(TREE.depths))
    tokens = ids(torch.randint(model.vocabulary_size, (PREFIX + TREE.size + 1,), generator=generator))
    prompt, nodes, extra = tokens[:PREFIX], tokens[PREFIX:-1], tokens[-1:]
    rows = ids(torch.randperm(2 * TREE.size, generator=generator)[: TREE.size])
    model.allocate(PREFIX + 2 * TREE.size + 5)
    model.prefill(prompt, chunk=4)
    visible = torch.zeros(TREE.size, 2 * TREE.size + 5, dtype=torch.bool)
    visible[:, rows.cpu()] = torch.tensor(TREE.ancestor_mask)
    visible = visible.to(model.device)
    prefix = Prefix.of(PREFIX, model.device)
    half = TREE.levels[2].start
    parts = (slice(0, half), slice(half, TREE.size))
    got = list(torch.cat([model.forward(nodes[part], Placement(prefix, depths[part], rows[part], visible[part])) for part in parts]))
    paths = [[n for n in range(TREE.size) if TREE.ancestor_mask[node, n]] for node in range(TREE.size)]
    wanted = [model.score(torch.cat([prompt, nodes[ids(path)]])[None], PREFIX + len(path) - 1)[0, 0] for path in paths]
    deepest = ids(paths[-1])
    length = PREFIX + len(paths[-1])
    model.move(prefix, rows[deepest], 0)
    got.append(model.forward(extra, Placement.causal(length, 1, model.device))[0])
    wanted.append(model.score(torch.cat([prompt, nodes[deepest], extra])[None], length)[0, 0])
    expected = torch.stack(wanted).float()
    return float((torch.stack(got).float() - expected).abs().max() / expected.std().clamp_min(1e-6))
