"""The comparison of two models' vocabularies: one and the same for training, and for decoding the ids that mean the same to both."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from treespec.errors import ModelError, counted


def require_same_vocabulary(
    target: str, tokenizer: PreTrainedTokenizerBase | None, draft: str, draft_tokenizer: PreTrainedTokenizerBase | None
) -> None:
    """Raise ModelError if an id means different tokens to two models of these names. Without both tokenizers nothing is checked."""
    if tokenizer is None or draft_tokenizer is None:
        return
    ours, theirs = tokenizer.get_vocab(), draft_tokenizer.get_vocab()
    if ours == theirs:
        return
    odd = sorted(ours.items() ^ theirs.items(), key=lambda item: (item[1], item[0]))
    token, index = odd[0]
    added = set(tokenizer.get_added_vocab()) | set(draft_tokenizer.get_added_vocab())
    if all(token in added for token, _ in odd):
        names = ", ".join(repr(token) for token, _ in odd[:4])
        raise ModelError(
            f"target {target} ({counted(len(ours), 'token')}) and draft {draft} ({counted(len(theirs), 'token')}) share a "
            f"vocabulary but for added tokens: {names}; "
            "copy the target's tokenizer files into the draft's folder, with resize_token_embeddings where it has fewer rows"
        )
    raise ModelError(
        f"target {target} ({counted(len(ours), 'token')}) and draft {draft} ({counted(len(theirs), 'token')}) have different vocabularies, first at id {index} "
        f"({token!r}): a draft must share the target's tokenizer; use another draft or train one for this target"
    )


@dataclass(frozen=True)
class SharedIds:
    """The ids of a target's vocabulary that mean the same to its draft. The draft gives all others probability 0."""

    size: int
    """No id from here on means the same to both."""
    others: tuple[int, ...] = ()
    """The ids below `size` that do not."""
    read_as: tuple[tuple[int, int], ...] = ()
    """For some of the ids that do not mean the same: (id, the id that the draft has for the same token)."""

    def all_of(self, rows: int) -> bool:
        """Return whether every one of the first `rows` ids means the same."""
        return self.size >= rows and not self.others


def shared_ids(
    target: str,
    tokenizer: PreTrainedTokenizerBase | None,
    target_rows: int,
    draft: str,
    draft_tokenizer: PreTrainedTokenizerBase | None,
    draft_rows: int,
    same: frozenset[int] = frozenset(),
) -> SharedIds:
    """Return which of a target's ids mean the same to a draft. Each has so many logits, of which the last may be padding.

    Special and added tokens may differ: an id means the same if its tokens have one name or one role (such as EOS), or if it is one of
    those known to be the `same`. Without both tokenizers all ids count as the same, and the models must have equally many. Raises ModelError
    if one id is a token of the target's text and another token of the draft.
    """
    rows = min(target_rows, draft_rows)
    if tokenizer is None or draft_tokenizer is None:
        if target_rows != draft_rows:
            raise ModelError(
                f"target {target} has {target_rows} logits and draft {draft} has {draft_rows}, and without both tokenizers their vocabularies "
                "cannot be compared; use models of one vocabulary, or put the tokenizer files into both folders"
            )
        return SharedIds(rows)
    ours, theirs = tokenizer.get_vocab(), draft_tokenizer.get_vocab()
    odd = {index for _, index in ours.items() ^ theirs.items()}
    if not odd:
        return SharedIds(rows)
    names, roles = {index: token for token, index in ours.items()}, _roles(tokenizer, draft_tokenizer)
    special = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}
    text = min((i for i in odd & set(theirs.values()) if i in names and names[i] not in special), default=None)
    odd -= {ours_id for ours_id, theirs_id in roles.items() if ours_id == theirs_id} | same
    shared = [index for index in range(rows) if index not in odd]
    if text is not None or not shared:
        at = "" if text is None else f", first at id {text} ({names[text]!r})"
        raise ModelError(
            f"target {target} ({len(ours)} tokens) and draft {draft} ({len(theirs)} tokens) have different vocabularies{at}: "
            "a draft must share the target's tokenizer, but for special and added tokens; use another draft or train one for this target"
        )
    size = shared[-1] + 1
    found = ((index, theirs.get(names[index], roles.get(index))) for index in sorted(odd) if index in names)
    read_as = tuple((index, other) for index, other in found if index < target_rows and other is not None and other < draft_rows)
    return SharedIds(size, tuple(sorted(index for index in odd if index < size)), read_as)


def _roles(tokenizer: PreTrainedTokenizerBase, draft_tokenizer: PreTrainedTokenizerBase) -> dict[int, int]:
    """Return the draft's id of each of the target's special tokens that has a role (BOS, EOS, unknown, padding) in both tokenizers."""
    pairs = ((getattr(tokenizer, role, None), getattr(draft_tokenizer, role, None)) for role in _ROLES)
    return {ours: theirs for ours, theirs in pairs if ours is not None and theirs is not None}


_ROLES = ("pad_token_id", "unk_token_id", "bos_token_id", "eos_token_id")
"""The roles; if one token has several, the last one counts."""


def shared_rows(
    target: str,
    tokenizer: PreTrainedTokenizerBase | None,
    target_rows: int,
    draft: str,
    draft_tokenizer: PreTrainedTokenizerBase | None,
    draft_rows: int,
) -> int:
    """Return how many of the first logits are tokens of both, since each model may pad the vocabulary differently. Raises ModelError."""
    if target_rows == draft_rows:
        return target_rows
    if tokenizer is None or draft_tokenizer is None:
        raise ModelError(
            f"target {target} has {counted(target_rows, 'logit')} and draft {draft} has {draft_rows}, and without both tokenizers their vocabularies "
            "cannot be compared; use models of one vocabulary, or put the tokenizer files into both folders"
        )
    ids = max(tokenizer.get_vocab().values()) + 1
    if ids > min(target_rows, draft_rows):
        raise ModelError(
            f"the tokenizer has ids up to {ids - 1}, but target {target} has {counted(target_rows, 'logit')} and draft {draft} has {draft_rows}; "
            "use a draft with the target's whole vocabulary"
        )
    return ids
