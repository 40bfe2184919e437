"""Static trees: the tree is the same at every step, and its children are drafted by a rule of `rules.RULES`."""

import torch
from torch import Tensor

from treespec.decoding.drafters.base import DrafterSetup, ModelDrafter
from treespec.decoding.proposal import Proposal
from treespec.decoding.sampling import distribution
from treespec.decoding.timing import Timer
from treespec.kernels import dispatch
from treespec.trees.placement import Prefix
from treespec.trees.tensors import StaticTensors
from treespec.trees.tree import SpeculationTree


class StaticDrafter(ModelDrafter):
    """Drafts the same tree at every step. Raises SettingsError, ModelError for a tree that the rule or the vocabulary does not allow."""

    def __init__(self, tree: SpeculationTree, setup: DrafterSetup) -> None:
        super().__init__(setup, tree)
        drafting = setup.drafting
        self.tree, self.replacement = tree, drafting.kind.replacement
        self.sampling = drafting.sampling(setup.sampling) if drafting.samples(setup.sampling) else None
        self._tensors = {tree.size: StaticTensors.on(tree, self.draft.device)}

    def propose(self, last: Tensor, prefix: Prefix, room: int, generator: torch.Generator | None, timer: Timer) -> Proposal:
        """See `Drafter.propose`. If there is less room, the first `room` nodes are used."""
        tensors = self._cut_to(room)
        tree = tensors.tree
        tokens = torch.empty(tree.size, dtype=torch.int64, device=last.device)
        tokens[:1].copy_(last[1:])
        largest = torch.empty(tree.levels[-1].start, device=last.device)
        read: list[Tensor] = []
        seeds = None if self.sampling is None else dispatch.seeds(generator, tree.depth, last.device)
        for depth, level in enumerate(tree.levels[:-1]):
            place = tensors.expanded[depth].behind(prefix)
            above = tokens[level.start : level.stop] if depth else last
            logits = self.reader.read(above, place, tensors, depth)[-len(level) :, : self.vocabulary]
            if self.sampling is None:
                dispatch.write_children(logits, tensors, depth, tokens, largest)
            else:
                read.append(logits)
                dispatch.sample_children(
                    logits,
                    tensors,
                    depth,
                    tokens,
                    largest,
                    self.sampling.temperature,
                    replacement=self.replacement,
                    generator=generator,
                    seed=None if seeds is None else seeds[depth : depth + 1],
                )
            timer.mark("drafting")
        if self.sampling is None:
            return Proposal(tensors, tokens, largest)
        q = distribution(torch.cat(read), self.sampling) if read else torch.empty(0, self.vocabulary, device=last.device)
        return Proposal(tensors, tokens, largest, q, self.replacement)

    def _cut_to(self, room: int) -> StaticTensors:
        size = min(self.tree.size, room)
        if size not in self._tensors:
            self._tensors[size] = StaticTensors.on(self.tree.truncated(size), self.draft.device)
        return self._tensors[size]
