"""A budget of minutes, spent where uncertainty is largest: on more prompts, or on more samples of the latencies."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from treeopt.growmap_making import Generated
from treeopt.profiles.samples import BURST
from treeopt.tuning.settings import PILOT_PROMPTS, PILOT_REPETITIONS


@dataclass(frozen=True)
class Pilot:
    """The findings of a candidate on few prompts, and the seconds that its two profiles took."""

    generated: Generated
    prompts: int
    acceptance_seconds: float
    latency_seconds: float

    @property
    def tokens_error(self) -> float:
        """Return the relative error of its tokens per step, from prompts; 0 if it is not known."""
        found = self.generated.result.certainty.tokens_per_step
        return 0.0 if found is None else (found.high - found.low) / found.value / 2

    @property
    def times_error(self) -> float:
        """Return the relative error of its seconds per step, from samples; 0 if it is not known."""
        found = self.generated.result.certainty.seconds_per_step
        return 0.0 if found is None else (found.high - found.low) / found.value / 2


@dataclass(frozen=True)
class Allotment:
    """The prompts to profile those candidates on that are still in the race, and the samples of each latency."""

    racing: tuple[int, ...]
    prompts: int
    repetitions: int


def allot(pilots: Sequence[Pilot], drafts: Sequence[int], seconds: float, most_prompts: int) -> Allotment:
    """Return how to spend so many seconds after the pilots of candidates, of which `drafts` are the numbers.

    Candidates that are certainly slower than the leader get nothing more. Of the others, the squared error of the leader's speed is
    E_t² p / P + E_s² r / R with P prompts in place of p and R samples in place of r. At so many seconds in all it is least where P and R
    are in proportion to the root of (squared error per unit / seconds per unit), as in Neyman's allocation.
    """
    order = sorted(range(len(pilots)), key=lambda place: pilots[place].generated.seconds_per_token)
    leader = pilots[order[0]]
    racing = tuple(sorted([order[0], *(place for place in order[1:] if _may_win(pilots[place], leader))]))
    per_prompt = sum(pilots[place].acceptance_seconds / pilots[place].prompts for place in racing)
    timed = {drafts[place]: pilots[place].latency_seconds for place in racing}
    per_sample = sum(timed.values()) / PILOT_REPETITIONS
    tokens, times = leader.tokens_error**2 * leader.prompts, leader.times_error**2 * PILOT_REPETITIONS
    if seconds <= 0 or per_prompt <= 0 or per_sample <= 0:
        return Allotment(racing, leader.prompts, PILOT_REPETITIONS)
    for_prompts, for_samples = math.sqrt(tokens * per_prompt), math.sqrt(times * per_sample)
    share = for_samples / (for_prompts + for_samples) if for_prompts + for_samples else 0.0
    repetitions = int(seconds * share / per_sample) // BURST * BURST
    if repetitions < 2 * PILOT_REPETITIONS:  # as good as the pilot's, which are kept
        repetitions, share = PILOT_REPETITIONS, 0.0
    prompts = int(seconds * (1 - share) / per_prompt)
    if prompts < 2 * PILOT_PROMPTS:
        return Allotment(racing, leader.prompts, repetitions)
    return Allotment(racing, min(prompts, most_prompts), repetitions)


def _may_win(one: Pilot, leader: Pilot) -> bool:
    """Return whether it cannot be told that a candidate is slower than the leader."""
    ahead = leader.generated.result.certainty.ahead_of(one.generated.result.certainty)
    return ahead is None or not ahead.told
