"""Tiny targets with heads in published layouts that are right now and then, steps of such a pair, and what the slow implementations say of them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.reference.head_files import BLOCK, DFLASH, EAGLE, EAGLE3, HT, LAYERS, MEDUSA_CONFIG, V, medusa_shapes, tensors, write
from tests.reference.heads import medusa
from tests.reference.tiny import config_of, module_of
from treespec.decoding.drafting import Drafting
from treespec.decoding.engine import CacheBudget, EagerSteps
from treespec.decoding.plans import Plan
from treespec.decoding.proposal import Proposal
from treespec.decoding.protocol import FINAL_STATE
from treespec.decoding.readers import Drafted, DraftReader
from treespec.decoding.rules import Sampling
from treespec.decoding.step import SpeculativeStep, StepSpec
from treespec.models.heads.bound import BoundHead
from treespec.models.heads.draft import HeadDraft
from treespec.models.heads.loading import load_head
from treespec.models.heads.target import HeadTarget
from treespec.models.pairs import Pair
from treespec.models.tree_model import TreeModel
from treespec.trees.placement import Placement

KINDS = {
    **{f"eagle3 {layout}": EAGLE3[layout] for layout in ("official", "eagle-3.1", "speculators", "speculators-two-layers")},
    **{f"eagle {layout}": EAGLE[layout] for layout in ("official", "two-layers")},
}
"""Heads that propose level by level."""
BLOCKS = {f"dflash {layout}": DFLASH[layout] for layout in ("official", "to-the-last-layer")}
MEDUSA = {"medusa": (1, True), "medusa without matrices": (2, False)}
"""Medusa heads: the layers of each, and whether it makes logits by itself."""
PARALLEL = [*MEDUSA, *BLOCKS]
"""Heads that propose all levels at once."""
LEVELS = BLOCK - 1
"""Number of these levels."""
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": HT, "num_hidden_layers": LAYERS},
    "mistral": {"hidden_size": HT, "num_hidden_layers": LAYERS},
    "gpt2": {"n_embd": HT, "n_layer": LAYERS, "tie_word_embeddings": False},
}


Slow = Callable[[Tensor, list[int], tuple[int, ...]], Tensor]
"""(all states of a text, its tokens, a path of drafted ones) -> logits of a head's draft tokens after the path."""


@dataclass(frozen=True)
class HeadPair:
    """A target, a head for it, and the slow implementation of the head."""

    module: PreTrainedModel
    target: TreeModel
    draft: HeadDraft
    slow: Slow


def head_pair(
    kind: str, family: str, folder: Path, *, device: str = "cpu", kernels: bool = False, dtype: torch.dtype = torch.float32
) -> HeadPair:
    """A random pair. Few tokens are likely, the same for both, so that wide trees are accepted now and then."""
    module = module_of(config_of(family, vocab_size=V, **FAMILIES[family]), seed=1)
    module.generation_config.eos_token_id = None
    module.requires_grad_(False)
    likely = _likely()
    module.get_output_embeddings().weight[~likely] *= 0.05
    weights = _weights(kind, likely)
    of = HeadTarget.of(module, family)
    slow: Slow
    if kind in MEDUSA:
        write(folder, {**MEDUSA_CONFIG, "medusa_num_layers": MEDUSA[kind][0]}, weights)
        slow = _slow_medusa(kind, weights, of)
    else:
        layout: Any = (KINDS | BLOCKS)[kind]
        write(folder, layout.config, weights, layout.file)
        slow = _slow(layout.slow(weights, of), getattr(layout, "states", (FINAL_STATE,)))
    target = TreeModel(module.to(device, dtype), name=family, kernels=kernels)  # type: ignore[arg-type]
    head = load_head(str(folder), HeadTarget.of(module, family), embedding="own" if "embed_tokens.weight" in weights else None)
    return HeadPair(module, target, HeadDraft(head, target), slow)


def bound(made: HeadPair, eos: frozenset[int] = frozenset()) -> tuple[Pair, BoundHead]:
    """The pair as profiles and evaluations take it."""
    draft = BoundHead(made.draft.head, made.target)
    return Pair(made.target, None, eos, draft=draft), draft


@dataclass
class Recorder:
    """A reader that writes down the path and the logits of every node that another reader reads."""

    reader: DraftReader
    read_nodes: list[tuple[tuple[int, ...], Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.choices, self.begin, self.keep = self.reader.choices, self.reader.begin, self.reader.keep

    def read(self, tokens: Tensor, place: Placement, tree: Drafted, level: int) -> Tensor:
        logits = self.reader.read(tokens, place, tree, level)
        if level == 0:
            self.read_nodes, self._paths = [], [()]
        else:
            self._paths = [(*self._paths[above], token) for above, token in zip(tree.above(level).tolist(), tokens.tolist(), strict=True)]
        self.read_nodes += zip(self._paths, logits[-len(self._paths) :].clone(), strict=True)
        return logits


@dataclass(frozen=True)
class Seen:
    """A step: the text before it with its root, the nodes that the draft read, what was proposed, and how many tokens were accepted."""

    text: list[int]
    nodes: list[tuple[tuple[int, ...], Tensor]]
    proposal: Proposal
    accepted: int


def seen_steps(
    pair: HeadPair | Pair,
    plan: Plan,
    prompt: list[int],
    count: int,
    drafting: Drafting = Drafting(),
    sampling: Sampling = Sampling(),
    through: Callable[[DraftReader], DraftReader] = lambda reader: reader,
    seed: int = 3,
) -> list[Seen]:
    """The first `count` steps after a prompt. The draft's reader is called `through` another one."""
    target, device = pair.target, pair.target.device
    CacheBudget.of(len(prompt) + count * (plan.depth + 1) + plan.size, plan).allocate(target, pair.draft, captured=False)
    step = StepSpec(plan, sampling, drafting).build(target, pair.draft)
    assert isinstance(step, SpeculativeStep)
    drafter: Any = step.drafter
    drafter.reader, propose, proposals = Recorder(through(drafter.reader)), drafter.propose, []

    def proposing(*arguments: Any) -> Proposal:
        proposals.append(propose(*arguments))
        return proposals[-1]

    drafter.propose = proposing
    root = int(step.begin(torch.tensor(prompt, device=device), None).argmax())
    text, found = [*prompt, root], []
    steps = EagerSteps(step)
    steps.begin(torch.tensor([prompt[-1], root], device=device), len(prompt), torch.Generator(device).manual_seed(seed))
    for _ in range(count):
        steps.launch(1 << 30)
        tokens, ranks, _ = steps.read(len(text) - 1)
        found.append(Seen([*text], drafter.reader.read_nodes, proposals[-1], len(ranks)))
        text += tokens
    return found


def _likely() -> Tensor:
    """bool [V]; eight tokens that heads with a vocabulary of their own know, and two that they do not."""
    known = tensors({"t2d": (V,), "d2t": (1,)})["t2d"]
    likely = torch.zeros(V, dtype=torch.bool)
    likely[known.nonzero().flatten()[3:11]] = True
    likely[(~known).nonzero().flatten()[[4, 20]]] = True
    return likely


def _weights(kind: str, likely: Tensor) -> dict[str, Tensor]:
    if kind in MEDUSA:
        layers, matrix = MEDUSA[kind]
        weights = tensors(medusa_shapes(LEVELS, layers, matrix=matrix))
    else:
        layout: Any = (KINDS | BLOCKS)[kind]
        weights = tensors(layout.shapes, getattr(layout, "dtype", torch.float32), 0.8 if kind.startswith("eagle ") else 1.5)
    for name, matrix_of_logits in weights.items():
        if name == "lm_head.weight":
            ids = weights["d2t"] + torch.arange(len(weights["d2t"])) if "d2t" in weights else torch.arange(V)
            matrix_of_logits[~likely[ids]] *= 0.05
        elif len(matrix_of_logits) == V and kind == "medusa" and matrix_of_logits.dim() == 2:
            matrix_of_logits[~likely] *= 0.05
    return weights


def _slow(slow: Any, layers: tuple[int, ...]) -> Slow:
    def logits(states: Tensor, text: list[int], path: tuple[int, ...]) -> Tensor:
        found: Tensor = slow.along(states[: len(text) - 1, list(layers)], text[1:], list(path))
        return found

    return logits


def _slow_medusa(kind: str, weights: dict[str, Tensor], of: HeadTarget) -> Slow:
    wide, lm_head = {name: value.double() for name, value in weights.items()}, of.lm_head.detach().double()

    def logits(states: Tensor, text: list[int], path: tuple[int, ...]) -> Tensor:
        return medusa(wide, states[len(text) - 2, FINAL_STATE], len(path), MEDUSA[kind][0], lm_head)

    return logits
