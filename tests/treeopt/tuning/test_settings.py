"""Settings of a tuning run: the candidates that they name, and how rows are divided."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treeopt.tuning.settings import TuneSettings, names, shares
from treespec.decoding.drafting import Drafting
from treespec.decoding.rules import Sampling
from treespec.errors import SettingsError

GREEDY, WARM = Sampling(), Sampling(0.6)


def test_settings_that_draft_the_same_children_are_one_candidate() -> None:
    settings = TuneSettings((GREEDY, WARM), (Drafting(), Drafting("swor"), Drafting("swor", 0.3), Drafting("swor", verifier="traversal")))
    found = [one.name for one in settings.candidates(2)]
    greedy = ["topk-t0", "swor-d0.3-t0-sequential"]  # at temperature 0, swor of the target's own temperature drafts as topk does
    warm = ["topk-t0.6", "swor-t0.6-sequential", "swor-d0.3-t0.6-sequential", "swor-t0.6-traversal"]
    assert found == [f"{draft}/{name}" for draft in (1, 2) for name in (*greedy, *warm)]
    shared = {one.profile_name for one in settings.candidates(1)}
    assert len(shared) == len(settings.candidates(1)) - 1, "both verifiers take one acceptance profile"
    assert names(settings.candidates(2), ["a", "b"])[0] == "a: topk, temperature 0"


def test_a_verifier_whose_shares_no_profile_tells_is_refused() -> None:
    with pytest.raises(SettingsError, match="`verifier` matching accepts other shares of swor children"):
        TuneSettings((WARM,), (Drafting("swor", verifier="matching"),))
    TuneSettings((GREEDY,), (Drafting("swor", verifier="matching"),))  # nothing is random there


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), float("inf")])
def test_minutes_are_a_number_above_0(minutes: float) -> None:
    with pytest.raises(SettingsError, match="`minutes` is"):
        TuneSettings(minutes=minutes)


@given(st.integers(3, 500), st.integers(1, 300), st.integers(0, 40), st.integers(1, 40))
def test_every_kind_gets_rows_and_none_gets_more_than_there_are(rows: int, profile: int, choose: int, evaluate: int) -> None:
    found = shares(rows, profile, choose, evaluate)
    assert sum(found) <= rows
    assert sum(found) == min(rows, profile + choose + evaluate)
    assert [share > 0 for share in found] == [choose > 0, True, True]


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(
        SettingsError, match=r"there are 2 usable rows, but profiling, choosing and evaluating need rows of their own, 3 at least"
    ):
        shares(2, 64, 16, 16)
