"""Rows and texts: taken up where they stopped, in little memory, bad ones said or skipped."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.reference.pairs import VOCABULARY, prompt_set, tiny_pair
from tests.reference.vision import write_scenes
from treeopt.training import texts
from treeopt.training.texts import Continuing, held_out_prompts, own_windows, split_rows, target_texts
from treespec.data.slices import DatasetSlice
from treespec.errors import DatasetError, NoPromptError, TrainingError
from treespec.models.tree_model import TreeModel


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_finished_rows_are_kept_whatever_batches_they_were_written_in(tmp_path: Path) -> None:
    prompts = torch.tensor([p.ids for p in prompt_set(10)], dtype=torch.int32)
    pair = tiny_pair()

    def target() -> tuple[TreeModel, frozenset[int]]:
        return pair.target, frozenset({3, 4})

    def of(batch: int) -> Continuing:
        return Continuing("t", 16, 1.0, VOCABULARY, seed=2, batch_size=batch)

    assert of(3).fingerprint(prompts) == of(7).fingerprint(prompts) != of(3).fingerprint(prompts[:9])
    expected = target_texts(target, prompts, of(10), tmp_path / "a.jsonl")
    seen: list[int] = []

    def stop(done: int, total: int) -> None:
        if done > 6 * 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        target_texts(target, prompts, of(3), tmp_path / "b.jsonl", on_tokens=stop)
    found = target_texts(target, prompts, of(4), tmp_path / "b.jsonl", on_tokens=lambda done, total: seen.append(done))
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.counts, expected.counts)
    assert seen[0] == 6 * 10 + 4, "one token of each of the four rows left"
    assert seen[-1] == 10 * 10


def test_texts_pass_through_memory_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """100,000 tokens: as lists of numbers they would take 0.8 MB and more, twice; their tensors are not counted here."""
    prompts = torch.randint(0, 50_000, (500, 8), dtype=torch.int32)

    def continued(model: object, eos: object, prompts: torch.Tensor, rows: list[int], how: Continuing, on_token: object) -> list[list[int]]:
        return [[*prompts[row].tolist(), *range(1000 + row, 1192 + row)] for row in rows]

    monkeypatch.setattr(texts, "_continued", continued)
    how = Continuing("t", 200, 1.0, 60_000, batch_size=10)
    tracemalloc.start()
    found = target_texts(lambda: (None, frozenset()), prompts, how, tmp_path / "a.jsonl")  # type: ignore[arg-type,return-value]
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 500_000
    assert found.tokens[7].tolist() == [*prompts[7].tolist(), *range(1007, 1199)]
    assert found.counted == 500 * 192


def test_windows_take_four_bytes_a_token(tmp_path: Path) -> None:
    found = own_windows([torch.arange(100, dtype=torch.int32)] * 9, 30, None)
    assert (found.tokens.shape, found.tokens.dtype, found.counts.shape) == ((30, 30), torch.int32, (30, 30))
    assert found.counts.untyped_storage().nbytes() == 30
    assert found.counted == 30 * 29


def test_of_rows_to_continue_only_what_is_read_is_kept(tmp_path: Path) -> None:
    rows = DatasetSlice(write(tmp_path / "r.jsonl", [{"input_ids": list(range(n))} for n in (30, 4, 20, 10)]))
    split = split_rows(rows, None, 50, num_rows=2, held_out=1, prompt_len=8, keep=8)
    assert [row.tolist() for row in split.training] == [list(range(4)), list(range(8))]
    assert split.held_out.tolist() == [list(range(8))]
    assert (split.start, split.end) == (0, 3)


def test_bad_rows_are_said_or_skipped_and_a_field_is_found(tmp_path: Path) -> None:
    lines = [{"ids": [1, 2, 3]}, {"other": "x"}, {"ids": [4, 5, 6]}]
    path = write(tmp_path / "r.jsonl", [{"input_ids": row["ids"]} if "ids" in row else row for row in lines])
    with pytest.raises(DatasetError, match=r"r.jsonl, line 2: .*\(`skip_bad_rows` goes on without such rows\)"):
        split_rows(DatasetSlice(path), None, 50, num_rows=9, held_out=0, prompt_len=2)
    split = split_rows(DatasetSlice(path, skip_bad_rows=True), None, 50, num_rows=9, held_out=1, prompt_len=2)
    assert (split.held_out.tolist(), [row.tolist() for row in split.training]) == ([[1, 2]], [[4, 5, 6]])
    assert [row.name for row in split.bad] == ["r.jsonl, line 2"]
    assert split_rows(DatasetSlice(path, end=10**30, skip_bad_rows=True), None, 50, num_rows=9, held_out=1, prompt_len=2).end == split.end
    assert split_rows(DatasetSlice(path), None, 50, num_rows=1, held_out=0, prompt_len=2).end == 1, "no row is read that is not needed"
    prompts, bad = held_out_prompts(DatasetSlice(path, skip_bad_rows=True), None, 50, count=9, prompt_len=3)
    assert (prompts.tolist(), len(bad)) == ([[1, 2, 3], [4, 5, 6]], 1)
    with pytest.raises(TrainingError, match="no row of r.jsonl has 4 tokens or more; lower `prompt_len`"):
        held_out_prompts(DatasetSlice(path, skip_bad_rows=True), None, 50, count=9, prompt_len=4)


def test_too_few_rows_besides_bad_ones_say_what_is_wrong_with_the_first(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", [{"text": 3}, {"input_ids": [1, 2]}, {"text": 4}])
    rows, bad = (
        DatasetSlice(path, skip_bad_rows=True),
        r'.*`eval_dataset` \(2 bad rows were skipped, the first because of this: r.jsonl, line 1: "text" is a number',
    )
    with pytest.raises(TrainingError, match=f"holds out 2 rows of r.jsonl .*, but 1 has 2 tokens or more{bad}"):
        split_rows(rows, None, 50, num_rows=9, held_out=2, prompt_len=2)
    with pytest.raises(TrainingError, match=f"holds out 1 row of r.jsonl .* none is left to train on{bad}"):
        split_rows(rows, None, 50, num_rows=9, held_out=1, prompt_len=2)
    with pytest.raises(TrainingError, match=f"no row of r.jsonl has 3 tokens or more{bad}"):
        held_out_prompts(rows, None, 50, count=9, prompt_len=3)


def test_held_out_rows_have_options_of_their_own(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", [{"other": "x"}, {"input_ids": [1, 2]}])
    (tmp_path / "r.csv").touch()
    for rows, message in (
        (DatasetSlice(path), "name the one that holds the text with `eval_field`"),
        (DatasetSlice("stdlib", "body"), "drop `eval_field` body"),
        (DatasetSlice("no-such"), "check `eval_dataset`"),
        (DatasetSlice(str(tmp_path / "r.csv")), "`eval_dataset` reads .jsonl"),
    ):
        with pytest.raises(DatasetError, match=message):
            held_out_prompts(rows, None, 50, count=9, prompt_len=2)
    _, (bad,) = held_out_prompts(DatasetSlice(path, skip_bad_rows=True), None, 50, count=9, prompt_len=2)
    assert bad.reason.endswith("with `eval_field`")


def test_slices_without_a_row_to_train_on_say_what_there_is(tmp_path: Path) -> None:
    path, empty = write(tmp_path / "r.jsonl", [{"input_ids": [1, 2, 3]}] * 3), write(tmp_path / "empty.jsonl", [])
    with pytest.raises(NoPromptError, match="r.jsonl has no row at `start` 5: it has 3 rows, counted from 0; pass `start` 2 or less"):
        split_rows(DatasetSlice(path, start=5), None, 50, num_rows=9, held_out=1, prompt_len=2)
    with pytest.raises(NoPromptError, match="data set empty.jsonl has no rows; name one that has some"):
        held_out_prompts(DatasetSlice(empty), None, 50, count=9, prompt_len=2)
    with pytest.raises(TrainingError, match="holds out 3 rows of r.jsonl .*; give more rows, lower `eval_prompts`, or .*`eval_dataset`"):
        split_rows(DatasetSlice(path), None, 50, num_rows=9, held_out=3, prompt_len=2)


def test_pictures_are_no_text_to_train_on(tmp_path: Path) -> None:
    rows = DatasetSlice(str(write_scenes(tmp_path / "pictures", range(2))))
    for read in (
        lambda: split_rows(rows, None, 50, num_rows=9, held_out=0, prompt_len=2),
        lambda: held_out_prompts(rows, None, 50, count=9, prompt_len=3),
    ):
        with pytest.raises(DatasetError, match="scene-0000.png is a picture, but train-draft reads text only; pass a data set of text"):
            read()
