"""Prompts to choose on, to profile and to evaluate, from one set: no row is in two of them."""

from treeopt.tuning.settings import TuneSettings, shares
from treespec.data.prompts import PromptSet

Parts = tuple[PromptSet | None, PromptSet, PromptSet]
"""The prompts to compare candidates on (None for a single one), to profile, and to evaluate. No row is in two of them."""


def longest_of(parts: Parts) -> int:
    """Return the number of tokens of the longest prompt."""
    return max(len(prompt.ids) for some in parts if some is not None for prompt in some)


def divided(found: PromptSet, profile: int | None, settings: TuneSettings, drafts: int) -> Parts:
    """Return the prompts to choose on (None for a single candidate), to profile and to evaluate, in row order.

    `profile` rows are profiled (None: all others), or fewer of all kinds where there are fewer rows; a row that makes several prompts stays
    whole. The evaluated rows come last, so that they are those which a later evaluation of the growmap takes. Raises SettingsError.
    """
    starts = [place for place, prompt in enumerate(found) if place == 0 or prompt.row != found.prompts[place - 1].row]
    several = len(settings.candidates(drafts)) > 1
    asked = settings.choose_prompts if several else 0
    rest = max(1, len(starts) - asked - settings.evaluate_prompts) if profile is None else profile
    choose, profiled, evaluate = shares(len(starts), rest, asked, settings.evaluate_prompts)
    if len(starts) > choose + profiled + evaluate:
        found = found.split(starts[choose + profiled + evaluate])[0]
    compared = None
    if choose:
        compared, found = found.split(starts[choose])
    first = starts[choose] if choose else 0
    tuned, held_out = found.split(starts[choose + profiled] - first)
    return compared, tuned, held_out
