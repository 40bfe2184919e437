"""Data sets that the library `datasets` reads: public ones from the Hugging Face hub, and folders that `datasets` has saved."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from treespec import hub
from treespec.data.rows import KEYS, BadRow, Row, keys_of, not_utf8, read_row
from treespec.data.slices import SUFFIXES
from treespec.errors import DatasetError, reason_of

_FILES = (*SUFFIXES, ".csv", ".tsv", ".gz", ".zst", ".arrow", ".zip")
"""Endings of files, which are never taken for names on the hub."""

_EVALUATION_SPLITS = ("test", "validation", "train")


@dataclass(frozen=True)
class HubDataset:
    """The place of a public data set: the arguments of `load_dataset(path, **options)`, and the column that holds its text, if it is no usual key."""

    path: str
    column: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    fallback_revision: str | None = None
    cached_config: str | None = None
    """Name of the configuration in the cache of `datasets`, if it is not among the options."""
    elsewhere: str | None = None
    """Place where it lives, if that is not the hub: `path` is then a reader of `datasets` for its files."""

    @property
    def call(self) -> str:
        """The call that loads it."""
        return f"load_dataset({', '.join([repr(self.path), *(f'{key}={value!r}' for key, value in self.options.items())])})"


_SPEC_BENCH = "https://raw.githubusercontent.com/hemingkx/Spec-Bench/main/data/spec_bench/question.jsonl"

HUB_DATASETS = {
    "cnn": HubDataset("abisee/cnn_dailymail", "article", {"name": "3.0.0", "split": "test"}),
    "openwebtext": HubDataset("Skylion007/openwebtext", "text", {"split": "train"}, fallback_revision="refs/convert/parquet"),
    "c4": HubDataset(
        "allenai/c4", "text", {"data_files": {"validation": "en/c4-validation.*.json.gz"}, "split": "validation"}, cached_config="en"
    ),
    "wikitext": HubDataset("Salesforce/wikitext", "text", {"name": "wikitext-2-raw-v1", "split": "test"}),
    "mt-bench": HubDataset("HuggingFaceH4/mt_bench_prompts", "prompt", {"split": "train"}),
    "spec-bench": HubDataset(
        "json", "turns", {"data_files": _SPEC_BENCH, "split": "train"}, elsewhere="the repository hemingkx/Spec-Bench"
    ),
    "speed-bench": HubDataset("nvidia/SPEED-Bench", "turns", {"name": "qualitative", "split": "test"}),
}


def hub_dataset(name: str) -> HubDataset | None:
    """Return the place of a data set of HUB_DATASETS, or of a hub id `OWNER/NAME`, `OWNER/NAME:CONFIG` or `OWNER/NAME:CONFIG:SPLIT`.

    Returns None for other names, and for those of files and folders that exist.

    >>> hub_dataset("openai/gsm8k:main").options, hub_dataset("a/b::train").options, hub_dataset("./rows"), hub_dataset("a/rows.jsonl")
    ({'name': 'main'}, {'split': 'train'}, None, None)
    """
    if name in HUB_DATASETS:
        return HUB_DATASETS[name]
    path, *rest = name.split(":")
    if path.count("/") != 1 or len(rest) > 2 or not hub.is_repository_id(path) or path.lower().endswith(_FILES) or os.path.exists(name):
        return None
    return HubDataset(path, options={key: value for key, value in zip(("name", "split"), rest, strict=False) if value})


def hub_rows(name: str, field: str | None = None) -> Iterator[Row | BadRow]:
    """Yield the rows of a data set for which `hub_dataset` knows a place. They are streamed: only rows that are read are downloaded.

    If the hub cannot be reached, they are read from the cache. `field` replaces the column that holds the text. Raises DatasetError if the
    hub does not answer within seconds and there is no cache, or if it refuses.
    """
    entry = hub_dataset(name)
    assert entry is not None
    require_hub(name)
    datasets = _library(name)
    where, stream = ("the hub", _open_stream) if hub.is_reachable() else ("the cache", _open_cached)
    rows = stream(datasets, name, entry)
    column = field or entry.column
    keys = KEYS if column is None else (column,)
    number = 0
    while True:
        try:
            with _without_bars(datasets):
                record = next(rows, None)
        except Exception as e:  # the libraries below raise their own, many kinds of errors for a lost connection
            raise DatasetError(f"reading {name} from {where} broke off at row {number}: {reason_of(e)}; {_REMEDY}") from e
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
        split = _split(data, f"{folder} holds no split; save a data set with rows")
        name, data = f"{folder.name}/{split}", data[split]
    return name, _saved(data, name, keys_of(field, pictures))


def _split(splits: Iterable[str], otherwise: str) -> str:
    """Return the split to read: `test`, else `validation`, else `train`, else the first. Raises DatasetError, saying `otherwise`, if there is none."""
    found = next((split for split in (*_EVALUATION_SPLITS, *splits) if split in splits), None)
    if found is None:
        raise DatasetError(otherwise)
    return found


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
                found = datasets.load_dataset(entry.path, revision=revision, streaming=True, **entry.options)
            return iter(_one_split(found, name))
        except DatasetError:
            raise
        except Exception as e:  # as above: whatever the reason, it is told
            failures.append(e)
    other = (
        ""
        if name in HUB_DATASETS
        else f"check the name (there is no folder {name} here either), add a configuration as {entry.path}:CONFIG, or "
    )
    raise DatasetError(f"cannot load {name} ({entry.path}) from the hub: {reason_of(failures[0])}; {other}{_REMEDY}") from failures[0]


def _open_cached(datasets: Any, name: str, entry: HubDataset) -> Iterator[dict[str, Any]]:
    """Return the rows of a data set in one of the caches, without asking the hub. Raises DatasetError."""
    config, split = entry.options.get("name", entry.cached_config), entry.options.get("split")
    try:
        with _without_bars(datasets):
            if _prepared(entry.path):
                from datasets.packaged_modules.cache.cache import Cache

                made = Cache(dataset_name=entry.path.partition("/")[2], repo_id=entry.path, config_name=config, version="auto", hash="auto")
                return iter(_one_split(made.as_dataset(split=split), name))
            return iter(_one_split(datasets.load_dataset(_snapshot(entry.path), streaming=True, **entry.options), name))
    except DatasetError:
        raise
    except Exception as e:  # a damaged cache shows as anything
        named = f"pass {entry.path}:CONFIG, or " if config is None and "config" in str(e).lower() else ""
        reason = reason_of(e).partition(" Example of usage")[0]
        raise DatasetError(f"cannot load {name} ({entry.path}) from the cache: {reason}; {named}{_REMEDY}") from e


def _one_split(data: Any, name: str) -> Any:
    return data[_split(data, f"{name} has no split; name another data set")] if isinstance(data, dict) else data


def _prepared(path: str) -> bool:
    """Return whether a data set lies in the cache of `datasets`, as Arrow files."""
    import datasets
    from datasets.naming import camelcase_to_snakecase

    owner, _, name = path.partition("/")
    return any((Path(datasets.config.HF_DATASETS_CACHE) / f"{owner}___{camelcase_to_snakecase(name)}").glob("*/*/*/dataset_info.json"))


def _snapshot(path: str) -> str | None:
    """Return the folder of a data set that was downloaded from the hub as it is there, or None. Of several commits without a branch, it is the last one."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return str(snapshot_download(path, repo_type="dataset", local_files_only=True))
    except LocalEntryNotFoundError:
        commits = Path(constants.HF_HUB_CACHE, f"datasets--{path.replace('/', '--')}", "snapshots").glob("*/")
        return max((str(commit) for commit in commits), key=os.path.getmtime, default=None)


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
    """Raise DatasetError within seconds if a data set is in no cache and the hub cannot be reached; the library itself would retry for long."""
    entry = hub_dataset(name)
    if entry is None or hub.is_reachable():
        return
    _library(name)
    if entry.elsewhere is None and (_prepared(entry.path) or _snapshot(entry.path) is not None):
        return
    reason = "offline mode is set (HF_HUB_OFFLINE)" if hub.is_offline() else f"{hub.endpoint()} cannot be reached"
    if entry.elsewhere is not None:
        raise DatasetError(
            f"data set {name} lives in {entry.elsewhere}, but {reason}; where there is a network, download {entry.options['data_files']} and pass "
            f"that file as `dataset`; or {_REMEDY}"
        )
    known = f"data set {name} ({entry.path}) lives on the hub, but"
    other = f"there is no file or folder {name}, and as a data set of the hub it cannot be read:"
    raise DatasetError(
        f"{known if name in HUB_DATASETS else other} {reason}, and it is in no cache here; where there is a network, "
        f"datasets.{entry.call}.save_to_disk('FOLDER') saves a copy to pass as `dataset`; or {_REMEDY}"
    )
