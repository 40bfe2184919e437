"""Data sets of every kind become the same prompts; every bad row is named."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.reference.rows import write_records
from treespec import hub
from treespec.data import stdlib as stdlib_source
from treespec.data.prompts import MOST_BAD_ROWS, load_prompts
from treespec.data.rows import row_of
from treespec.errors import DatasetError, NoPromptError, SettingsError


class Letters:
    """One token per character: a -> 0, b -> 1, ...; everything else is 26."""

    def encode(self, text: str) -> list[int]:
        return [ord(c) - ord("a") if "a" <= c <= "z" else 26 for c in text]

    def __len__(self) -> int:
        return 27


ROWS = ["abcdef", "ab", "ghijkl", "mnopqrst"]


def load(dataset: object, **options: Any) -> Any:
    return load_prompts(str(dataset), Letters(), **{"num_prompts": 10, "prompt_len": 4, **options})


def jsonl(folder: Path, *rows: object, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


def write_all_kinds(folder: Path) -> list[Path]:
    datasets = pytest.importorskip("datasets")
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    records = [{"text": text} for text in ROWS]
    array = folder / "rows.json"
    array.write_text(json.dumps(records), encoding="utf-8")
    parquet.write_table(pyarrow.table({"number": [1, 2, 3, 4], "text": ROWS}), folder / "rows.parquet")
    datasets.Dataset.from_list(records).save_to_disk(folder / "single")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(records[:1]), "test": datasets.Dataset.from_list(records)}).save_to_disk(
        folder / "splits"
    )
    return [
        jsonl(folder, *records),
        jsonl(folder, *({"prompt": text} for text in ROWS), name="prompts.jsonl"),
        jsonl(folder, *({"input_ids": Letters().encode(text)} for text in ROWS), name="ids.jsonl"),
        jsonl(folder, *records, name="lines.json"),
        array,
        folder / "rows.parquet",
        folder / "single",
        folder / "splits",
    ]


def test_every_kind_of_data_set_gives_the_same_prompts(tmp_path: Path) -> None:
    kinds = write_all_kinds(tmp_path)
    found = [load(path) for path in kinds]
    assert len({prompts.fingerprint for prompts in found}) == 1
    for prompts in found:
        assert [p.ids for p in prompts] == [(0, 1, 2, 3), (6, 7, 8, 9), (12, 13, 14, 15)]
        assert [p.row for p in prompts] == [0, 2, 3]
        assert (prompts.start, prompts.end, prompts.skipped) == (0, 4, 1)
    assert found[-1].dataset == "splits/test"
    assert found[0].describe()["dataset"] == "rows.jsonl"


def test_rows_are_bounded_by_start_end_and_num_prompts(tmp_path: Path) -> None:
    path = jsonl(tmp_path, *({"text": text} for text in ROWS))
    assert [p.row for p in load(path, start=1)] == [2, 3]
    assert [p.row for p in load(path, end=3)] == [0, 2]
    assert [p.row for p in load(path, end=10**30)] == [0, 2, 3]
    two = load(path, num_prompts=2)
    assert [p.row for p in two] == [0, 2]
    assert (two.end, two.skipped) == (3, 1)
    following = load(path, start=two.end)
    assert [p.row for p in following] == [3]


def test_reading_stops_with_the_last_prompt_that_is_needed(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"text": "abcdef"}, "this line is never parsed")
    assert len(load(path, num_prompts=1)) == 1
    with pytest.raises(DatasetError, match=r"rows\.jsonl, line 2: no valid JSON"):
        load(path, num_prompts=2)


def test_the_continuation_is_the_rows_own_text(tmp_path: Path) -> None:
    path = jsonl(tmp_path, *({"text": text} for text in ROWS))
    prompts = load(path, continuation_len=3)
    assert [p.continuation for p in prompts] == [(4, 5), (10, 11), (16, 17, 18)]
    assert prompts.fingerprint != load(path).fingerprint
    assert all(p.continuation == () for p in load(path))


def test_turns_are_joined_by_line_ends(tmp_path: Path) -> None:
    [prompt] = load(jsonl(tmp_path, {"turns": ["ab", "cd"]}), prompt_len=5)
    assert prompt.ids == (0, 1, 26, 2, 3)


def test_blank_lines_are_no_rows_but_count_as_lines(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"text": "abcd"}, "", {"text": "efgh"}, "", {"oops": 1})
    assert [p.row for p in load(path, end=2)] == [0, 1]
    with pytest.raises(DatasetError, match="line 5"):
        load(path)


def test_a_text_file_is_cut_at_line_ends_into_runs(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    lines = [f"line {i} of a long book\n" for i in range(1500)]
    path.write_text("".join(lines), encoding="utf-8")
    prompts = load(path, prompt_len=5000)
    assert len(prompts) == len("".join(lines)) // stdlib_source.PIECE_CHARACTERS
    assert prompts.skipped == 0
    assert prompts.prompts[1].name == "book.txt#1"


def test_stdlib_train_has_none_of_the_modules_of_stdlib() -> None:
    train = {prompt.name.partition("#")[0] for prompt in load("stdlib-train", num_prompts=30, prompt_len=64)}
    assert train <= {module.name for module in stdlib_source.modules("train")}
    assert len(train) > 20
    assert not train & {module.name for module in stdlib_source.modules("held-out")}


def test_stdlib_rows_are_held_out_modules() -> None:
    prompts = load("stdlib", num_prompts=5, prompt_len=64)
    held_out = {module.name for module in stdlib_source.modules("held-out")}
    assert len(prompts) == 5
    assert {p.name.split("#")[0] for p in prompts} <= held_out
    assert prompts.fingerprint == load("stdlib", num_prompts=5, prompt_len=64).fingerprint
    assert prompts.label == f"stdlib[{prompts.start}:{prompts.end}]"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"text": ', r"line 1: no valid JSON"),
        ([1, 2], "the row is a list|must be an object"),
        ("3", "the row is a number, but it must be an object"),
        ({"content": "abc"}, r"none of the keys .* \(its keys: 'content'\)"),
        ({"text": 5}, '"text" is a number, but it must be a string'),
        ({"text": None}, '"text" is null'),
        ({"turns": []}, '"turns" is an empty list'),
        ({"image": ""}, '"image" is an empty string, but it must be the path of a picture'),
        ({"image": None}, '"image" is null, but it must be the path of a picture'),
        ({"turns": ["a", 1]}, '"turns" is a list with something else than strings'),
        ({"input_ids": "abc"}, '"input_ids" must be a list of whole numbers; it is a string'),
        ({"input_ids": [1, 2.5]}, "number 1 of them is 2.5"),
        ({"input_ids": [1, True]}, "number 1 of them is True"),
        ({"input_ids": [1, 2, 3, 27]}, '"input_ids" holds 27, but the model has ids 0 to 26 only'),
        ({"input_ids": [1, -1, 3, 4]}, '"input_ids" holds -1'),
    ],
)
def test_a_bad_row_is_named_with_its_file_and_line(tmp_path: Path, row: object, message: str) -> None:
    path = jsonl(tmp_path, row)
    with pytest.raises(DatasetError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith("rows.jsonl, line 1")


def test_bad_rows_of_other_kinds_are_named_too(tmp_path: Path) -> None:
    array = tmp_path / "rows.json"
    array.write_text('[{"text": "abcd"}, {"text": 1}]', encoding="utf-8")
    with pytest.raises(DatasetError, match=r"rows\.json, element 2: \"text\" is a number"):
        load(array)
    array.write_text('[{"text": "abcd"},\n {"text": ]', encoding="utf-8")
    with pytest.raises(DatasetError, match=r"rows\.json, line 2: no valid JSON"):
        load(array)
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pytest.importorskip("pyarrow").table({"number": [1]}), tmp_path / "numbers.parquet")
    with pytest.raises(DatasetError, match="none of the columns"):
        load(tmp_path / "numbers.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DatasetError, match=r"broken\.parquet is no whole parquet file"):
        load(tmp_path / "broken.parquet")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 20)
    with pytest.raises(DatasetError, match=r"not UTF-8 text \(byte 3 is 0xe9\)"):
        load(tmp_path / "latin.txt")


def test_no_prompt_long_enough_says_what_the_longest_is(tmp_path: Path) -> None:
    path = jsonl(tmp_path, *({"text": text} for text in ROWS))
    with pytest.raises(DatasetError, match="`prompt_len` is 9, but the longest row of 4 has 8 tokens; pass `prompt_len` 8 or less"):
        load(path, prompt_len=9)
    for text, remedy in (
        ("ab", "pass `prompt_len` 2 or less, `whole_prompts`, or longer rows"),
        ("a", "pass `prompt_len` 1, `whole_prompts`, or longer rows"),
    ):
        with pytest.raises(DatasetError, match=f"the longest row of 1 has {len(text)} tokens?; {remedy}$"):
            load(jsonl(tmp_path, {"text": text}), prompt_len=9)
    with pytest.raises(DatasetError, match=r"no row of .* has a token \(1 row was read\); name other rows"):
        load(jsonl(tmp_path, {"input_ids": []}), prompt_len=1)


def test_no_rows_at_all(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="has no rows"):
        load(jsonl(tmp_path))
    with pytest.raises(NoPromptError, match=r"has no row at `start` 4: it has 4 rows, counted from 0; pass `start` 3 or less"):
        load(jsonl(tmp_path, *({"text": text} for text in ROWS)), start=4, end=9)
    with pytest.raises(NoPromptError, match=r"has no row at `start` 7: it has 1 row, .* pass `start` 0"):
        load(jsonl(tmp_path, {"text": "abcd"}), start=7)
    with pytest.raises(SettingsError, match="`end` 2 leaves no rows from `start` 2"):
        load(jsonl(tmp_path, {"text": "abcd"}), start=2, end=2)


def test_text_needs_a_tokenizer_but_ids_do_not(tmp_path: Path) -> None:
    ids = jsonl(tmp_path, {"input_ids": [1, 2, 3]}, name="ids.jsonl")
    [prompt] = load_prompts(str(ids), None, num_prompts=1, prompt_len=2, vocabulary_size=4)
    assert prompt.ids == (1, 2)
    with pytest.raises(DatasetError, match="ids 0 to 2 only"):
        load_prompts(str(ids), None, num_prompts=1, prompt_len=2, vocabulary_size=3)
    with pytest.raises(DatasetError, match="comes without a tokenizer"):
        load_prompts(str(jsonl(tmp_path, {"text": "abc"})), None, num_prompts=1, prompt_len=2)


@pytest.mark.parametrize("bad", [{"text": "abcdz"}, {"input_ids": [1, 2, 3, 25]}])
def test_tokens_without_an_embedding_row_make_a_bad_row(bad: object, tmp_path: Path) -> None:
    """The tokenizer knows 27 tokens, added ones among them, but the model has rows for 25 only."""
    path = jsonl(tmp_path, {"text": "abcd"}, bad)
    with pytest.raises(
        DatasetError, match=r"line 2: the row has token 25, but the model has 25 embedding rows, for ids 0 to 24 only; give"
    ):
        load(path, vocabulary_size=25)
    found = load(path, vocabulary_size=25, skip_bad_rows=True)
    assert (len(found), [row.name for row in found.bad]) == (1, ["rows.jsonl, line 2"])
    assert len(load(path, vocabulary_size=26)) == 2


@pytest.mark.parametrize("name", ["imagenet", "./missing-folder/", "C4", ""])
def test_an_unknown_name_is_answered_with_the_known_ones(name: str) -> None:
    with pytest.raises(DatasetError, match="stdlib, cnn, openwebtext, c4, wikitext, mt-bench"):
        load(name)


def test_paths_that_are_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"there is no file .*missing\.jsonl; check the path"):
        load(tmp_path / "missing.jsonl")
    other = tmp_path / "table.csv"
    other.write_text("text\nabc\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"table\.csv ends in '\.csv'; `dataset` reads"):
        load(other)
    with pytest.raises(DatasetError, match="table has no ending; `dataset` reads"):
        load(other.rename(tmp_path / "table"))
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(DatasetError, match=r"no state\.json"):
        load(folder)
    inside = jsonl(folder, {"text": "abcd"})
    with pytest.raises(DatasetError, match=f"name a file in it, such as {inside}"):
        load(folder)
    (folder / "cat.jpg").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"cat\.jpg is a picture, which needs a vision-language target"):
        load(folder)
    (folder / "state.json").write_text("{}", encoding="utf-8")
    pytest.importorskip("datasets")
    with pytest.raises(DatasetError, match="is not a folder that `datasets` can load"):
        load(folder)


def test_an_unreachable_hub_is_told_within_five_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://192.0.2.1:9")  # reserved for documentation: nobody answers
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    started = time.monotonic()
    with pytest.raises(DatasetError, match=r"cannot be reached.*name a local"):
        load("wikitext")
    assert time.monotonic() - started < 5


def test_hub_rows_are_streamed_from_the_column_that_holds_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked: list[tuple[str, dict[str, Any]]] = []

    def load_dataset(path: str, **options: Any) -> Any:
        asked.append((path, options))
        if path == "Skylion007/openwebtext" and options["revision"] is None:
            raise RuntimeError("Dataset scripts are no longer supported")
        column = {"abisee/cnn_dailymail": "article", "HuggingFaceH4/mt_bench_prompts": "prompt"}.get(path, "text")
        return [{column: ["abcd", "ef"] if column == "prompt" else text, "other": 1} for text in ROWS]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "is_reachable", lambda: True)
    for name in ("cnn", "c4", "wikitext", "openwebtext"):
        assert [p.ids[:2] for p in load(name)] == [(0, 1), (6, 7), (12, 13)]
    assert load("mt-bench", num_prompts=1).prompts[0].ids == (0, 1, 2, 3)
    assert all(options["streaming"] for _, options in asked)
    assert [options["revision"] for path, options in asked if "openwebtext" in path] == [None, "refs/convert/parquet"]


def test_a_hub_that_breaks_off_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def stream() -> Any:
        yield {"text": "abcdef"}
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(datasets, "load_dataset", lambda path, **options: stream())
    monkeypatch.setattr(hub, "is_reachable", lambda: True)
    with pytest.raises(DatasetError, match=r"broke off at row 1: ConnectionError: reset by peer; name a local"):
        load("wikitext")


def test_input_ids_come_before_text() -> None:
    assert row_of({"text": "abc", "input_ids": [5]}, name="row").ids == (5,)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet", "folder"])
def test_the_text_may_lie_under_a_key_that_is_named(tmp_path: Path, suffix: str) -> None:
    records = [{"number": 1, "body": text} for text in ROWS]
    path = write_records(tmp_path / f"rows.{suffix}", records)
    assert [p.row for p in load(path, field="body")] == [0, 2, 3]
    with pytest.raises(DatasetError, match=r"none of the (key|column)s \"image\", \"input_ids\", .*body.*`field`"):
        load(path)
    with pytest.raises(DatasetError, match=r"no (key|column) \"boddy\" .*number.*body"):
        load(path, field="boddy")


def test_running_text_has_no_fields(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("a line\n", encoding="utf-8")
    for dataset in ("stdlib", tmp_path / "book.txt"):
        with pytest.raises(DatasetError, match="running text without fields; drop `field` body"):
            load(dataset, field="body")


BAD = ["no JSON", {"text": 5}, [1], {"input_ids": [1, 2, 3, 99]}, {"title": "abcd"}, {"messages": [{"role": "user", "content": None}]}]


def test_bad_rows_are_skipped_counted_and_named_where_asked(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"text": "abcd"}, *BAD, {"text": "efghi"}, {"text": "a"})
    with path.open("ab") as file:
        file.write(b'{"text": "caf\xe9"}\n' + json.dumps({"text": "klmn"}).encode() + b"\n")
    found = load(path, skip_bad_rows=True)
    assert [p.ids for p in found] == [(0, 1, 2, 3), (4, 5, 6, 7), (10, 11, 12, 13)]
    assert [p.row for p in found] == [0, 7, 10]
    assert (found.start, found.end, found.skipped) == (0, 11, 1)
    lines = [*range(2, 8), 10]
    assert found.describe()["bad_rows"] == [f"rows.jsonl, line {line}" for line in lines]
    assert all(row.reason.startswith(row.name) for row in found.bad)
    assert "not UTF-8 text (byte 13 is 0xe9)" in found.bad[-1].reason
    with pytest.raises(DatasetError, match=r"^rows\.jsonl, line 2: no valid JSON.*`skip_bad_rows`"):
        load(path)
    assert [p.row for p in load(path, start=7, end=8)] == [7], "bad rows before `start` harm nobody"


def test_a_slice_of_bad_rows_only_says_what_is_wrong_with_the_first(tmp_path: Path) -> None:
    with pytest.raises(NoPromptError, match=r"rows\.jsonl: 6 rows were read, and none is good, .*line 1: no valid JSON"):
        load(jsonl(tmp_path, *BAD), skip_bad_rows=True)


def test_bad_rows_of_a_parquet_file_and_of_a_saved_folder_can_be_skipped(tmp_path: Path) -> None:
    records = [{"text": "abcd"}, {"text": None}, {"text": "efgh"}]
    write_records(tmp_path / "rows.parquet", records)
    write_records(tmp_path / "rows", records)
    for path in (tmp_path / "rows.parquet", tmp_path / "rows"):
        assert [p.row for p in load(path, skip_bad_rows=True)] == [0, 2]
        with pytest.raises(DatasetError, match=r'row 1: "text" is null'):
            load(path)


def test_rows_of_a_table_that_are_not_utf8_are_bad_rows(tmp_path: Path) -> None:
    pyarrow, datasets = pytest.importorskip("pyarrow"), pytest.importorskip("datasets")
    texts = pyarrow.array([b"abcd", b"caf\xe9", b"efgh"])
    table = pyarrow.table({"text": pyarrow.Array.from_buffers(pyarrow.string(), 3, texts.buffers())})
    pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "rows.parquet")
    datasets.Dataset(table).save_to_disk(tmp_path / "rows")
    for path in (tmp_path / "rows.parquet", tmp_path / "rows"):
        with pytest.raises(DatasetError, match=rf"^{path.name}, row 1 is not UTF-8 text \(byte 3 is 0xe9\); write it as UTF-8 \(`skip_bad"):
            load(path)
        found = load(path, skip_bad_rows=True)
        assert ([p.row for p in found], [row.name for row in found.bad]) == ([0, 2], [f"{path.name}, row 1"])


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{\n  "text": "abcd"\n}\n', "Expecting property name enclosed in double quotes at column 2"),
        ('{"text": "abcd"\n', "Expecting ',' delimiter at column 16"),
        ('{"text": "abcd\n', "Unterminated string starting at column 10"),
    ],
)
def test_an_object_that_does_not_end_with_its_line_is_told(tmp_path: Path, name: str, text: str, reason: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(DatasetError, match=f"{name}, line 1: no valid JSON: {reason}; each line must hold one whole object: .*one array"):
        load(tmp_path / name)


def test_messages_without_a_template_are_their_contents_joined(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd"}, {"role": "user", "content": "e"}]
    for row in ({"messages": messages}, {"prompt": messages}, {"messages": messages, "text": "never"}):
        [prompt] = load(jsonl(tmp_path, row), prompt_len=7)
        assert prompt.ids == (0, 1, 26, 2, 3, 26, 4)


def test_half_a_surrogate_pair_and_numbers_without_end_are_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "abc \\ud83d def"}\n{"text": "abcd", "n": ' + "9" * 5000 + '}\n{"text": "efgh"}\n', encoding="utf-8")
    with pytest.raises(DatasetError, match=r'line 1: "text" holds half a surrogate pair \(\\ud83d at character 4\)'):
        load(path)
    with pytest.raises(DatasetError, match="line 2: no valid JSON: Exceeds the limit"):
        load(path, start=1)
    found = load(path, skip_bad_rows=True)
    assert ([p.row for p in found], len(found.bad)) == ([2], 2)


def test_keys_that_are_null_are_passed_over(tmp_path: Path) -> None:
    assert [
        p.row for p in load(jsonl(tmp_path, {"image": None, "messages": None, "text": "abcd"}, {"input_ids": None, "text": "efgh"}))
    ] == [0, 1]
    pictured = jsonl(tmp_path, {"image": "a.png", "text": "abcd"})
    with pytest.raises(DatasetError, match="is a picture"):
        load(pictured)
    assert len(load(pictured, field="text")) == 1
    assert len(load(pictured, field="image")) == 1


def test_a_json_file_of_lines_is_read_as_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('\n{"text": "abcd"}\nnot json\n', encoding="utf-8")
    assert [p.row for p in load(path, num_prompts=1)] == [0]


def test_bad_rows_without_end_end_the_run(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("{}\n" * (MOST_BAD_ROWS + 1))
    with pytest.raises(
        DatasetError, match=r"^rows.jsonl has 10,000 bad rows, too many to be skipped; rows.jsonl, line 1: the row has none of"
    ):
        load(path, skip_bad_rows=True)


def test_a_tokenizer_that_makes_no_tokens_is_told(tmp_path: Path) -> None:
    class Mute(Letters):
        def encode(self, text: str) -> list[int]:
            return []

    with pytest.raises(
        NoPromptError, match=r"no row of rows.jsonl has a token \(2 rows were read\).*use tokenizer files that fit the model"
    ):
        load_prompts(str(jsonl(tmp_path, {"text": "ab"}, {"text": "cd"})), Mute(), num_prompts=2, prompt_len=4)
