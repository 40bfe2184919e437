"""The acceptance profile of a trace, and traces of some texts."""

import numpy as np
import pytest

from tests.reference.ranked import ranked
from treeopt.profiles.traced import acceptance_of
from treespec.errors import ProfileError


def test_chances_are_the_shares_of_all_positions() -> None:
    trace = ranked([[0, 0, 1, 90], [2, 0]], temperature=0.5, seed=7, method="on-policy", pair_sha256="ab")
    profile = acceptance_of(trace, 2)
    assert profile.rank_probability == pytest.approx((3 / 6, 1 / 6))
    assert profile.none_accepted == pytest.approx(2 / 6)
    assert (profile.positions, profile.prompts, profile.prompt_positions) == (6, 2, (4, 2))
    assert profile.prompt_sums == ((2, 1), (1, 0))
    assert (profile.drafting, profile.temperature, profile.top_p, profile.pair_sha256) == ("topk", 0.5, 1.0, "ab")
    assert len(profile.standard_error) == 2
    assert len(acceptance_of(trace).rank_probability) == 32
    assert len(acceptance_of(ranked([[0, 1]], vocabulary_size=5)).rank_probability) == 5


def test_a_trace_of_some_texts_has_their_positions() -> None:
    trace = ranked([[0, 0, 1, 90], [2, 0], [5, 6, 7]])
    part = trace.of_texts([2, 0])
    assert part.texts == (trace.texts[2], trace.texts[0])
    np.testing.assert_array_equal(part.rank, [5, 6, 7, 0, 0, 1, 90])
    np.testing.assert_array_equal(part.log_probability, np.concatenate([trace.log_probability[6:], trace.log_probability[:4]]))
    with pytest.raises(ProfileError, match="no text"):
        trace.of_texts([])


def test_texts_without_positions_make_no_profile() -> None:
    with pytest.raises(ProfileError, match="no position"):
        acceptance_of(ranked([[], []]))
