"""Target matching: the target chooses a token after every node, and a child that carries it is accepted.

Drafted tokens never influence the choice, so the output is the target's own at any temperature, for any distinct children.
SpecInfer (arXiv 2305.09781, section 4.3) states the greedy case.
"""

import torch
from torch import Tensor

from treespec.decoding.proposal import Proposal
from treespec.decoding.rules import Sampling
from treespec.decoding.sampling import choose_checked
from treespec.kernels import dispatch
from treespec.kernels.outcome import Outcome


class Matching:
    """Accepts the path that the target's own choices follow. Rule: siblings must be distinct."""

    def verify(self, proposal: Proposal, logits: Tensor, sampling: Sampling, length: Tensor, generator: torch.Generator | None) -> Outcome:
        """See `Verifier.verify`."""
        choices, largest = choose_checked(logits, sampling, generator)
        return dispatch.finish_step(proposal.tokens, choices, proposal.tree, largest, proposal.largest, length)
