"""Inputs of a command: from its options to models and prompts. Mistakes that are cheap to find are found before a model is loaded."""

from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, overload

from treeopt.cli.joining import processes
from treeopt.cli.options import DraftsOptions, ModelOptions, PromptOptions
from treeopt.cli.output import REPLIES, journal_of, note
from treeopt.cli.progress import Progress
from treeopt.cli.tensor_parallel import team_of
from treespec.data.slices import PROMPT_LEN, ROOM, WHOLE_PROMPT_LEN
from treespec.errors import DatasetError, ModelError, NoPromptError, counted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from treeopt.cli.plan import ProfiledRows
    from treespec.data.prompts import PromptSet
    from treespec.data.rows import BadRow
    from treespec.decoding.rules import Sampling
    from treespec.models.drafts import Draft, DraftInfo
    from treespec.models.pairs import Pair, PairInfo, Target, TargetInfo

_BAD_ROWS_SHOWN = 10
"""Number of bad rows that are named; more are only counted on stderr."""


def resolve_device(device: str) -> str:
    """Return `cuda` for `auto` if there is a CUDA GPU, else `cpu`; other devices stay."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def hardware_of(device: str) -> str | None:
    """Return the name of a device as records have it, or None for one that is not there."""
    from treespec.files.provenance import processor

    device = resolve_device(device)
    if device == "cpu":
        return processor()
    import torch

    index = int(device.partition(":")[2] or 0)
    return str(torch.cuda.get_device_name(index)) if index < torch.cuda.device_count() else None


def info_of(models: ModelOptions) -> "TargetInfo":
    """Return the facts in the models' files, before a weight is read: a `PairInfo` if there is a draft."""
    from treespec.models.info import ModelInfo
    from treespec.models.pairs import TargetInfo

    team_of(models, resolve_device(models.device))
    return TargetInfo(ModelInfo.of(models.target, models.revision, models.adapter)) if models.draft is None else pair_info_of(models)


def pair_info_of(models: ModelOptions) -> "PairInfo":
    """Return the facts in a pair's files, before a weight is read. Raises ModelError without a draft."""
    from treespec.models.pairs import PairInfo

    if models.draft is None:
        raise ModelError("a draft model is needed; pass `draft`")
    team_of(models, resolve_device(models.device))
    return PairInfo.of(
        models.target,
        models.draft,
        revision=models.revision,
        draft_revision=models.draft_revision,
        adapter=models.adapter,
        draft_adapter=models.draft_adapter,
        corpus=models.corpus,
    )


@overload
def load(known: "PairInfo", models: ModelOptions) -> "Pair": ...
@overload
def load(known: "TargetInfo", models: ModelOptions) -> "Target": ...
def load(known: "TargetInfo", models: ModelOptions) -> "Target":
    """Load the models. What is not read as it is stored is said on stderr."""
    for role, model in known.models.items():
        note_stored(role, model.name, model.quantization)
    device = resolve_device(models.device)
    loaded = known.load(device=device, dtype=models.dtype, offload=models.offload, team=team_of(models, device))
    for sentence in loaded.notes:
        note(sentence)
    return loaded


def load_several(known: "TargetInfo", drafts: "Sequence[DraftInfo]", models: DraftsOptions) -> "tuple[Target, tuple[Draft, ...]]":
    """Load a target and the drafts that go with it, as `load` does."""
    from treespec.models.pairs import load_drafts

    target = load(known, models.with_draft(None))
    for info in drafts:
        note_stored("draft", info.name, info.quantization)
    device = resolve_device(models.device) if target.team is None else target.team.device
    loaded = load_drafts(target, drafts, device=device, dtype=models.dtype)
    for sentence in (sentence for draft in loaded for sentence in draft.notes):
        note(sentence)
    return target, loaded


def note_stored(role: str, name: str, quantization: str | None) -> None:
    """Note that a model's weights are not used as they are stored, if that is so."""
    if quantization is not None:
        note(f"{role} {name} is a GGUF file of {quantization} weights: they are dequantised")


def note_not_applied(known: "TargetInfo", sampling: "Sampling", *, processed: bool = False) -> None:
    """Say on stderr which settings of the target's generation config change what `generate` writes and are not applied here.

    If `processed`, its logits processors are.
    """
    from treespec.models.generation import note_of

    left = note_of(known.target.name, known.target.generation, sampled=not sampling.greedy, processed=processed)
    if left is not None:
        note(left)


def read_prompts(
    known: "TargetInfo",
    rows: PromptOptions,
    gen_len: int,
    *,
    own_text: bool = False,
    profiled: "ProfiledRows | None" = None,
    room: int | None = None,
) -> "PromptSet":
    """Return the prompts of a target, or of a pair, and with `own_text` the rows' own text after them.

    Whole prompts leave the target room for `gen_len` tokens, and have at most `room` tokens if that is given.

    If no --start is given and the data set is the one of the `profiled` rows, the rows after these are taken if there are any.
    """
    from treespec.data.prompts import load_prompts

    pictures = known.target.pictures
    tokenizer = known.tokenizer if pictures is None else pictures.tokenizer
    positions = known.target.max_positions
    bounds = [room, None if positions is None else positions + 1 - gen_len]  # the last token needs no position
    read = partial(
        load_prompts,
        rows.dataset,
        tokenizer,
        num_prompts=rows.num_prompts,
        prompt_len=rows.prompt_len,
        whole_prompts=rows.whole_prompts,
        room=min((bound for bound in bounds if bound is not None), default=None),
        end=rows.end,
        continuation_len=gen_len if own_text else 0,
        vocabulary_size=known.target.vocabulary_size,
        chat=rows.chat,
        chat_options=rows.chat_options,
        field=rows.field,
        skip_bad_rows=rows.skip_bad_rows,
        pictures=pictures,
        picture_prompt=rows.prompt,
    )
    if rows.prompt is not None and pictures is None:
        note("--prompt is what is asked about pictures, and the target reads text only: it changes nothing")
    try:
        return _read(rows, profiled, read, pictures is not None)
    except NoPromptError as e:
        if room is None or ROOM not in str(e):
            raise
        raise NoPromptError(f"{e}, or a larger `max_length`") from e


def note_rows(known: "TargetInfo", rows: PromptOptions, prompts: "PromptSet") -> None:
    """Note on stderr how rows became prompts, and what was left out. It is called when all has been found to fit."""
    from treespec.data.chat import unread_arguments

    _note_lengths(rows, prompts)
    _note_left_out(rows, prompts)
    bos = getattr(known.tokenizer, "bos_token_id", None)
    doubled = sum(prompt.ids[:2] == (bos, bos) for prompt in prompts)
    if doubled and bos is not None:
        note(
            f"of {counted(len(prompts), _kind(rows))}, {counted(doubled, 'begins', 'begin')} with two BOS tokens: the text has one of its own"
        )
    if rows.chat and known.tokenizer is not None:
        for name in unread_arguments(known.tokenizer, rows.chat_options):
            note(f"the chat template does not read {name}: --chat-arg {name} changes nothing")


def complete_conversations(
    pair: "Target", prompts: "PromptSet", rows: PromptOptions, gen_len: int, output: Path | None, room: int | None = None
) -> "PromptSet":
    """Return a prompt for every turn of the user, if prompts are conversations whose later turns are known; return other prompts unchanged.

    The target writes the replies in between; of several processes, that of the first. No prompt is longer than `room` tokens, if that is given.
    """
    if not any(prompt.turns for prompt in prompts):
        return prompts
    from treespec.evaluation.conversations import with_replies

    journal = journal_of(output, REPLIES)
    most = rows.prompt_len or WHOLE_PROMPT_LEN
    longest = most if room is None else min(most, room)
    several, written = processes(), prompts
    if several.place.first:  # it writes them for all
        with Progress() as progress:
            written = with_replies(pair, prompts, gen_len, longest, skip_bad_rows=rows.skip_bad_rows, journal=journal, progress=progress)
    found: PromptSet = several.exchange(written)[0]
    bad, long = found.bad[len(prompts.bad) :], found.too_long - prompts.too_long
    _note_bad(bad, "turn")
    lost = sum(len(prompt.turns) for prompt in prompts) - (len(found) - len(prompts))
    counts = [
        (long, "too long for the models, --prompt-len or --max-length"),
        (len(bad), "bad"),
        (lost - long - len(bad), "behind bad ones"),
    ]
    if lost:
        left_out = ", ".join(f"{count} {why}" for count, why in counts if count)
        note(f"left out of {counted(lost + len(found) - len(prompts), 'later turn')}: {left_out}")
    return found


def _read(rows: PromptOptions, profiled: "ProfiledRows | None", read: "Callable[..., PromptSet]", pictures: bool) -> "PromptSet":
    """Return the prompts, and note on stderr which rows were cut or left out and which were profiled."""
    if profiled is not None and not _is_profiled(rows, profiled, pictures):
        profiled = None
    prompts = None if profiled is None or rows.start is not None else _behind(profiled, rows, read)
    if prompts is None:
        prompts = read(start=rows.start or 0)
    if profiled is None:
        return prompts
    shared = sum(profiled.start <= prompt.row < profiled.end for prompt in prompts)
    if shared:
        if rows.start is not None:
            remedy = f"pass --start {profiled.end} for held-out ones"
        elif rows.end is not None and rows.end <= profiled.end:
            remedy = f"--end {rows.end} leaves none behind row {profiled.end - 1}"
        else:
            remedy = f"no usable one lies behind row {profiled.end - 1}"
        said = f"of {counted(len(prompts), _kind(rows))}, {counted(shared, 'is a row', 'are rows')} that the {profiled.of} was profiled on"
        note(f"{said}, which flatters it: {remedy}")
    return prompts


def _is_profiled(rows: PromptOptions, profiled: "ProfiledRows", pictures: bool) -> bool:
    """Return whether the data set is the one whose rows were profiled. Files and folders are compared by their content and not by their name."""
    from treespec.data.rows import Row
    from treespec.data.sources import DATASET_NAMES, open_rows

    if rows.dataset in DATASET_NAMES or profiled.row_sha256 is None:
        return rows.dataset == profiled.dataset or open_rows(rows.dataset, rows.field)[0] == profiled.dataset
    found = next(islice(open_rows(rows.dataset, rows.field, pictures=pictures)[1], profiled.row, None), None)
    try:
        return isinstance(found, Row) and found.sha256 == profiled.row_sha256
    except DatasetError:  # a picture that cannot be read is not the one that was profiled
        return False


def _behind(profiled: "ProfiledRows", rows: PromptOptions, read: "Callable[..., PromptSet]") -> "PromptSet | None":
    """Return prompts from the rows after the profiled ones, or None if there are none."""
    if rows.end is not None and rows.end <= profiled.end:
        return None
    try:
        prompts = read(start=profiled.end)
    except NoPromptError:
        return None
    note(
        f"the {profiled.of} was profiled on rows {profiled.start} to {profiled.end - 1} of {profiled.dataset}: rows from {profiled.end} on are used"
    )
    return prompts


def _kind(rows: PromptOptions) -> str:
    """Return the word for the thing that a row makes: a prompt, or a conversation, of which `complete_conversations` makes a prompt per turn."""
    return "conversation" if rows.chat else "prompt"


def _note_bad(bad: "Sequence[BadRow]", kind: str) -> None:
    for row in bad[:_BAD_ROWS_SHOWN]:
        note(f"skipped: {row.reason}")
    if len(bad) > _BAD_ROWS_SHOWN:
        note(f"skipped: {counted(len(bad) - _BAD_ROWS_SHOWN, f'more bad {kind}')}; all are named in the output")


def _note_lengths(rows: PromptOptions, prompts: "PromptSet") -> None:
    """Note on stderr how rows became prompts, where that is not by options alone, and how many were cut."""
    if prompts.whole and not (rows.whole_prompts or rows.chat or any(prompt.picture is not None for prompt in prompts)):
        note(f"{_fewer(rows.num_prompts)} {counted(PROMPT_LEN, 'token')}, so rows are taken whole; --prompt-len cuts them")
    if prompts.halved:
        note("the first half of each row is its prompt, and the second half is the text that is measured")
    if prompts.cut:
        note(
            f"cut to {counted(prompts.most or 0, 'token')}: {prompts.cut} of {counted(len(prompts), 'prompt')}; --whole-prompts keeps rows whole"
        )


def _fewer(rows: int) -> str:
    return "no row has" if rows == 1 else f"fewer than {rows} rows have"


def _note_left_out(rows: PromptOptions, prompts: "PromptSet") -> None:
    """Note on stderr which rows, or parts of messages, were left out, and whether there were fewer than asked for."""
    _note_bad(prompts.bad, "row")
    lacks = len(prompts) < rows.num_prompts
    counts = [
        (prompts.skipped, "too short"),
        (prompts.too_long, f"longer than {counted(prompts.most or 0, 'token')}"),
        (len(prompts.bad), "bad"),
    ]
    left_out = ", ".join(f"{count} {why}" for count, why in counts if count)
    found = f"{left_out or 'none left out'} of {counted(prompts.end - prompts.start, 'row')}"
    if lacks and rows.end is not None and prompts.end < rows.end:
        found += f"; the data set ends with row {prompts.end - 1}, before --end {rows.end}"
    if lacks:
        note(f"{counted(len(prompts), _kind(rows))} of the {rows.num_prompts} asked for: {found}")
    elif left_out:
        note(f"left out: {found}")
    if prompts.left_out:
        parts = ", ".join(counted(count, *_plural(what)) for what, count in prompts.left_out.items())
        note(f"left out of their messages: {parts}")


def _plural(what: str) -> tuple[str, str]:
    """Return the words for one thing and for several: `part of the type x` and `parts of the type x`."""
    first, _, rest = what.partition(" ")
    return what, f"{first}s {rest}"
