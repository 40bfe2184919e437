"""Targets of large shapes, of which each process makes its own part on its own device, weight by weight: nothing is on disk, none holds it whole."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.inflate import Inflated, Shape, big_config
from treespec.embedded import TARGET_FOLDER
from treespec.models.loaded import LoadedModel, return_objects
from treespec.models.parallel.loading import empty_part, own_part, put, whole_shape
from treespec.models.parallel.shard import Shard, join_outputs, part_of
from treespec.models.parallel.team import Team
from treespec.models.tree_model import TreeModel

Weight = Callable[[str, tuple[int, ...]], Tensor]
"""Returns a whole weight by its name and shape. It is asked for all of them, in the order of the parameters."""


class Alone(Team):
    """A team of one process, which needs no process group: what it adds up and joins is there already."""

    def __init__(self, device: str) -> None:
        self.rank, self.size, self.device, self.backend, self.hosts = 0, 1, device, "none", 1
        self.processes, self.note = None, ""

    def sum(self, x: Tensor) -> Tensor:
        """See `Team.sum`."""
        return x

    def joined(self, x: Tensor, width: int) -> Tensor:
        """See `Team.joined`."""
        return x[..., :width]

    def committed(self, tokens: Any, *, last: bool = False) -> None:
        """See `Team.committed`: there is nobody to compare with."""


def random_weights(device: str, dtype: torch.dtype, seed: int = 0) -> Weight:
    """Return weights that mean nothing, but cost what others cost."""
    generator = torch.Generator(device).manual_seed(seed)

    def weight(name: str, shape: tuple[int, ...]) -> Tensor:
        if "norm" in name:
            return torch.ones(shape, dtype=dtype, device=device)
        return torch.randn(shape, dtype=dtype, device=device, generator=generator) * 0.02

    return weight


def model_of(config: LlamaConfig, weight: Weight, name: str, device: str, dtype: torch.dtype, team: Team | None = None) -> TreeModel:
    """Return a model of this configuration, or of a `team` this process's part of it. At most one whole weight exists beside the parts."""
    rank, processes = (0, 1) if team is None else (team.rank, team.size)
    vocabulary, parameters = int(config.vocab_size), 0
    module = empty_part(config, processes, dtype)
    with torch.no_grad():
        for key, parameter in list(module.named_parameters()):
            shape = whole_shape(key, parameter, vocabulary, processes)
            parameters += math.prod(shape)
            own = own_part(weight(key, shape), part_of(key, shape, rank, processes))
            put(module, key, own.to(device=device, dtype=dtype, copy=True))  # else a part could keep the whole
    module.to(device)
    return_objects(module)
    loaded = LoadedModel.of(module.train(False))
    if team is not None:
        join_outputs(module, team, vocabulary)
        loaded = replace(loaded, shard=Shard(team, vocabulary, parameters))
    return TreeModel(loaded, name=name)


def inflated_target(shape: Shape, name: str, device: str, dtype: torch.dtype, team: Team | None = None) -> TreeModel:
    """Return the embedded target with the cost of a shape: the very weights of `benchmarks.inflate`, or a part of each."""
    small = LlamaForCausalLM.from_pretrained(TARGET_FOLDER, dtype=torch.float32)
    config = big_config(small.config, shape)
    return model_of(config, Inflated(small, config, device).weight, name, device, dtype, team)
