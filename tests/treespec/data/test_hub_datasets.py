"""Public data sets, read by `datasets` itself from folders laid out as on the hub; only the path is another."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from treespec import hub
from treespec.data.hub_datasets import HUB_DATASETS, require_hub
from treespec.data.prompts import load_prompts
from treespec.data.sources import open_rows
from treespec.errors import DatasetError

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


class Letters:
    """One token per character."""

    def encode(self, text: str) -> list[int]:
        return [ord(c) % 64 for c in text]

    def __len__(self) -> int:
        return 64


def write_parquet(path: Path, **columns: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path)


def write_json_gz(path: Path, *records: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("".join(json.dumps(record) + "\n" for record in records))


def card(folder: Path, *configs: str) -> None:
    """A README.md whose header names the files of each split of each configuration, as data sets on the hub have it."""
    lines = ["---", "configs:"]
    for config in configs:
        lines += [f"- config_name: {config}", "  data_files:"]
        lines += [line for split in ("train", "test") for line in (f"  - split: {split}", f"    path: {config}/{split}-*")]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")


def cnn(folder: Path) -> None:
    for config in ("1.0.0", "3.0.0"):
        for split in ("train", "test"):
            articles = [f"{config} {split} {i}" for i in range(3)]
            write_parquet(folder / config / f"{split}-00000-of-00001.parquet", article=articles, highlights=["no"] * 3, id=["a", "b", "c"])
    card(folder, "1.0.0", "3.0.0")


def c4(folder: Path) -> None:
    for shard in range(2):
        for split, of in (("train", "01024"), ("validation", "00008")):
            records = [{"text": f"{split} {shard} {i}", "timestamp": "2019-04-25T12:57:54Z", "url": "no"} for i in range(2)]
            write_json_gz(folder / "en" / f"c4-{split}.{shard:05d}-of-{of}.json.gz", *records)
            write_json_gz(folder / "de" / f"c4-{split}.tfrecord-{shard:05d}-of-{of}.json.gz", {"text": "other language"})


def wikitext(folder: Path) -> None:
    for config in ("wikitext-103-raw-v1", "wikitext-2-raw-v1"):
        for split in ("train", "test"):
            write_parquet(folder / config / f"{split}-00000-of-00001.parquet", text=["", f" = {config} = \n", f" {split} of {config} \n"])
    card(folder, "wikitext-103-raw-v1", "wikitext-2-raw-v1")


def script(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{folder.name}.py").write_text("raise SystemExit('code from the hub was run')", encoding="utf-8")


def openwebtext(folder: Path) -> None:
    for shard in range(2):
        write_parquet(folder / "plain_text" / "partial-train" / f"{shard:04d}.parquet", text=[f"page {shard} {i}" for i in range(2)])


def mt_bench(folder: Path) -> None:
    turns = [["Write a post.", "Shorten it."], ["Draft a mail.", "Judge it."]]
    write_parquet(
        folder / "data" / "train-00000-of-00001-0123456789abcdef.parquet",
        category=["writing"] * 2,
        prompt=turns,
        prompt_id=[1, 2],
        reference=pyarrow.array([[], []], pyarrow.list_(pyarrow.string())),
    )


PLACEHOLDER = "FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE USING SPECDEC_BENCH"


def spec_bench(folder: Path) -> None:
    """One file of lines; only some of them have references."""
    rows = [
        {"question_id": 81, "category": "writing", "turns": ["Compose a post.", "Rewrite it."]},
        {"question_id": 265, "category": "summarization", "turns": ["Summarize: news"], "reference": ["short"]},
        {"question_id": 345, "category": "rag", "turns": ["Who wrote it?"], "reference": ["nobody"]},
    ]
    (folder / "question.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def speed_bench(folder: Path) -> None:
    for config in ("qualitative", "throughput_1k"):
        write_parquet(
            folder / config / "test-00000-of-00001.parquet",
            question_id=["a", "b", "c"],
            category=["coding", "math", "coding"],
            sub_category=[None, None, None],
            turns=[[f"{config} code", "more"], [PLACEHOLDER], [f"{config} again"]],
            source=["s", "s", "s"],
            src_id=["1", "2", "3"],
            difficulty=[None, None, None],
            multiturn=[True, False, False],
        )
    lines = ["---", "configs:"]
    for config in ("qualitative", "throughput_1k"):
        lines += [f"- config_name: {config}", "  data_files:", "  - split: test", f"    path: {config}/test-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")


LAYOUTS: dict[tuple[str, str | None], Callable[[Path], None]] = {
    ("abisee/cnn_dailymail", None): cnn,
    ("allenai/c4", None): c4,
    ("Salesforce/wikitext", None): wikitext,
    ("Skylion007/openwebtext", None): script,
    ("Skylion007/openwebtext", "refs/convert/parquet"): openwebtext,
    ("HuggingFaceH4/mt_bench_prompts", None): mt_bench,
    ("json", None): spec_bench,
    ("nvidia/SPEED-Bench", None): speed_bench,
}


@pytest.fixture
def local_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's repositories as folders: `datasets` gets the folder in place of the id, and every other option as it is.

    A file from elsewhere is read from a folder too, by the reader that is named.
    """
    load, root = datasets.load_dataset, tmp_path / "hub"

    def load_local(path: str, *, revision: str | None = None, **options: Any) -> Any:
        folder = root / f"{path.replace('/', '--')}@{(revision or 'main').replace('/', '-')}"
        if not folder.exists():
            folder.mkdir(parents=True)
            LAYOUTS[path, revision](folder)
        if path == "json":
            assert options["data_files"].startswith("https://")
            return load(path, **options | {"data_files": str(folder / options["data_files"].rpartition("/")[2])})
        return load(str(folder), **options)

    monkeypatch.setattr(datasets, "load_dataset", load_local)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(hub, "is_reachable", lambda: True)
    return root


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("cnn", [f"3.0.0 test {i}" for i in range(3)]),
        ("c4", [f"validation {shard} {i}" for shard in range(2) for i in range(2)]),
        ("wikitext", ["", " = wikitext-2-raw-v1 = \n", " test of wikitext-2-raw-v1 \n"]),
        ("openwebtext", [f"page {shard} {i}" for shard in range(2) for i in range(2)]),
        ("mt-bench", ["Write a post.\nShorten it.", "Draft a mail.\nJudge it."]),
        ("spec-bench", ["Compose a post.\nRewrite it.", "Summarize: news", "Who wrote it?"]),
    ],
)
def test_rows_come_from_the_right_files_split_and_column(local_hub: Path, name: str, texts: list[str]) -> None:
    title, rows = open_rows(name)
    assert title == name
    assert [row.text for row in rows] == texts


def test_every_public_data_set_is_laid_out_here() -> None:
    assert {entry.path for entry in HUB_DATASETS.values()} == {path for path, _ in LAYOUTS}


@pytest.mark.parametrize(
    ("name", "categories"),
    [
        ("cnn", ["", "", ""]),
        ("mt-bench", ["writing", "writing"]),
        ("spec-bench", ["writing", "summarization", "rag"]),
        ("speed-bench", ["coding", "coding"]),
    ],
)
def test_prompts_have_the_categories_of_their_rows(local_hub: Path, name: str, categories: list[str]) -> None:
    prompts = load_prompts(name, Letters(), num_prompts=3, prompt_len=4, skip_bad_rows=True)
    assert [prompt.category for prompt in prompts] == categories


def test_texts_that_speed_bench_leaves_out_are_bad_rows_with_the_way_to_get_them(local_hub: Path) -> None:
    with pytest.raises(DatasetError, match=r"^speed-bench, row 1: \"turns\" has a placeholder .*prepare_data\.py .* name the file"):
        load_prompts("speed-bench", Letters(), num_prompts=3, prompt_len=4)
    prompts = load_prompts("nvidia/SPEED-Bench:throughput_1k:test", Letters(), num_prompts=3, prompt_len=4, skip_bad_rows=True)
    assert ([prompt.row for prompt in prompts], [row.name for row in prompts.bad]) == (
        [0, 2],
        ["nvidia/SPEED-Bench:throughput_1k:test, row 1"],
    )
    assert next(iter(open_rows("speed-bench")[1])).turns == ("more",)


def test_the_same_rows_come_from_files_with_their_categories(local_hub: Path) -> None:
    list(open_rows("speed-bench")[1])  # writes the layouts
    list(open_rows("spec-bench")[1])
    table = next(local_hub.glob("nvidia*/qualitative/*.parquet"))
    lines = next(local_hub.glob("json*/question.jsonl"))
    for path, categories in ((table, ["coding", "coding"]), (lines, ["writing", "summarization", "rag"])):
        prompts = load_prompts(str(path), Letters(), num_prompts=3, prompt_len=4, skip_bad_rows=True)
        assert [prompt.category for prompt in prompts] == categories


def test_without_a_network_the_file_of_spec_bench_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "is_reachable", lambda: False)
    with pytest.raises(
        DatasetError, match=r"lives in the repository hemingkx/Spec-Bench, but .*download https://.*question\.jsonl and pass"
    ):
        require_hub("spec-bench")


def test_blank_rows_are_too_short(local_hub: Path) -> None:
    prompts = load_prompts("wikitext", Letters(), num_prompts=5, prompt_len=4)
    assert ([p.row for p in prompts], prompts.skipped) == ([1, 2], 1)


def test_the_turns_of_mt_bench_are_a_conversation_that_begins_with_the_first(local_hub: Path) -> None:
    _, rows = open_rows("mt-bench")
    assert next(iter(rows)).messages == ({"role": "user", "content": "Write a post."},)


def test_a_record_without_the_expected_field_is_named_with_the_fields_that_it_has(local_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = {**LAYOUTS, ("abisee/cnn_dailymail", None): lambda folder: (wikitext(folder), card(folder, "wikitext-2-raw-v1"))[0]}
    monkeypatch.setattr(f"{__name__}.LAYOUTS", changed)
    monkeypatch.setitem(HUB_DATASETS["cnn"].options, "name", "wikitext-2-raw-v1")
    with pytest.raises(DatasetError, match=r"^cnn, row 0: the row has no key \"article\" \(its keys: 'text'\); .* `field`"):
        load_prompts("cnn", Letters(), num_prompts=1, prompt_len=1)
    assert load_prompts("cnn", Letters(), num_prompts=1, prompt_len=4, field="text").prompts[0].row == 1


def test_a_repository_that_is_a_script_in_both_revisions_is_refused(local_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LAYOUTS, ("Skylion007/openwebtext", "refs/convert/parquet"), script)
    with pytest.raises(
        DatasetError,
        match=r"cannot load openwebtext \(Skylion007/openwebtext\) from the hub: RuntimeError: Dataset scripts.*name a local",
    ):
        load_prompts("openwebtext", Letters(), num_prompts=1, prompt_len=1)


@pytest.mark.parametrize("shown", [True, False])
def test_progress_bars_are_as_they_were_whenever_a_row_is_read(shown: bool, local_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    within: list[bool] = []
    load = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: (within.append(datasets.are_progress_bars_disabled()), load(*a, **k))[1])
    before = datasets.are_progress_bars_disabled()
    choose = {True: datasets.enable_progress_bars, False: datasets.disable_progress_bars}
    try:
        choose[shown]()
        for _ in open_rows("wikitext")[1]:
            assert datasets.are_progress_bars_disabled() is not shown
        assert datasets.are_progress_bars_disabled() is not shown
        assert within == [True]
    finally:
        choose[not before]()


@pytest.fixture
def offline_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without a network, with two data sets in its caches: `some/ready` as Arrow files, `some/raw` as it is on the hub."""
    source = tmp_path / "source"
    source.mkdir()
    for split, count in (("train", 4), ("test", 2)):
        (source / f"{split}.jsonl").write_text("".join(json.dumps({"question": f"{split} {i}"}) + "\n" for i in range(count)))
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    datasets.load_dataset(str(source))
    (cache / "source").rename(cache / "some___ready")
    for file in cache.glob("some___ready/*/*/*/source-*.arrow"):
        file.rename(file.with_name(file.name.replace("source", "ready")))
    raw = tmp_path / "hub" / "datasets--some--raw"
    (raw / "refs").mkdir(parents=True)
    (raw / "refs" / "main").write_text("0" * 40)
    (raw / "snapshots").mkdir()
    source.rename(raw / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "is_reachable", lambda: False)
    return tmp_path


@pytest.mark.parametrize("name", ["some/ready", "some/ready:default", "some/ready::test", "some/raw", "some/raw::test"])
def test_a_data_set_in_a_cache_needs_no_hub(offline_home: Path, name: str) -> None:
    title, rows = open_rows(name)
    assert (title, [row.text for row in rows]) == (name, ["test 0", "test 1"])
    require_hub(name)


def test_a_named_split_and_a_field_are_taken(offline_home: Path) -> None:
    assert next(row.text for row in open_rows("some/raw::train", "question")[1]) == "train 0"
    with pytest.raises(DatasetError, match=r"cannot load some/ready:other \(some/ready\) from the cache: .*config 'other'.*name a local"):
        next(iter(open_rows("some/ready:other")[1]))
    with pytest.raises(DatasetError, match=r"from the cache: .*nope"):
        next(iter(open_rows("some/raw::nope")[1]))


@pytest.mark.parametrize("offline", [True, False])
def test_what_is_in_no_cache_says_how_to_save_a_copy(offline_home: Path, offline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    why = r"offline mode is set \(HF_HUB_OFFLINE\)" if offline else r"http\S+ cannot be reached"
    with pytest.raises(
        DatasetError, match=rf"^data set cnn .*lives on the hub, but {why}, and it is in no cache here; .*save_to_disk"
    ) as caught:
        next(iter(open_rows("cnn")[1]))
    assert "load_dataset('abisee/cnn_dailymail', name='3.0.0', split='test').save_to_disk('FOLDER')" in str(caught.value)
    with pytest.raises(
        DatasetError, match=rf"^there is no file or folder some/none:a, and as a data set of the hub it cannot be read: {why}"
    ):
        next(iter(open_rows("some/none:a")[1]))


def test_any_data_set_of_the_hub_is_read_by_its_id(local_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LAYOUTS, ("some/body", None), wikitext)
    for name in ("some/body:wikitext-2-raw-v1", "some/body:wikitext-2-raw-v1:test"):
        assert [row.text for row in open_rows(name)[1]][1:] == [" = wikitext-2-raw-v1 = \n", " test of wikitext-2-raw-v1 \n"]
    with pytest.raises(DatasetError, match=r"from the hub: ValueError: Config name is missing.*add a configuration as some/body:CONFIG"):
        next(iter(open_rows("some/body")[1]))
