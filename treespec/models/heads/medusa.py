"""Medusa heads: each proposes the token of one level from the target's last state; they have no keys and values, and run in one pass.

The layout is that of the authors (FasterDecoding/Medusa, `medusa/model/medusa_model.py`). H is the target's hidden size and V its vocabulary:

- `{head}.{layer}.linear.weight` [H, H] and `.bias` [H]: x becomes x + SiLU(Wx + b), layer after layer.
- `{head}.{layers}.weight` [V, H] makes the logits; the first files lack it, and the target's `lm_head` makes them.

The state x is the target's last one after its final norm. Head i, from 0 on, proposes the token i + 2 places behind it; the token right behind it is the
root of a tree, so head i has level i + 1. The number of heads is that of the files: `medusa_num_heads` is 2 in published files of five.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from treespec.decoding.protocol import FINAL_STATE
from treespec.errors import CapacityError, ModelError, counted
from treespec.models.heads.borrowed import Borrowed, Embedding
from treespec.models.heads.files import HeadFiles
from treespec.models.heads.levels import require_levels
from treespec.models.heads.settings import Settings
from treespec.models.heads.target import HeadTarget
from treespec.trees.placement import Prefix

KIND = "a set of Medusa heads"


@dataclass(frozen=True)
class MedusaPlan:
    """The build of Medusa heads, known before a weight is read."""

    heads: int
    """Number of heads."""
    layers: int
    """Number of layers in each head."""
    own_head: bool
    """Whether each has a matrix of its own for logits."""
    hidden: int
    """Width of the states, H."""
    rows: int
    """Number of draft tokens, which are the target's."""
    notes: tuple[str, ...]
    """See `Head.notes`."""

    @classmethod
    def of(cls, files: HeadFiles, target: HeadTarget) -> "MedusaPlan":
        """Return the build by config.json and the headers of the weights. Raises ModelError if they do not agree with each other or the target."""
        heads = files.count(r"(\d+)\.\d+\.", "head")
        layers = files.count(r"0\.(\d+)\.linear\.", "layer")
        own_head = any(re.fullmatch(r"\d+\.\d+\.weight", name) for name in files.shapes)
        files.require((f"0.{layers}.weight",) if own_head else ("0.0.linear.weight",), KIND)
        config = Settings.of(files)
        notes = _notes(files, config, heads)
        told = config.values.get("medusa_num_layers")
        if told is not None and told != layers:
            config.refuse("medusa_num_layers", f"that of the files, whose heads have {counted(layers, 'layer')}")
        first = "0.0.linear.weight" if layers else "0.0.weight"
        width = files.matrix(first)[1]
        if width != target.hidden_size:
            raise ModelError(
                f"{files.name} is {KIND} for a target of hidden size {width} ({first}), but target {target.name} has {target.hidden_size}; "
                "use a head made for it"
            )
        rows = files.rows(f"0.{layers}.weight") if own_head else target.vocabulary_size
        if rows != target.vocabulary_size:
            raise ModelError(
                f"{files.name} is {KIND} for a target of {rows} tokens (0.{layers}.weight), but target {target.name} has "
                f"{target.vocabulary_size}; use a head made for it"
            )
        plan = cls(heads, layers, own_head, width, rows, notes)
        files.require_shapes(plan._shapes(), KIND)
        return plan

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Return name to shape of all tensors that the files must hold."""
        shapes: dict[str, tuple[int, ...]] = {}
        for head in range(self.heads):
            for layer in range(self.layers):
                shapes |= {f"{head}.{layer}.linear.weight": (self.hidden, self.hidden), f"{head}.{layer}.linear.bias": (self.hidden,)}
            shapes |= {f"{head}.{self.layers}.weight": (self.rows, self.hidden)} if self.own_head else {}
        return shapes


class Block(nn.Module):
    """A residual layer of a head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return x [.., H] after the layer."""
        after: Tensor = x + F.silu(self.linear(x))
        return after


class MedusaHead(nn.Module):
    """A set of Medusa heads. It is a `ParallelHead` and a `ScoringHead`."""

    name: str
    kind: str = "medusa"
    state_layers: tuple[int, ...] = (FINAL_STATE,)
    target_ids: Tensor | None = None
    notes: tuple[str, ...]
    levels: int

    def __init__(self, name: str, plan: MedusaPlan, target: HeadTarget) -> None:
        super().__init__()
        self.name, self.plan, self.notes, self.levels = name, plan, plan.notes, plan.heads
        self.borrowed = Borrowed(target.embedding, target.lm_head, target.lm_head_bias)
        with torch.device("meta"):
            self.heads = nn.ModuleList(_head(plan) for _ in range(plan.heads))

    @classmethod
    def load(cls, files: HeadFiles, target: HeadTarget, embedding: Embedding | None = None) -> "MedusaHead":
        """Check heads against their target and load them, in the type and on the device of the target's embedding. Raises ModelError.

        They read no tokens, so that `embedding` must be left out.
        """
        if embedding is not None:
            raise ModelError(f"{files.name} is {KIND}, which read no tokens, but `embedding` is {embedding!r}; leave it out")
        plan = MedusaPlan.of(files, target)
        head = cls(files.name, plan, target)
        weights = files.read(target.embedding.dtype, target.embedding.device)
        head.heads.load_state_dict(weights, assign=True)
        return head.requires_grad_(False).eval()

    @property
    def vocabulary_size(self) -> int:
        """See `Head.vocabulary_size`."""
        return self.plan.rows

    def allocate(self, capacity: int) -> None:
        """See `ParallelHead.allocate`. There are no keys and values."""

    def begin(self, states: Tensor, length: int) -> None:
        """See `ParallelHead.begin`. There is nothing to read: the heads go by the last state alone."""

    def propose(self, states: Tensor, root: Tensor, prefix: Prefix) -> Tensor:
        """See `ParallelHead.propose`. The root is not read."""
        x = states.index_select(0, prefix.length - 1)[:, 0]
        return torch.cat([self._level(head, x) for head in self.heads])

    def score(self, tokens: Tensor, states: Tensor, levels: int) -> Iterator[Tensor]:
        """See `ScoringHead.score`. No level reads a token: each reads the state before its root. Raises CapacityError for more levels than heads."""
        require_levels(tokens, levels)
        if levels > self.levels:
            raise CapacityError(
                f"{self.name} has {counted(self.levels, 'head')}, one per level, but {levels} levels are asked for; ask for fewer"
            )
        for level, head in enumerate(islice(self.heads, levels), start=1):
            yield self._level(head, states[:, : tokens.shape[1] - level, 0])

    def _level(self, head: nn.Module, x: Tensor) -> Tensor:
        """Return logits [.., Vd] of one head, for x [.., H]."""
        found: Tensor = head(x)
        return found if self.plan.own_head else self.borrowed.logits(found)


def _head(plan: MedusaPlan) -> nn.Sequential:
    """Return a head without weights: its parts have the numbers that stand in the names of the files."""
    blocks = (Block(plan.hidden) for _ in range(plan.layers))
    return nn.Sequential(*blocks, *([nn.Linear(plan.hidden, plan.rows, bias=False)] if plan.own_head else []))


def _notes(files: HeadFiles, config: Settings, heads: int) -> tuple[str, ...]:
    """Return what people should know of the number of heads. Raises ModelError if the files hold fewer than config.json says."""
    told = config.count("medusa_num_heads", heads)
    if told > heads:
        config.refuse("medusa_num_heads", f"at most {heads}: the files hold no more heads")
    if told == heads:
        return ()
    return (f"{files.name}: medusa_num_heads in config.json is {told}, but the files hold {counted(heads, 'head')}, all of which are used",)
