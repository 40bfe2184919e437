"""The settings of an evaluation, as plain data. No torch."""

from dataclasses import dataclass
from typing import Any

from treespec.checks import require_kind, require_whole
from treespec.decoding.drafting import Drafting
from treespec.decoding.rules import Sampling


@dataclass(frozen=True)
class EvaluationSettings:
    """The settings of an evaluation. `max_length` limits the slots of prompt, generated tokens and tree (None: as many as needed).

    The texts of the first `sample_texts` prompts are kept, token by token.
    With `processors`, tree and baseline pass the logits through the processors that the target's generation config asks for.
    """

    gen_len: int = 128
    max_length: int | None = None
    sampling: Sampling = Sampling()
    drafting: Drafting = Drafting()
    seed: int = 0
    save_tokens: bool = False
    breakdown: bool = False
    processors: bool = True
    sample_texts: int = 3

    def __post_init__(self) -> None:
        require_whole(1, gen_len=self.gen_len, **({} if self.max_length is None else {"max_length": self.max_length}))
        require_whole(0, seed=self.seed, sample_texts=self.sample_texts)
        require_kind(Sampling, sampling=self.sampling)
        require_kind(Drafting, drafting=self.drafting)

    def to_json(self) -> dict[str, Any]:
        """Return plain data. `draft_temperature` is the temperature at which children were sampled, or None if they were not sampled."""
        drafting, sampling = self.drafting, self.sampling
        return {
            "gen_len": self.gen_len,
            "max_length": self.max_length,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "drafting": drafting.rule,
            "seed": self.seed,
            "save_tokens": self.save_tokens,
            "breakdown": self.breakdown,
            "sample_texts": self.sample_texts,
            "processors": self.processors,
            "draft_temperature": drafting.sampling(sampling).temperature if drafting.kind.sampled else None,
            "verifier": drafting.verifier,
        }
