"""HeadInfo: the facts about a head before a weight is read, and the check of its build against its target."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from treespec.models.contents import Contents, contents_of
from treespec.models.heads.bound import BoundHead
from treespec.models.heads.files import HeadFiles
from treespec.models.heads.loading import HEADS, PLANS, load_head
from treespec.models.heads.target import HeadTarget
from treespec.models.locating import explained, folder_of, locate
from treespec.models.recognised import HeadKind, head_kind
from treespec.models.tree_model import TreeModel


@dataclass(frozen=True)
class HeadInfo:
    """The facts about a head for a target. It proposes tokens of the target, and goes by the target's positions."""

    name: str
    kind: HeadKind
    vocabulary_size: int
    max_positions: int | None = None
    rope_note: str = ""
    quantization: str | None = None
    tokenizer: PreTrainedTokenizerBase | None = field(default=None, repr=False)
    parameters: int = 0
    """Numbers in the tensors of its files."""

    @property
    def has_weights(self) -> bool:
        """See `DraftInfo.has_weights`."""
        return True

    def positions_of(self, prompt: Sequence[int]) -> int:
        """Return the number of positions that a prompt takes."""
        return len(prompt)

    def load_draft(self, target: TreeModel, *, device: str, dtype: str) -> BoundHead:
        """Load the head for its target, in the type and on the device of the target. Raises ModelError."""
        return BoundHead(load_head(self.name, HeadTarget.of(target.module, target.name, target.loaded.shard)), target)


def contents_of_head(name: str) -> tuple[HeadKind, Contents] | None:
    """Return the kind of a head that is run, and its files; None for anything else, and for what lies in no local folder. Raises ModelError."""
    if not folder_of(name).is_dir():
        return None
    place = locate(name)
    with explained(name, place, None, "config.json"):
        contents = None if place.gguf is not None else contents_of(name, place, None)
    kind = None if contents is None else head_kind(contents)
    return None if contents is None or kind is None or kind.name not in HEADS else (kind, contents)


def parameters_of(name: str, contents: Contents) -> int:
    """Return how many numbers the files of a head hold, by their headers. Raises ModelError for damaged files and for none."""
    return sum(math.prod(shape) for shape in HeadFiles.of(name, contents).shapes.values())


def require_build(name: str, kind: HeadKind, contents: Contents, target: str, config: PreTrainedConfig) -> None:
    """Raise ModelError if the files of a head disagree with each other, or with the configuration of its target. No weight is read."""
    text = config.get_text_config(decoder=True)
    sizes = torch.empty(text.vocab_size, text.hidden_size, device="meta")
    PLANS[kind.name](HeadFiles.of(name, contents), HeadTarget(target, text.num_hidden_layers, sizes, sizes))
