"""A data set name or a path -> PromptSet: the token prompts that profiling and evaluation run on."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from treespec import stdlib_source
from treespec.dataset_rows import SUFFIXES, Row, rows_of_file
from treespec.errors import DatasetError
from treespec.hub_datasets import HUB_DATASETS, hub_rows, saved_rows
from treespec.pictures import PROMPT, Picture, PictureReader, find_picture
from treespec.pictures import SUFFIXES as SUFFIXES_OF_PICTURES

DATASET_NAMES = ("stdlib", *HUB_DATASETS)
"""Names that `--dataset` takes besides paths."""


class Tokenizer(Protocol):
    """What is asked of a tokenizer; those of transformers have it."""

    def encode(self, text: str) -> Sequence[int]:
        """Token ids of a text, with the special tokens that the model expects in front."""
        ...

    def __len__(self) -> int:
        """Number of tokens that it knows, added ones included."""
        ...


@dataclass(frozen=True)
class Prompt:
    """The first tokens of a row, and what the row goes on with.

    `row` is the row's 0-based place in the data set, `name` says the same for people. `continuation` is empty unless it
    was asked for, and shorter than asked for where the row ends.
    """

    row: int
    name: str
    ids: tuple[int, ...]
    continuation: tuple[int, ...] = ()
    picture: Picture | None = None


@dataclass(frozen=True)
class PromptSet:
    """The prompts taken from rows `start` to `end` - 1 of a data set; `skipped` of these rows were too short."""

    prompts: tuple[Prompt, ...]
    dataset: str
    start: int
    end: int
    skipped: int

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.prompts)

    def __iter__(self) -> Iterator[Prompt]:
        """The prompts in row order."""
        return iter(self.prompts)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all token ids, continuations included: equal for equal work."""
        ids = [(p.ids, p.continuation, *([] if p.picture is None else [p.picture.sha256])) for p in self.prompts]
        return hashlib.sha256(json.dumps(ids).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Provenance as plain JSON; of a path only the last part is kept."""
        return {
            "dataset": self.dataset,
            "start": self.start,
            "end": self.end,
            "prompts": len(self.prompts),
            "skipped": self.skipped,
            "prompt_len": len(self.prompts[0].ids) if self.prompts else 0,
            "sha256": self.fingerprint,
        }


def load_prompts(
    dataset: str,
    tokenizer: Tokenizer | None,
    *,
    num_prompts: int,
    prompt_len: int,
    start: int = 0,
    end: int | None = None,
    continuation_len: int = 0,
    vocabulary_size: int | None = None,
    pictures: PictureReader | None = None,
    picture_prompt: str = PROMPT,
) -> PromptSet:
    """The first `prompt_len` tokens of rows in file order, from row `start` up to `end` (left out) or `num_prompts` prompts.

    `dataset` is one of DATASET_NAMES, a .jsonl, .json, .parquet or .txt file, or a folder saved by `datasets`. Rows of
    fewer tokens are skipped and counted; rows of `input_ids` are taken as they are, and need no tokenizer but its
    `vocabulary_size`. Fewer than `num_prompts` prompts come back where the rows end. Raises DatasetError: no such data set, a
    bad row, or no row with enough tokens.
    """
    if num_prompts < 1 or prompt_len < 1 or start < 0 or continuation_len < 0:
        raise DatasetError(
            f"num_prompts {num_prompts} and prompt_len {prompt_len} must be 1 or more, start {start} and continuation_len {continuation_len} 0 or more"
        )
    if end is not None and end <= start:
        raise DatasetError(f"--end {end} leaves no rows from --start {start}; pass --end {start + 1} or more")
    if vocabulary_size is None and tokenizer is not None:
        vocabulary_size = len(tokenizer)
    name, rows = open_rows(dataset)
    prompts: list[Prompt] = []
    position, skipped, longest = start, 0, 0
    for position, row in enumerate(islice(rows, start, end), start=start + 1):
        if pictures is not None or row.image is not None:
            prompts.append(_picture_prompt(row, position - 1, pictures, picture_prompt))
            if len(prompts) == num_prompts:
                break
            continue
        ids = _token_ids(row, tokenizer, vocabulary_size)
        if len(ids) >= prompt_len:
            prompts.append(Prompt(position - 1, row.name, ids[:prompt_len], ids[prompt_len : prompt_len + continuation_len]))
        else:
            skipped += 1
            longest = max(longest, len(ids))
        if len(prompts) == num_prompts:
            break
    if not prompts and not skipped:
        raise DatasetError(
            f"data set {name} has no row at --start {start}; pass a smaller --start" if start else f"data set {name} has no rows"
        )
    if not prompts:
        raise DatasetError(
            f"no row of {name} is long enough: --prompt-len is {prompt_len}, but the longest of {skipped} rows has {longest} tokens; "
            f"pass --prompt-len {max(longest, 1)} or less, or longer rows"
        )
    return PromptSet(tuple(prompts), name, start, position, skipped)


def open_rows(dataset: str) -> tuple[str, Iterable[Row]]:
    """(name for provenance, rows read as they are asked for) of a data set. Raises DatasetError if there is no such one."""
    if dataset == "stdlib":
        return dataset, (Row(name, text=text) for name, text in stdlib_source.held_out_rows())
    if dataset in HUB_DATASETS:
        return dataset, hub_rows(dataset)
    path = Path(dataset).expanduser()
    if path.is_dir():
        return _open_folder(path)
    if path.exists() or path.suffix.lower() in SUFFIXES:
        return path.name, rows_of_file(path)
    known = ", ".join(DATASET_NAMES)
    raise DatasetError(f"unknown data set {dataset!r}: it is neither one of {known} nor a path that exists; check --dataset")


def _open_folder(folder: Path) -> tuple[str, Iterable[Row]]:
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        return saved_rows(folder)
    try:
        files = sorted(folder.iterdir())
    except OSError as e:
        raise DatasetError(f"cannot read {folder}: {e.strerror or e}") from e
    images = [f for f in files if f.suffix.lower() in SUFFIXES_OF_PICTURES]
    if images:
        return folder.name, (Row(f"{folder.name}/{image.name}", image=image) for image in images)
    readable = next((f for f in files if f.suffix.lower() in SUFFIXES), None)
    hint = f"; name a file in it, such as {readable}" if readable else ""
    raise DatasetError(f"{folder} is no folder saved by `datasets` (it has no state.json and no dataset_dict.json){hint}")


def _picture_prompt(row: Row, number: int, pictures: PictureReader | None, asked: str) -> Prompt:
    """A whole prompt about a picture: cut anywhere, it would ask nothing."""
    if pictures is None:
        raise DatasetError(
            f"{row.name} is a picture, which needs a vision-language target; this one reads text only: pass a data set of text"
        )
    if row.image is None:
        raise DatasetError(
            f'{row.name} has no picture, but the target reads pictures; pass a folder of pictures, or rows of {{"image": PATH, "prompt": ...}}'
        )
    picture = find_picture(row.image, row.name)
    return Prompt(number, row.name, pictures.ids(asked if row.text is None else row.text, row.name), picture=picture)


def _token_ids(row: Row, tokenizer: Tokenizer | None, vocabulary_size: int | None) -> tuple[int, ...]:
    if row.ids is None:
        if tokenizer is None:
            raise DatasetError(
                f'{row.name} is text, but the model comes without a tokenizer; add its files to the folder, or give rows of "input_ids"'
            )
        return tuple(tokenizer.encode(row.text or ""))
    wrong = next((i for i in row.ids if i < 0 or (vocabulary_size is not None and i >= vocabulary_size)), None)
    if wrong is not None:
        limit = "0 or more" if vocabulary_size is None else f"0 to {vocabulary_size - 1}"
        raise DatasetError(f'{row.name}: "input_ids" holds {wrong}, but the model has ids {limit} only; the row is for another model')
    return row.ids
