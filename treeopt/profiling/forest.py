"""Continue many prompts at once by the passes of a TreeModel: the texts stand side by side in one cache, as a forest."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from treespec.decoding.capture import capturing
from treespec.decoding.rules import Sampling
from treespec.decoding.sampling import choose_checked, require_finite
from treespec.kernels import dispatch
from treespec.kernels.device import on
from treespec.models.tree_model import TreeModel
from treespec.trees.placement import Placement, Prefix

_ROWS_AT_ONCE = 512
"""Most tokens of prompts that one pass reads."""
_WARM_UPS = 2


class Forest:
    """Texts of `gen_len` generated tokens in one cache of a model, each in slots of its own.

    To the model they are trees without a common prefix: a token sees the earlier ones of its own text alone, so texts of any lengths
    share a pass. The cache is not the model's own, and what the model holds stays. On CUDA a pass of one token per text is
    captured in a graph with the choice of the next tokens.

    Rule: no other passes of the same module may run meanwhile.
    """

    def __init__(self, model: TreeModel, slots: int, gen_len: int, sampling: Sampling, eos_token_ids: frozenset[int]) -> None:
        """Make room for texts of `slots` tokens together. Raises CapacityError."""
        self.model = TreeModel(model.loaded, name=model.name, vocabulary=model.vocabulary_size)
        self.model.allocate(slots)
        self.slots, self.gen_len, self.sampling = slots, gen_len, sampling
        self._eos = torch.tensor(sorted(eos_token_ids), dtype=torch.int64, device=model.device)
        self._kept: dict[int, _Texts] = {}

    @torch.inference_mode()
    def grow(
        self, prompts: Sequence[Sequence[int]], generators: Sequence[torch.Generator], on_token: Callable[[int], None] = lambda done: None
    ) -> tuple[Tensor, Tensor]:
        """Return the model's continuations, int64 [texts, gen_len], and bool [texts, gen_len]: tokens up to and including the first EOS.

        Text i draws from `generators[i]`, whatever texts are beside it. Raises ModelError when logits are not finite.
        """
        with on(self.model.device):
            texts = self._texts(len(prompts))
            texts.begin(prompts, generators, self)
            texts.settle(self._read(prompts, texts))
            for done in range(1, self.gen_len):
                texts.go_on()
                on_token(done + 1)
                if done % 16 == 15 and not bool(self._valid(texts.written[:, : done + 1])[:, -1].any()):
                    break
            require_finite(int(texts.finite))
            return texts.written.clone(), self._valid(texts.written)

    def _texts(self, count: int) -> "_Texts":
        """Return the state of so many texts, with its pass captured where that is possible."""
        if count not in self._kept:
            self._kept[count] = _Texts.of(count, self)
        return self._kept[count]

    def _valid(self, written: Tensor) -> Tensor:
        """Return which generated tokens [texts, any] come before an EOS or are the first one."""
        ended = torch.isin(written, self._eos).cumsum(1)
        return ended - torch.isin(written, self._eos).long() == 0

    def _read(self, prompts: Sequence[Sequence[int]], texts: "_Texts") -> Tensor:
        """Read the prompts and return the logits after each, [texts, vocabulary]."""
        device = self.model.device
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        first = torch.repeat_interleave(texts.offsets - lengths, lengths)  # the slot of the first token of each token's text
        last = lengths.cumsum(0) - 1
        depths = torch.arange(len(first), device=device) - torch.repeat_interleave(last + 1 - lengths, lengths)
        tokens = torch.tensor([token for prompt in prompts for token in prompt], device=device)
        found = []
        for start in range(0, len(tokens), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            offsets = first[part] + depths[part]
            slot = torch.arange(int(offsets[-1]) + 1, device=device)
            seen = (slot >= first[part, None]) & (slot <= offsets[:, None])
            here = last[(last >= start) & (last < start + _ROWS_AT_ONCE)] - start
            keep = here if len(here) else offsets.new_zeros(1)
            logits = self.model.forward(tokens[part], Placement(texts.prefix, depths[part], offsets, seen), keep)
            found.append(logits[: len(here)])
        return torch.cat(found)


@dataclass
class _Texts:
    """The device's state of a number of texts that are continued: all that a captured pass reads and writes."""

    forest: Forest
    tokens: Tensor
    """int64 [texts]: the newest token of each text, which the next pass reads."""
    depths: Tensor
    """int64 [texts]: its position."""
    offsets: Tensor
    """int64 [texts]: its slot."""
    visible: Tensor
    """bool [texts, slots]: the slots of its text so far, its own among them."""
    written: Tensor
    """int64 [texts, gen_len]: the generated tokens."""
    turn: Tensor
    """int64 [1]: the number of generated tokens of each text."""
    seeds: Tensor | None
    """int64 [texts, gen_len]: the seeds of all draws; None where no kernels draw, or nothing is drawn."""
    finite: Tensor
    """bool []: whether all logits so far were finite."""
    prefix: Prefix
    generators: list[torch.Generator] = field(default_factory=list)
    go_on: Callable[[], None] = lambda: None
    """Runs the next pass."""

    @classmethod
    def of(cls, count: int, forest: Forest) -> "_Texts":
        """Return the state of `count` texts, with the pass captured if it can be. This overwrites the first slots of the cache."""
        device = forest.model.device
        whole: dict[str, Any] = {"dtype": torch.int64, "device": device}
        captured = device.type == "cuda" and not forest.model.eager_reason
        texts = cls(
            forest,
            tokens=torch.zeros(count, **whole),
            depths=torch.zeros(count, **whole),
            offsets=torch.arange(count, **whole),
            visible=torch.eye(count, forest.slots, dtype=torch.bool, device=device),
            written=torch.zeros(count, forest.gen_len, **whole),
            turn=torch.zeros(1, **whole),
            seeds=torch.zeros(count, forest.gen_len, **whole) if captured and not forest.sampling.greedy else None,
            finite=torch.ones((), dtype=torch.bool, device=device),
            prefix=Prefix.of(0, device),
        )
        texts.go_on = texts._captured() if captured else texts._pass
        return texts

    def begin(self, prompts: Sequence[Sequence[int]], generators: Sequence[torch.Generator], forest: Forest) -> None:
        """Give every text its slots, with the next free one behind its prompt as its place."""
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.tokens.device)
        starts = (lengths + forest.gen_len).cumsum(0) - lengths - forest.gen_len
        self.depths.copy_(lengths)
        self.offsets.copy_(starts + lengths)
        slot = torch.arange(forest.slots, device=self.tokens.device)
        self.visible.copy_((slot >= starts[:, None]) & (slot < self.offsets[:, None]))
        self.turn.zero_()
        self.written.zero_()
        self.finite.fill_(True)
        self.generators = list(generators)
        if self.seeds is not None:
            for row, generator in zip(self.seeds, generators, strict=True):
                drawn = [dispatch.seeds(generator, 1, row.device) for _ in range(forest.gen_len)]
                row.copy_(torch.cat([seed for seed in drawn if seed is not None]))

    def settle(self, logits: Tensor) -> None:
        """Choose the next token of every text by logits [texts, vocabulary], and make room for it. No host synchronisation if captured."""
        sampling = self.forest.sampling
        if sampling.greedy:
            chosen, largest = choose_checked(logits, sampling, None)
        else:
            # every text draws from its own stream, whatever texts are beside it
            seeds = None if self.seeds is None else self.seeds.index_select(1, self.turn)
            drawn = [
                dispatch.choose(
                    logits[i : i + 1],
                    sampling.temperature,
                    sampling.top_p,
                    None if seeds is not None else self.generators[i],
                    None if seeds is None else seeds[i],
                )
                for i in range(logits.shape[0])
            ]
            chosen, largest = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        self.finite &= largest.isfinite().all()
        self.written.index_copy_(1, self.turn, chosen[:, None])
        self.visible.scatter_(1, self.offsets[:, None], True)
        self.tokens.copy_(chosen)
        self.turn += 1

    def _pass(self) -> None:
        """Read the newest tokens, and choose the next ones."""
        logits = self.forest.model.forward(self.tokens, Placement(self.prefix, self.depths, self.offsets, self.visible))
        self.depths += 1
        self.offsets += 1
        self.settle(logits)

    def _captured(self) -> Callable[[], None]:
        """Return the replay of a captured pass. The state is that of no texts afterwards."""
        device = self.tokens.device
        side: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):  # compiles kernels and makes workspaces
                self._pass()
                self.turn.zero_()
        torch.cuda.current_stream(device).wait_stream(side)
        torch.cuda.synchronize(device)
        graph = torch.cuda.CUDAGraph()
        with capturing(graph, side):
            self._pass()
        return graph.replay
