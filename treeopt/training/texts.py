"""The texts on which a draft is trained and measured: windows of a data set's text, or the target's continuations of its rows."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from treeopt.profiling.continuation import continue_prompts
from treespec.data.prompts import no_row_at
from treespec.data.rows import BadRow, Row
from treespec.data.slices import DatasetSlice
from treespec.data.sources import open_rows, rows_of_file
from treespec.data.tokens import Tokenizer, refused, token_ids
from treespec.decoding.rules import Sampling
from treespec.decoding.sampling import prompt_generator
from treespec.errors import DatasetError, TrainingError, counted, renamed
from treespec.files.journal import Journal, discard
from treespec.files.locks import alone, lock_of
from treespec.files.writing import write_bytes
from treespec.models.tree_model import TreeModel

_HELD_OUT = {"dataset": "eval_dataset", "field": "eval_field"}
"""Names of the parameters that rows are read by, if acceptance is measured on another data set."""


@dataclass(frozen=True)
class Texts:
    """Token rows of one length, and which tokens count in each: `tokens` int32 [rows, length], `counts` bool [rows, length].

    Training takes a loss at the tokens that count; first-choice acceptance is the share of them that is the draft's first choice.
    """

    tokens: Tensor
    counts: Tensor

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.tokens)

    @property
    def counted(self) -> int:
        """Number of tokens that count."""
        return int(self.counts.sum())


@dataclass(frozen=True)
class Split:
    """Rows of a data set as token ids: the first ones long enough are held out as prompts, the others are for training."""

    training: tuple[Tensor, ...]
    """int32 [tokens] each; the rows to train on."""
    held_out: Tensor
    """int32 [prompts, prompt_len]: the first tokens of the held-out rows."""
    dataset: str
    start: int
    end: int
    bad: tuple[BadRow, ...] = ()
    """The rows that were skipped."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all token ids: equal for equal work."""
        digest = hashlib.sha256(self.held_out.numpy().tobytes())
        for row in self.training:
            digest.update(len(row).to_bytes(8, "little") + row.numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Shares:
    """The number of processes that work together, the place of this one among them, and the way in which it waits for the others."""

    processes: int = 1
    rank: int = 0
    wait: Callable[[], None] = lambda: None


def split_rows(
    rows: DatasetSlice,
    tokenizer: Tokenizer | None,
    vocabulary: int,
    *,
    num_rows: int,
    held_out: int,
    prompt_len: int,
    keep: int | None = None,
) -> Split:
    """Read rows in file order, hold out the first `held_out` ones of `prompt_len` tokens, and keep at most `num_rows` others to train on.

    Of a held-out row `prompt_len` tokens are kept, of a row to train on the first `keep`. Raises DatasetError (no such data set, no row at
    `start`, pictures, a bad row that is not to be skipped), TrainingError (fewer than `held_out` rows of `prompt_len` tokens, or no others).
    """
    name, found = open_rows(rows.dataset, rows.field, end=rows.end)
    training: list[Tensor] = []
    prompts: list[Tensor] = []
    bad: list[BadRow] = []
    position = rows.start
    for number, ids in _token_rows(name, found, rows, tokenizer, vocabulary, bad):
        position = number + 1
        if len(prompts) < held_out and len(ids) >= prompt_len:
            prompts.append(_tensor(ids[:prompt_len]))
        elif ids:
            training.append(_tensor(ids[:keep]))
        if len(training) == num_rows:
            break
    if len(prompts) < held_out:
        raise TrainingError(
            f"`eval_prompts` holds out {counted(held_out, 'row')} of {name} to measure acceptance, but "
            f"{counted(len(prompts), 'has', 'have')} {counted(prompt_len, 'token')} or more; "
            f"lower `eval_prompts` or `prompt_len`, or name longer rows with `eval_dataset`{_besides(bad)}"
        )
    if prompts and not training:
        raise TrainingError(
            f"`eval_prompts` holds out {counted(held_out, 'row')} of {name} to measure acceptance, and none is left to train on; "
            f"give more rows, lower `eval_prompts`, or name others with `eval_dataset`{_besides(bad)}"
        )
    return Split(tuple(training), _stacked(prompts, prompt_len), name, rows.start, position, tuple(bad))


def held_out_prompts(
    rows: DatasetSlice, tokenizer: Tokenizer | None, vocabulary: int, *, count: int, prompt_len: int
) -> tuple[Tensor, tuple[BadRow, ...]]:
    """Return the first `prompt_len` tokens of the first `count` rows that have so many, int32 [prompts, prompt_len], and the bad rows among them.

    There may be fewer prompts. Raises DatasetError as `split_rows` does, about `eval_dataset` and `eval_field`, TrainingError if there is none.
    """
    bad: list[BadRow] = []
    try:
        name, found = open_rows(rows.dataset, rows.field, end=rows.end)
        numbered = _token_rows(name, found, rows, tokenizer, vocabulary, bad)
        prompts = list(islice((_tensor(ids[:prompt_len]) for _, ids in numbered if len(ids) >= prompt_len), count))
    except DatasetError as e:
        raise type(e)(renamed(str(e), _HELD_OUT)) from e
    bad = [replace(row, reason=renamed(row.reason, _HELD_OUT)) for row in bad]
    if not prompts:
        raise TrainingError(
            f"no row of {name} has {counted(prompt_len, 'token')} or more; lower `prompt_len`, or name longer rows with `eval_dataset`{_besides(bad)}"
        )
    return _stacked(prompts, prompt_len), tuple(bad)


def _token_rows(
    name: str, found: Iterable[Row | BadRow], rows: DatasetSlice, tokenizer: Tokenizer | None, vocabulary: int, bad: list[BadRow]
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield the number and the token ids of each good row. A bad row goes to `bad` or ends the reading. Raises DatasetError if there is none."""
    number = -1
    for number, row in enumerate(found):
        if number < rows.start:
            continue
        if isinstance(row, Row) and row.image is not None:
            raise DatasetError(f"{row.name} is a picture, but train-draft reads text only; pass a data set of text")
        ids = row if isinstance(row, BadRow) else token_ids(row, tokenizer, vocabulary)
        if not isinstance(ids, BadRow):
            yield number, ids
        elif rows.skip_bad_rows:
            bad.append(ids)
        else:
            raise refused(ids)
    if number < rows.start:
        raise no_row_at(rows.start, name, number + 1)


def _besides(bad: Sequence[BadRow]) -> str:
    """Return the words which say that rows were skipped, for a message that too few are left."""
    return f" ({counted(len(bad), 'bad row was', 'bad rows were')} skipped, the first because of this: {bad[0].reason})" if bad else ""


def _tensor(ids: Sequence[int]) -> Tensor:
    return torch.tensor(ids, dtype=torch.int32)  # a vocabulary has fewer than 2^31 tokens


def _stacked(prompts: Sequence[Tensor], prompt_len: int) -> Tensor:
    return torch.stack(list(prompts)) if prompts else torch.empty(0, prompt_len, dtype=torch.int32)


def own_windows(rows: Sequence[Tensor], seq_len: int, end_of_text: int | None) -> Texts:
    """Join rows one after the other, with `end_of_text` after each, and cut them into windows of `seq_len`. A shorter rest is left out.

    All tokens count but a window's first. The windows are int32 [windows, seq_len]; there may be none.
    """
    mark = _tensor([] if end_of_text is None else [end_of_text])
    stream = torch.cat([part for row in rows for part in (row, mark)]) if rows else mark
    tokens = stream[: len(stream) // seq_len * seq_len].view(-1, seq_len)
    counts = (torch.arange(seq_len) > 0).expand(len(tokens), seq_len)
    return Texts(tokens, counts)


@dataclass(frozen=True)
class Continuing:
    """Settings of the target's continuations of prompts; row i draws from the stream of (seed, i)."""

    target: str
    """The facts that the target's texts depend on: name, revision, weights, dtype, kind of device (`Target.key`)."""
    length: int
    """Most tokens of a text, prompt included."""
    temperature: float
    vocabulary: int
    seed: int = 0
    batch_size: int = 32

    def fingerprint(self, prompts: Tensor) -> str:
        """SHA-256 of everything that the texts depend on; `batch_size` changes no more than rounding does."""
        known = [self.target, self.length, self.temperature, self.vocabulary, self.seed, *prompts.shape]
        return hashlib.sha256(json.dumps(known).encode() + prompts.numpy().tobytes()).hexdigest()


def target_texts(
    target: Callable[[], tuple[TreeModel, frozenset[int]]],
    prompts: Tensor,
    how: Continuing,
    path: Path,
    shares: Shares = Shares(),
    on_tokens: Callable[[int, int], None] = lambda done, total: None,
) -> Texts:
    """Return the target's own continuations of `prompts` int32 [rows, prompt_len]. Its own tokens count, up to the first EOS.

    They are kept in `path` as rows of `input_ids`, and read from there if they are there. Otherwise `target` is called for the model
    and its EOS ids; finished rows survive an interruption in a journal, and each process does its share. Raises OutputError,
    ModelError (logits that are not finite), TrainingError (a file that holds other texts).
    """
    journals = [path.with_name(f"{path.name}.{rank}.journal") for rank in range(shares.processes)]
    if path.exists() and shares.rank == 0:  # they are what a run left that was killed while it deleted them
        for journal in journals:
            with alone(lock_of(journal), journal):
                discard(journal)
    if not path.exists():
        mine = range(shares.rank, len(prompts), shares.processes)
        gen_len = how.length - prompts.shape[1]
        with Journal(journals[shares.rank], how.fingerprint(prompts)) as log:
            todo = [row for row in mine if str(row) not in log]
            done = (len(mine) - len(todo)) * gen_len
            for batch in (todo[start : start + how.batch_size] for start in range(0, len(todo), how.batch_size)):
                texts = _continued(*target(), prompts, batch, how, _part(on_tokens, done, len(batch), len(mine) * gen_len))
                log.put_all({str(row): text for row, text in zip(batch, texts, strict=True)})
                done += len(batch) * gen_len
                on_tokens(done, len(mine) * gen_len)
        shares.wait()
        if shares.rank == 0:
            _gather(path, journals, how.fingerprint(prompts), len(prompts))
        shares.wait()
    return _read(path, prompts, how.length)


def _continued(
    model: TreeModel, eos: frozenset[int], prompts: Tensor, rows: Sequence[int], how: Continuing, on_token: Callable[[int], None]
) -> list[list[int]]:
    """Return the texts of some rows, cut after their last token that counts."""
    generators = [prompt_generator(how.seed, index, model.device) for index in rows]
    ids, prompt_len = prompts[list(rows)].long().to(model.device), prompts.shape[1]
    sampling = Sampling(how.temperature)
    texts, valid = continue_prompts(model.module, ids, how.length - prompt_len, sampling, generators, eos, how.vocabulary, on_token)
    return [text[: prompt_len + count] for text, count in zip(texts.tolist(), valid.sum(1).tolist(), strict=True)]


def _gather(path: Path, journals: Sequence[Path], fingerprint: str, rows: int) -> None:
    """Write the work of all processes as one file, row by row, and delete the journals."""
    with ExitStack() as opened:
        logs = [opened.enter_context(Journal(journal, fingerprint)) for journal in journals]
        write_bytes(path, (json.dumps({"input_ids": logs[row % len(logs)].get(str(row))}).encode() + b"\n" for row in range(rows)))
    for journal in journals:
        discard(journal)


def _read(path: Path, prompts: Tensor, length: int) -> Texts:
    """Return the texts in a file, read row by row. Raises TrainingError if they are not continuations of the prompts."""
    tokens = torch.zeros(len(prompts), length, dtype=torch.int32)
    counts = torch.zeros(len(prompts), length, dtype=torch.bool)
    prompt_len = prompts.shape[1]
    read = 0
    for read, row in enumerate(rows_of_file(path), start=1):
        ids = row.ids or () if isinstance(row, Row) else ()
        if read > len(prompts) or not prompt_len < len(ids) <= length or ids[:prompt_len] != tuple(prompts[read - 1].tolist()):
            read = -1
            break
        tokens[read - 1, : len(ids)] = _tensor(ids)
        counts[read - 1, prompt_len : len(ids)] = True
    if read != len(prompts):
        raise TrainingError(
            f"{path} does not hold {counted(len(prompts), 'continued text')} of {prompt_len + 1} to {length} tokens; delete it, and it is made again"
        )
    return Texts(tokens, counts)


def _part(on_tokens: Callable[[int, int], None], done: int, rows: int, total: int) -> Callable[[int], None]:
    return lambda tokens: on_tokens(done + rows * tokens, total)
