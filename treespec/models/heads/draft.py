"""HeadDraft: a head that is bound to its target, as a draft that decodes."""

import torch
from torch import Tensor

from treespec.decoding.protocol import LevelHead, ParallelHead, StateModel
from treespec.errors import CapacityError, ModelError, counted


class HeadDraft:
    """A head bound to its target, as a draft. It is a `StateDraft` and a `CapturableModel`: its passes can be captured where those of its target can.

    Making it has the target keep the states that the head reads. Several heads may be bound to one target in turn: `allocate` has it keep those
    of this one again.

    Raises ModelError if the target does not give these states, or if the head proposes tokens that the target does not have.
    """

    eager_reason = ""

    def __init__(self, head: LevelHead | ParallelHead, target: StateModel) -> None:
        self.head, self.target, self.name = head, target, head.name
        self.generation = self.capacity = 0
        self.tokens = torch.zeros(0, dtype=torch.int64, device=target.device)
        ids = head.target_ids
        if ids is not None and int(ids.max()) >= target.vocabulary_size:
            raise ModelError(
                f"{head.name} (kind {head.kind}) proposes the token {int(ids.max())}, but its target has the tokens 0 to "
                f"{target.vocabulary_size - 1}; use a head made for it"
            )
        self.vocabulary_size = target.vocabulary_size if ids is not None else head.vocabulary_size
        target.keep_states(head.state_layers)

    generation: int
    """Number of times that the head's cache was replaced. A captured step is valid for one generation only."""
    capacity: int
    """Number of tokens of a text, drafted ones included, that there is room for."""
    tokens: Tensor
    """int64 [capacity]; the tokens of the text that is being decoded, by their positions."""
    vocabulary_size: int
    """Width of the logits that readers give: the target's tokens."""

    @property
    def device(self) -> torch.device:
        """Return the device where tokens and placements must be."""
        return self.target.device

    def allocate(self, capacity: int) -> None:
        """Make room for texts of at least `capacity` tokens, drafted ones included, unless there is, and forget the text.

        Raises CapacityError if memory is too small.
        """
        self.target.keep_states(self.head.state_layers)
        if capacity <= self.capacity:
            return
        self.capacity = 0
        try:
            self.head.allocate(capacity)
            self.tokens = torch.zeros(capacity, dtype=torch.int64, device=self.device)
        except torch.OutOfMemoryError as error:
            raise CapacityError(
                f"{self.name}: no memory on {self.device} for a cache of {counted(capacity, 'slot')}; use a shorter `max_length`"
            ) from error
        self.generation += 1
        self.capacity = capacity

    def spread(self, logits: Tensor) -> Tensor:
        """Return logits [q, vocabulary] of the target's tokens for logits [q, Vd] of the head's; those that it does not have get -inf.

        That is two launches, which write a row of the target's vocabulary and copy the head's row into it. They take little beside reading the
        head's `lm_head`, and rules, verifiers and kernels see one vocabulary only.
        """
        ids = self.head.target_ids
        if ids is None:
            return logits
        return logits.new_full((logits.shape[0], self.vocabulary_size), -torch.inf).index_copy_(1, ids, logits)
