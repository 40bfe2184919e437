"""The check that two models have one vocabulary, and the number of their logits that are tokens of it."""

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


def known_ids(target: str, tokenizer: PreTrainedTokenizerBase | None, draft: str, draft_tokenizer: PreTrainedTokenizerBase | None) -> int:
    """Return how many of the first ids mean the same to a target and to a draft that may lack its added tokens. Raises ModelError."""
    if tokenizer is None or draft_tokenizer is None:
        raise ModelError(f"a text-only draft for {target} needs the tokenizers of both; put the tokenizer files into both folders")
    ours, theirs, added = tokenizer.get_vocab(), draft_tokenizer.get_vocab(), set(tokenizer.get_added_vocab())
    known = min((i for _, i in ours.items() ^ theirs.items()), default=len(ours))
    if any(i >= known and token not in added for token, i in ours.items()):
        require_same_vocabulary(target, tokenizer, draft, draft_tokenizer)
    return known


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
