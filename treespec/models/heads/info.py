"""HeadInfo: the facts about a head before a weight is read, and the check of its build against its target."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from treespec import hub
from treespec.models.contents import Contents
from treespec.models.heads.bound import BoundHead
from treespec.models.heads.files import HeadFiles
from treespec.models.heads.loading import HEADS, PLANS, load_head, read_contents
from treespec.models.heads.target import HeadTarget
from treespec.models.locating import folder_of
from treespec.models.recognised import HeadKind
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
    revision: str | None = None
    """The revision of a head on the hub that was asked for."""

    @property
    def has_weights(self) -> bool:
        """See `DraftInfo.has_weights`."""
        return True

    def positions_of(self, prompt: Sequence[int]) -> int:
        """Return the number of positions that a prompt takes."""
        return len(prompt)

    def load_draft(self, target: TreeModel, *, device: str, dtype: str) -> BoundHead:
        """Load the head for its target, in the type and on the device of the target. Raises ModelError."""
        head = load_head(self.name, HeadTarget.of(target.module, target.name, target.loaded.shard), revision=self.revision)
        return BoundHead(head, target)


def contents_of_head(name: str, revision: str | None = None) -> tuple[HeadKind, Contents] | None:
    """Return the kind of a head that is run, and its files, which are fetched if it is on the hub; None for anything else. Raises ModelError."""
    if not folder_of(name).is_dir() and not hub.is_repository_id(name):
        return None
    contents, kind = read_contents(name, revision)
    return None if contents is None or kind is None or kind.name not in HEADS else (kind, contents)


def parameters_of(name: str, contents: Contents) -> int:
    """Return how many numbers the files of a head hold, by their headers. Raises ModelError for damaged files and for none."""
    return sum(math.prod(shape) for shape in HeadFiles.of(name, contents).shapes.values())


def require_build(name: str, kind: HeadKind, contents: Contents, target: str, config: PreTrainedConfig) -> None:
    """Raise ModelError if the files of a head disagree with each other, or with the configuration of its target. No weight is read."""
    text = config.get_text_config(decoder=True)
    sizes = torch.empty(text.vocab_size, text.hidden_size, device="meta")
    PLANS[kind.name](HeadFiles.of(name, contents), HeadTarget(target, text.num_hidden_layers, sizes, sizes))
