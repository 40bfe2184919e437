"""The texts that a draft is trained and measured on: windows of a data set's text, or the target's continuations of its rows."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from treespec.continuation import continue_prompts
from treespec.dataset_rows import Row, rows_of_file
from treespec.errors import TrainingError
from treespec.files import write_bytes
from treespec.journal import Journal, discard
from treespec.models.tree_model import TreeModel
from treespec.prompts import Tokenizer, open_rows, token_ids
from treespec.sampling import Sampling, prompt_generator


@dataclass(frozen=True)
class Texts:
    """Token rows of one length and what counts in each: `tokens` int64 [rows, length], `counts` bool [rows, length].

    Training takes a loss at the tokens that count; rank-1 acceptance is the share of them that the draft ranks first.
    """

    tokens: Tensor
    counts: Tensor

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.tokens)

    @property
    def counted(self) -> int:
        """Number of tokens that count."""
        return int(self.counts.sum())


@dataclass(frozen=True)
class Split:
    """Rows of a data set as token ids: the first ones long enough are held out as prompts, the others are for training."""

    training: tuple[Tensor, ...]
    """int32 [tokens] each."""
    held_out: Tensor
    """int64 [prompts, prompt_len]: the first tokens of the held-out rows."""
    dataset: str
    start: int
    end: int

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all token ids: equal for equal work."""
        digest = hashlib.sha256(self.held_out.numpy().tobytes())
        for row in self.training:
            digest.update(len(row).to_bytes(8, "little") + row.numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Shares:
    """How many processes work together, which of them this is, and how it waits for the others."""

    processes: int = 1
    rank: int = 0
    wait: Callable[[], None] = lambda: None


def split_rows(
    dataset: str,
    tokenizer: Tokenizer | None,
    vocabulary: int,
    *,
    start: int,
    end: int | None,
    num_rows: int,
    held_out: int,
    prompt_len: int,
) -> Split:
    """Rows `start` to `end` - 1 in file order, at most `num_rows` to train on and `held_out` held-out ones before them.

    Raises DatasetError (no such data set, a bad row), TrainingError (fewer than `held_out` rows of `prompt_len` tokens).
    """
    name, rows = open_rows(dataset)
    training: list[Tensor] = []
    prompts: list[tuple[int, ...]] = []
    position = start
    for number, row in enumerate(rows):
        if number < start:
            continue
        if len(training) == num_rows or (end is not None and number >= end):
            break
        position = number + 1
        ids = token_ids(row, tokenizer, vocabulary)
        if len(prompts) < held_out and len(ids) >= prompt_len:
            prompts.append(ids[:prompt_len])
        elif ids:
            training.append(torch.tensor(ids, dtype=torch.int32))
    if len(prompts) < held_out:
        raise TrainingError(
            f"{held_out} rows of {name} are to be held out to measure acceptance, but {len(prompts)} have {prompt_len} tokens or more; "
            "lower --eval-prompts or --prompt-len, or name longer rows with --eval-dataset"
        )
    return Split(tuple(training), torch.tensor(prompts, dtype=torch.int64).view(len(prompts), prompt_len), name, start, position)


def own_windows(rows: Sequence[Tensor], seq_len: int, end_of_text: int | None) -> Texts:
    """Rows one after the other, `end_of_text` behind each, cut into windows of `seq_len`; a shorter rest is left out.

    All tokens count but a window's first. int32 [windows, seq_len]; there may be none.
    """
    mark = torch.tensor([] if end_of_text is None else [end_of_text], dtype=torch.int32)
    stream = torch.cat([part for row in rows for part in (row, mark)]) if rows else mark
    tokens = stream[: len(stream) // seq_len * seq_len].view(-1, seq_len)
    counts = torch.ones_like(tokens, dtype=torch.bool)
    counts[:, 0] = False
    return Texts(tokens, counts)


@dataclass(frozen=True)
class Continuing:
    """How the target continues prompts. `target` names it, revision and dtype included; row i draws from the stream of (seed, i)."""

    target: str
    length: int
    """Tokens of a text at most, prompt included."""
    temperature: float
    vocabulary: int
    seed: int = 0
    batch_size: int = 32

    def fingerprint(self, prompts: Tensor) -> str:
        """SHA-256 of everything that the texts depend on."""
        known = [self.target, self.length, self.temperature, self.vocabulary, self.seed, prompts.tolist()]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()


def target_texts(
    target: Callable[[], tuple[TreeModel, frozenset[int]]],
    prompts: Tensor,
    how: Continuing,
    path: Path,
    shares: Shares = Shares(),
    on_tokens: Callable[[int, int], None] = lambda done, total: None,
) -> Texts:
    """The target's own continuations of `prompts` int64 [rows, prompt_len]; its own tokens count, up to the first EOS.

    They are kept in `path`, rows of `input_ids`, and read from there where they are. Else `target` is called for the model
    and its EOS ids; finished batches survive an interruption in a journal; each process does its share. Raises OutputError,
    ModelError (logits that are not finite), TrainingError (a file that holds other texts).
    """
    if not path.exists():
        journals = [path.with_name(f"{path.name}.{rank}.journal") for rank in range(shares.processes)]
        batches = torch.split(torch.arange(len(prompts)), how.batch_size)
        mine = range(shares.rank, len(batches), shares.processes)
        gen_len = how.length - prompts.shape[1]
        with Journal(journals[shares.rank], how.fingerprint(prompts)) as log:
            for place, number in enumerate(mine):
                if log.get(str(number)) is None:
                    log.put(str(number), _continued(*target(), prompts, batches[number], how, _part(on_tokens, place, len(mine), gen_len)))
                on_tokens((place + 1) * gen_len, len(mine) * gen_len)
        shares.wait()
        if shares.rank == 0:
            _gather(path, journals, how.fingerprint(prompts), len(batches))
        shares.wait()
    return _read(path, prompts, how.length)


def _continued(
    model: TreeModel, eos: frozenset[int], prompts: Tensor, rows: Tensor, how: Continuing, on_token: Callable[[int], None]
) -> list[list[int]]:
    """The texts of some rows, cut behind their last token that counts."""
    generators = [prompt_generator(how.seed, index, model.device) for index in rows.tolist()]
    ids, prompt_len = prompts[rows].to(model.device), prompts.shape[1]
    sampling = Sampling(how.temperature)
    texts, valid = continue_prompts(model.module, ids, how.length - prompt_len, sampling, generators, eos, how.vocabulary, on_token)
    return [text[: prompt_len + count] for text, count in zip(texts.tolist(), valid.sum(1).tolist(), strict=True)]


def _gather(path: Path, journals: Sequence[Path], fingerprint: str, batches: int) -> None:
    """Write what all processes have done as one file; the journals go."""
    done: dict[int, list[list[int]]] = {}
    for journal in journals:
        with Journal(journal, fingerprint) as log:
            done |= {number: rows for number in range(batches) if (rows := log.get(str(number))) is not None}
    write_bytes(path, "".join(json.dumps({"input_ids": row}) + "\n" for number in range(batches) for row in done[number]).encode())
    for journal in journals:
        discard(journal)


def _read(path: Path, prompts: Tensor, length: int) -> Texts:
    """The texts in a file; raises TrainingError where they are not continuations of the prompts."""
    rows = [row.ids or () if isinstance(row, Row) else () for row in rows_of_file(path)]
    tokens = torch.zeros(len(prompts), length, dtype=torch.int32)
    counts = torch.zeros(len(prompts), length, dtype=torch.bool)
    prompt_len = prompts.shape[1]
    whole = len(rows) == len(prompts) and all(
        prompt_len < len(ids) <= length and list(ids[:prompt_len]) == prompt for ids, prompt in zip(rows, prompts.tolist(), strict=True)
    )
    if not whole:
        raise TrainingError(
            f"{path} does not hold {len(prompts)} continued texts of {prompt_len + 1} to {length} tokens; delete it, and it is made again"
        )
    for index, ids in enumerate(rows):
        tokens[index, : len(ids)] = torch.tensor(ids, dtype=torch.int32)
        counts[index, prompt_len : len(ids)] = True
    return Texts(tokens, counts)


def _part(on_tokens: Callable[[int, int], None], place: int, batches: int, gen_len: int) -> Callable[[int], None]:
    return lambda done: on_tokens(place * gen_len + done, batches * gen_len)
