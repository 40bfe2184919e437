"""Data sets that the library `datasets` reads: public ones from the Hugging Face hub, and folders that `datasets` has saved."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from treespec.data.rows import BadRow, Row, keys_of, not_utf8, read_row
from treespec.errors import DatasetError, reason_of

_EVALUATION_SPLITS = ("test", "validation", "train")


@dataclass(frozen=True)
class HubDataset:
    """The place of a public data set: the arguments of `load_dataset(path, **options)`, and the column that holds its text."""

    path: str
    column: str
    options: dict[str, Any] = field(default_factory=dict)
    fallback_revision: str | None = None


HUB_DATASETS = {
    "cnn": HubDataset("abisee/cnn_dailymail", "article", {"name": "3.0.0", "split": "test"}),
    "openwebtext": HubDataset("Skylion007/openwebtext", "text", {"split": "train"}, fallback_revision="refs/convert/parquet"),
    "c4": HubDataset("allenai/c4", "text", {"data_files": {"validation": "en/c4-validation.*.json.gz"}, "split": "validation"}),
    "wikitext": HubDataset("Salesforce/wikitext", "text", {"name": "wikitext-2-raw-v1", "split": "test"}),
    "mt-bench": HubDataset("HuggingFaceH4/mt_bench_prompts", "prompt", {"split": "train"}),
}


def hub_rows(name: str, field: str | None = None) -> Iterator[Row | BadRow]:
    """Yield the rows of a data set of HUB_DATASETS. They are streamed: only rows that are read are downloaded.

    `field` replaces the column that holds the text. Raises DatasetError if the hub does not answer within seconds, or if it refuses.
    """
    entry = HUB_DATASETS[name]
    require_hub(name)
    datasets = _library(name)
    stream = _open_stream(datasets, name, entry)
    keys = (field or entry.column,)
    number = 0
    while True:
        try:
            with _without_bars(datasets):
                record = next(stream, None)
        except Exception as e:  # the libraries below raise their own, many kinds of errors for a lost connection
            raise DatasetError(f"reading {name} from the hub broke off at row {number}: {reason_of(e)}; {_REMEDY}") from e
        if record is None:
            return
        yield read_row(record, name=f"{name}, row {number}", keys=keys)
        number += 1


def saved_rows(folder: Path, field: str | None = None, *, pictures: bool = False) -> tuple[str, Iterator[Row | BadRow]]:
    """Return the name and the rows of a folder written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`.

    If there are several splits, `test` is taken, else `validation`, else `train`; each split has a folder of its own, which can be
    named instead. Raises DatasetError.
    """
    datasets = _library(str(folder))
    try:
        with _without_bars(datasets):
            data = datasets.load_from_disk(str(folder))
    except Exception as e:  # a damaged folder shows as anything from KeyError to ArrowInvalid
        raise DatasetError(f"{folder} is not a folder that `datasets` can load: {reason_of(e)}") from e
    name = folder.name
    if isinstance(data, dict):
        split = next((s for s in (*_EVALUATION_SPLITS, *data) if s in data), None)
        if split is None:
            raise DatasetError(f"{folder} holds no split; save a data set with rows")
        name, data = f"{folder.name}/{split}", data[split]
    return name, _saved(data, name, keys_of(field, pictures))


def _saved(data: Any, name: str, keys: Sequence[str]) -> Iterator[Row | BadRow]:
    for number in range(len(data)):
        row = f"{name}, row {number}"
        try:
            yield read_row(data[number], name=row, keys=keys)
        except UnicodeDecodeError as e:
            yield BadRow(row, not_utf8(row, e))


_REMEDY = "name a local .jsonl, .parquet or .txt file instead, or stdlib, which needs no network"


def _open_stream(datasets: Any, name: str, entry: HubDataset) -> Iterator[dict[str, Any]]:
    revisions: list[str | None] = [None]
    if entry.fallback_revision is not None:
        revisions.append(entry.fallback_revision)
    failures: list[Exception] = []
    for revision in revisions:
        try:
            with _without_bars(datasets):
                return iter(datasets.load_dataset(entry.path, revision=revision, streaming=True, **entry.options))
        except Exception as e:  # as above: whatever the reason, it is told
            failures.append(e)
    raise DatasetError(f"cannot load {name} ({entry.path}) from the hub: {reason_of(failures[0])}; {_REMEDY}") from failures[0]


def _library(name: str) -> Any:
    try:
        import datasets
    except ImportError as e:
        raise DatasetError(f"reading {name} needs the library datasets: pip install datasets, or pass a .jsonl file") from e
    return datasets


@contextmanager
def _without_bars(datasets: Any) -> Iterator[None]:
    """Show no progress bar of the library inside this block, and show bars again after it if they were on before."""
    shown = not datasets.are_progress_bars_disabled()
    if shown:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def require_hub(name: str) -> None:
    """Raise DatasetError within seconds if the hub cannot be reached; the library itself would retry for long."""
    from treespec import hub

    if not hub.is_reachable():
        raise DatasetError(f"data set {name} lives on the hub, but {hub.endpoint()} cannot be reached (or offline mode is set); {_REMEDY}")
