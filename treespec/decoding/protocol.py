"""The protocols of a language model: `SlotModel` to decode, `ScoringModel` to score, `CapturableModel` to capture.

`LevelHead` and `ParallelHead` are those of drafts that read the target's hidden states, `ScoringHead` scores with such a draft, and a `StateModel`
is a target that has these states. A `WatchfulModel` is told what was committed. Decoding asks nothing else of a model. Tests use tabular models.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from treespec.trees.placement import Placement, Prefix


class SlotModel(Protocol):
    """A causal language model over one sequence, with keys and values in slots that the caller addresses."""

    @property
    def vocabulary_size(self) -> int:
        """Return the width of the logits."""

    @property
    def device(self) -> torch.device:
        """Return the device where tokens and placements must be."""

    def allocate(self, capacity: int) -> None:
        """Make a cache of at least `capacity` slots and forget its content."""

    def prefill(self, tokens: Tensor, pixels: Tensor | None = None) -> Tensor:
        """Read tokens [length] causally into slots 0 .. length - 1 and return logits [vocabulary] after the last one.

        `pixels` [pictures, 3, height, width] are the prompt's pictures.
        """

    def forward(self, tokens: Tensor, place: Placement, keep: Tensor | None = None) -> Tensor:
        """Store int64 [q] tokens in the slots of `place` and return logits [q, vocabulary], or only those of the tokens `keep`."""

    def move(self, prefix: Prefix, offsets: Tensor, first: int) -> None:
        """Copy keys and values of slots `length + offsets` int64 [m] to slots `length + first ..`; all are read before any is written."""


@runtime_checkable
class ScoringModel(Protocol):
    """A causal language model that reads whole texts at once, without slots."""

    def score(self, ids: Tensor, keep_from: int = 0, pixels: Tensor | None = None) -> Tensor:
        """Read texts int64 [batch, length] causally and return logits [batch, length - keep_from, vocabulary] of the last positions.

        `pixels` [pictures, 3, height, width] are the texts' pictures, equally many in each text. The content of the slots stays.
        """


@runtime_checkable
class CapturableModel(Protocol):
    """A model, or a head as a draft, whose passes can be captured in a CUDA graph. Rule: they are valid only until the cache is replaced."""

    name: str
    """The name in messages."""
    generation: int
    """Number of times that the cache was replaced. A captured step is valid for one generation only."""
    capacity: int
    """Number of slots that the cache has."""
    eager_reason: str
    """The reason why its passes cannot be captured and run eagerly; empty if they can be captured."""


@runtime_checkable
class WatchfulModel(Protocol):
    """A model that is told which tokens are committed, as one that is spread over several processes, which must all have the same."""

    def committed(self, tokens: Sequence[int], *, last: bool = False) -> None:
        """Take note of a prompt and its first token, or of the tokens of a step, which may be the `last` one. Raises ModelError to end the decoding."""

    @property
    def divided(self) -> bool:
        """Return whether other processes hold parts of it. Then nothing may rest on what this process alone knows, such as its free memory."""


FINAL_STATE = -1
"""The target's last hidden state, after its final norm, in `Head.state_layers`."""


class StateModel(SlotModel, Protocol):
    """A model that keeps hidden states of the tokens in its slots, so that heads can read them."""

    @property
    def states(self) -> Tensor:
        """Return the states in all slots, [capacity, n, Ht], for n states of width Ht; another tensor after the cache was replaced."""

    def keep_states(self, layers: Sequence[int]) -> None:
        """Keep these states of all tokens that are read or moved from now on, by the numbers of `Head.state_layers`; none if it is empty.

        If others were kept so far, what the slots hold is forgotten, and the cache counts as replaced.
        """


class Head(Protocol):
    """A draft that reads hidden states of its target. The next tokens after token i of a text are proposed from the state of token i - 1."""

    name: str
    """The name of the head in messages."""
    kind: str
    """The kind of the head, as in `treespec.models.recognised.HeadKind`."""
    state_layers: tuple[int, ...]
    """The target's states that it reads, in this order: number j means the residual stream that enters layer j (with as many as the target
    has layers: that leaves the last one), `FINAL_STATE` the last state after the final norm."""
    target_ids: Tensor | None
    """int64 [Vd]; the target's id of each draft token; None if the ids are the same."""
    notes: tuple[str, ...]
    """The sentences about its files that people should read."""

    @property
    def vocabulary_size(self) -> int:
        """Return the number of its draft tokens, Vd: the width of its logits."""


class HeadLevel(NamedTuple):
    """The tokens that a `LevelHead` has read: what it proposes after each of them."""

    logits: Tensor
    """[q, Vd]; those of the children of each token."""
    features: Tensor
    """[q, H]; what is read together with these children."""


@runtime_checkable
class LevelHead(Head, Protocol):
    """A head that proposes level by level, with keys and values of its own in slots that the caller addresses.

    Committed tokens are read with the features of the target's states before them, drafted ones with the features of their parents. Both go
    by their places in the text, as for a `SlotModel`; the text's first token is never read, as there is no state before it. What was read
    of drafted tokens is read again, with the target's states, when they are committed; so nothing has to be moved.
    """

    def allocate(self, capacity: int) -> None:
        """Make a cache for texts of at least `capacity` tokens, drafted ones included, and forget its content."""

    def features(self, states: Tensor) -> Tensor:
        """Return the features [q, H] of target states [q, state layers, Ht]."""

    def forward(self, tokens: Tensor, features: Tensor, place: Placement, keep: Tensor | None = None) -> HeadLevel:
        """Read int64 [q] tokens of the target's vocabulary, each with the feature [H] before it, and return what is proposed after them.

        With `keep`, int64 [k], only after these k of the q tokens.
        """


@runtime_checkable
class ParallelHead(Head, Protocol):
    """A head that proposes all levels at once, from the target's states of the text before the root, and from the root.

    What it keeps of these states is its own. It may rely on all steps being read: from one root to the next, a text grows by at most one
    token more than there are levels.
    """

    levels: int
    """Number of levels below the root."""

    def allocate(self, capacity: int) -> None:
        """Make room for texts of at least `capacity` tokens, drafted ones included, and forget the text."""

    def begin(self, states: Tensor, length: int) -> None:
        """Read a new text: the first `length` of the target's states [capacity, state layers, Ht] are those of its tokens."""

    def propose(self, states: Tensor, root: Tensor, prefix: Prefix) -> Tensor:
        """Return logits [levels, Vd] of the tokens on each level below a root int64 [1], which follows the prefix.

        The states [capacity, state layers, Ht] of the prefix are those of its tokens. No host synchronisation.
        """


@runtime_checkable
class ScoringHead(Head, Protocol):
    """A head that reads whole texts at once, without slots: for every root in them, what it proposes along the text."""

    def score(self, tokens: Tensor, states: Tensor, levels: int) -> Iterator[Tensor]:
        """Read texts int64 [batch, length] with the target's states [batch, length, state layers, Ht] and yield logits, level by level.

        Those of level d are [batch, length - d, Vd]. Row i belongs to the root that is token i + 1 of the text (there is no state before the first
        token): it proposes token i + 1 + d, with the tokens between them as they stand in the text. A decoding step computes the same when the target
        accepts them. The last row of each level proposes the token after the text. Raises CapacityError if a text has not so many levels.
        """


@runtime_checkable
class StateDraft(Protocol):
    """A head bound to its target, as a draft. Drafters read with it by a reader of `treespec.decoding.heads`."""

    name: str
    """The name of the draft in messages."""
    vocabulary_size: int
    """Width of the logits that readers give: the target's tokens."""
    tokens: Tensor
    """int64 [capacity]; the tokens of the text that is being decoded, by their positions."""

    @property
    def head(self) -> LevelHead | ParallelHead:
        """Return the head."""

    @property
    def target(self) -> StateModel:
        """Return the target, which keeps the states that the head reads."""

    @property
    def device(self) -> torch.device:
        """Return the device where tokens and placements must be."""

    def allocate(self, capacity: int) -> None:
        """Make room for texts of at least `capacity` tokens, drafted ones included, and forget the text."""

    def spread(self, logits: Tensor) -> Tensor:
        """Return logits [q, vocabulary] of the target's tokens for logits [q, Vd] of the head's; tokens that it does not have get -inf."""
