"""Files of traces: they come back as they were, and what no run can have written is refused in one line."""

import base64
import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.reference.ranked import of_head
from tests.reference.traces import trace_of
from treeopt.profiles.acceptance import AcceptanceProfile
from treeopt.profiles.agreement import require_trace_of
from treeopt.profiles.trace import UNKNOWN, Trace, read_trace
from treeopt.profiles.traced_text import TracedText
from treespec.errors import ProfileError
from treespec.files.kinds import kind_of
from treespec.files.reading import read_json

MODELS = {"models": {"target": "org/large@abc", "draft": "small"}}


def small(**changes: Any) -> Trace:
    """Two texts: one of five tokens that an EOS ends, and one of the whole budget of which the draft reads a part."""
    texts = [[0, 0, 2, 2, 1], [2, 0, 0, 0, 2, 2, 0]]
    known = {"pair_sha256": "p", "provenance": MODELS, "prompt_set": {"dataset": "rows", "start": 0, "end": 2}}
    return trace_of(lambda context: [1.0, 0.5, 0.25], 3, [(1,), (2, 2)], texts, 7, eos=frozenset({1}), draft_reads=4, **known, **changes)


def written(path: Path, trace: Trace | None = None) -> dict[str, Any]:
    (trace or small()).write(path)
    found = json.loads(path.read_text())
    assert isinstance(found, dict)
    return found


def test_a_trace_comes_back_as_it_was(tmp_path: Path) -> None:
    trace = small()
    trace.write(tmp_path / "t.json")
    found = read_trace(tmp_path / "t.json")
    assert found.to_json() == trace.to_json()
    assert found.texts == trace.texts == (TracedText(0, "0" * 16, 1, 5, True, None, 4), TracedText(1, "0" * 15 + "1", 2, 7, False, None, 4))
    np.testing.assert_array_equal(found.rank, [0, 2, 2, 1, 0, 0, 0, 2])
    np.testing.assert_array_equal(found.ranks.T, [[0, 2, 2, 1, UNKNOWN, UNKNOWN], [0, 0, 0, 2, UNKNOWN, UNKNOWN]])
    assert kind_of((tmp_path / "t.json").read_bytes()) == "is a trace"


def test_the_summary_counts_ranks_and_ends(tmp_path: Path) -> None:
    data = small().summary()
    assert (data["prompts"], data["tokens"], data["positions"], data["ended_by_eos"]) == (2, 12, 8, 1)
    assert data["rank_counts"][:4] == [4, 1, 3, 0]
    assert data["later_ranks"] == 0
    assert data["first_choice_acceptance"] == 0.5
    assert data["first_choice_probability"] == pytest.approx(np.e / (np.e + np.e**0.5 + np.e**0.25))
    assert "1 of 2 texts ended with an EOS, the others after 7 tokens" in str(small())
    assert repr(small()) == "Trace(temperature=0, gen_len=7, prompts=2, positions=8)"


def test_a_large_trace_is_read_quickly_and_is_small(tmp_path: Path) -> None:
    """Of 200 texts of 128 tokens: some milliseconds, and 16 bytes a position; the limit leaves room for a busy machine."""
    count = 200 * 127
    top = -np.random.default_rng(0).random(count, dtype=np.float32)
    texts = tuple(TracedText(i, f"{i:016x}", 128, 128, False, 1900, 1900) for i in range(200))
    Trace(texts, np.zeros(count, dtype=np.uint32), top, top, 128, 32_000, 0.0, 1.0).write(tmp_path / "t.json")
    assert (tmp_path / "t.json").stat().st_size < 17 * count
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        assert read_trace(tmp_path / "t.json").ranks.shape == (127, 200)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.1


def column(values: list[float], kind: str) -> str:
    return base64.b64encode(np.array(values).astype(kind).tobytes()).decode()


TEXTS = {
    "row": [0],
    "prompt_sha256": ["a"],
    "prompt_tokens": [1],
    "tokens": [3],
    "eos": [False],
    "target_reads": [None],
    "draft_reads": [None],
}
COLUMNS = {"rank": column([0, 1], "<u4"), "log_probability": column([-1, -2], "<f4"), "top_log_probability": column([-1, -1], "<f4")}


def test_the_smallest_file_that_is_read(tmp_path: Path) -> None:
    data = hand_made({})
    (tmp_path / "t.json").write_text(json.dumps(data))
    found = read_trace(tmp_path / "t.json")
    assert (found.rank.tolist(), found.pair_sha256, found.provenance) == ([0, 1], "", {})


def hand_made(changes: dict[str, Any]) -> dict[str, Any]:
    texts, columns = TEXTS | changes.pop("texts", {}), COLUMNS | changes.pop("columns", {})
    parts = [columns[name] for name in ("rank", "log_probability", "top_log_probability")]
    digest = hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()
    known = {
        "schema": "treeopt.trace",
        "version": 1,
        "drafting": "topk",
        "temperature": 0.0,
        "top_p": 1.0,
        "gen_len": 3,
        "vocabulary_size": 2,
    }
    return known | {"texts": texts, "columns": columns, "sha256": digest} | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"schema": "treeopt.acceptance"},
            "is an acceptance profile, but a trace is needed; `treeopt profile acceptance` with `trace` writes one",
        ),
        ({"version": 2}, "'levels'"),
        ({"version": 3}, "version 3"),
        ({"texts": {name: [] for name in TEXTS}, "columns": dict.fromkeys(COLUMNS, "")}, "the trace has no text"),
        ({"texts": {"row": [0, 1]}}, "its lists have 1 and 2 entries"),
        ({"texts": {"eos": [1]}}, "1 is neither true nor false"),
        ({"texts": {"tokens": [4]}}, "has 8 bytes, not the 12 of 3 numbers"),
        ({"texts": {"tokens": [3], "draft_reads": [1]}}, "has 8 bytes, not the 4 of 1 number"),
        ({"texts": {"tokens": [-1]}}, "-1 is not in 0 to"),
        ({"texts": {"tokens": [2**60], "draft_reads": [2]}}, "text 0 has 1152921504606846976 tokens and no EOS, but texts have 1 to 3"),
        ({"texts": {"tokens": [10**9], "draft_reads": [2]}, "gen_len": 10**9}, "more than the 67,108,864 places"),
        ({"gen_len": 4}, "text 0 has 3 tokens and no EOS, but texts have 1 to 4 tokens, fewer only with an EOS"),
        ({"gen_len": 2}, "text 0 has 3 tokens"),
        ({"texts": {"target_reads": [1]}}, "the target reads 1 behind the prompt"),
        (
            {"columns": {"rank": column([0, 3], "<u4")}},
            "position 1 has rank 3 and log-probability -2 beside -1 of the likeliest of 2 tokens",
        ),
        ({"columns": {"log_probability": column([-1, float("nan")], "<f4")}}, "position 1 has rank 1 and log-probability nan"),
        ({"columns": {"log_probability": column([-2, -2], "<f4")}}, "position 0 has rank 0 and log-probability -2 beside -1"),
        ({"columns": {"top_log_probability": column([1, -1], "<f4")}}, "position 0 .* beside 1 of the likeliest"),
        ({"columns": {"rank": "AAAA!AAA"}}, "'AAAA!AAA' is no base64"),
        ({"columns": {"rank": "\u00e9"}}, "is no base64"),
        ({"columns": {"rank": 3}}, "3 is no text"),
        ({"columns": []}, "has a 'columns' that cannot be"),
        ({"sha256": "0"}, "has other columns than were written: its 'sha256' does not fit them; copy or make it again"),
        ({"vocabulary_size": 0}, "vocabulary_size is 0"),
        ({"vocabulary_size": 2**40}, "vocabulary_size is 1099511627776"),
        ({"drafting": "beam"}, "drafting is 'beam', but it must be one of topk, swor, swr"),
        ({"temperature": -1}, "temperature is -1.0 and top_p 1.0"),
        ({"top_p": 0}, "top_p 0.0"),
        ({"provenance": {"models": 5}}, "models: 5 is no object"),
        ({"prompt_set": {"start": "x"}}, "start: 'x' is no whole number"),
    ],
)
def test_a_trace_that_cannot_be_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    changes = dict(changes)
    data = hand_made(changes) if not isinstance(changes.get("columns"), list) else hand_made({}) | changes
    path = tmp_path / "t.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ProfileError, match=message) as caught:
        read_trace(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["texts", "columns", "sha256", "gen_len", "vocabulary_size", "temperature", "top_p", "drafting"])
def test_every_key_is_needed(tmp_path: Path, name: str) -> None:
    (tmp_path / "t.json").write_text(json.dumps({key: value for key, value in hand_made({}).items() if key != name}))
    with pytest.raises(ProfileError, match=f"has no '{name}'"):
        read_trace(tmp_path / "t.json")


def profile(**changes: Any) -> AcceptanceProfile:
    return replace(AcceptanceProfile("topk", 0.0, 1.0, (0.7, 0.1), 0.2, (), 30, 2, provenance=MODELS, pair_sha256="p"), **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pair_sha256": ""},
        {"provenance": None},
        {"top_p": 0.5},  # greedy all the same
        {"temperature": None, "top_p": None, "drafting": "unknown", "provenance": None, "pair_sha256": ""},
        {"provenance": {"models": {"target": "elsewhere/large", "draft": "small"}}},
    ],
)
def test_a_profile_of_the_same_pair_and_sampling_goes_with_a_trace(changes: dict[str, Any]) -> None:
    require_trace_of(profile(**changes), small())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"provenance": {"models": {"target": "larger"}}},
            "is of the target larger, but the trace is of the target org/large; pass a profile of the same",
        ),
        ({"provenance": {"models": {"draft": "tiny"}}}, "is of the draft tiny, but the trace is of the draft small"),
        ({"pair_sha256": "q"}, "models with the same names and other weights"),
        ({"temperature": 0.6}, "is of `temperature` 0.6, but the trace is of `temperature` 0"),
        ({"drafting": "swr"}, "is of swr, whose children are random, but the trace is of topk; pass a profile of topk"),
    ],
)
def test_a_profile_of_another_pair_or_sampling_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        require_trace_of(profile(**changes), small())
    warm = small(temperature=0.6, top_p=0.9)
    with pytest.raises(ProfileError, match="is of `top_p` 1, but the trace is of `top_p` 0.9"):
        require_trace_of(profile(temperature=0.6), warm)


def of_a_head() -> Trace:
    """Texts of 3 and 2 drafted tokens, and three levels, of which the second text has two."""
    return of_head([[[0, 1, 2], [3, 0]], [[1, 1], [0]], [[2], []]], pair_sha256="p")


def test_a_trace_of_a_head_comes_back_with_all_its_levels(tmp_path: Path) -> None:
    data = written(tmp_path / "t.json", of_a_head())
    assert (data["version"], data["levels"]) == (2, 3)
    found = read_trace(tmp_path / "t.json")
    assert found.to_json() == of_a_head().to_json()
    none = UNKNOWN
    wanted = [[[0, 1, 2], [3, 0, none]], [[none, 1, 1], [none, 0, none]], [[none, none, 2], [none] * 3], [[none] * 3] * 2]
    np.testing.assert_array_equal(found.ranks_by_depth.transpose(0, 2, 1), wanted)
    np.testing.assert_array_equal(found.ranks, found.ranks_by_depth[0])
    np.testing.assert_array_equal(found.rank_counts(1), [[[1, 2], [1, 1]], [[0, 2], [1, 0]], [[0, 1], [0, 0]]])
    assert found.summary()["levels"] == 3
    assert "a head drafted the text from every root, 3 levels deep" in str(found)
    assert "levels" not in written(tmp_path / "plain.json")
    with pytest.raises(ProfileError, match=r"treeopt.trace version 2, but this treeopt reads version 1; make the file again"):
        read_json(tmp_path / "t.json", schema="treeopt.trace", version=1, error=ProfileError)  # as readers before heads did


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": 0}, "it is 0, but a head has 1 to 256 levels"),
        ({"levels": 10**9}, "it is 1000000000, but a head has 1 to 256 levels"),
        ({"levels": 2}, "has 16 bytes, not the 12 of 3 numbers"),
        ({"levels": None}, "levels"),
        ({"version": 1}, "other columns than were written"),
        ({"version": 3}, "version 3, but this treeopt reads versions 1 and 2"),
        ({"deeper_rank": column([1, 1, 0, 101], "<u4")}, "deeper_rank has the rank 101, but 100 tokens can be drafted"),
        ({"deeper_rank": column([1, 1, 0], "<u4")}, "has 12 bytes, not the 16 of 4 numbers"),
    ],
)
def test_what_no_head_can_have_said_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    data = written(tmp_path / "t.json", of_a_head())
    if "deeper_rank" in changes:
        data["columns"] |= changes
        data["sha256"] = hashlib.sha256("\n".join(data["columns"].values()).encode()).hexdigest()
    else:
        data |= changes
    (tmp_path / "t.json").write_text(json.dumps(data))
    with pytest.raises(ProfileError, match=message):
        read_trace(tmp_path / "t.json")
