"""A target, alone or with its draft, and loading them so that both read the same tokens and pictures."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from treespec.checks import require_whole
from treespec.data.pictures import PictureReader
from treespec.data.prompts import Prompt
from treespec.errors import ModelError
from treespec.files.fingerprint import fingerprint
from treespec.files.provenance import Provenance
from treespec.files.reading import StrPath
from treespec.models.drafts import Draft, DraftInfo
from treespec.models.facts import named
from treespec.models.info import ModelInfo, draft_of
from treespec.models.making import tree_model
from treespec.models.ngram import reads_corpus
from treespec.models.parallel.launch import require_one_way
from treespec.models.parallel.team import Team, join
from treespec.models.tree_model import TreeModel
from treespec.models.vision import TEXT_ONLY
from treespec.tables import in_short

T = TypeVar("T")


@dataclass(frozen=True)
class Target:
    """A target without a draft, with its tokenizer, EOS tokens and reader of pictures."""

    target: TreeModel
    tokenizer: PreTrainedTokenizerBase | None
    """The tokenizer; None if its folder holds none. Prompts must then come as token ids."""
    eos_token_ids: frozenset[int]
    """The EOS tokens of the target's generation config, at which `generate` stops too."""
    pictures: PictureReader | None = None
    """The reader that turns pictures into pixels; None if the target reads text only."""

    def __repr__(self) -> str:
        models = {role: f"{model.name}, {_dtype(model)} on {model.device}" for role, model in self.models.items()}
        return in_short(self, **models)

    @property
    def models(self) -> dict[str, Draft]:
        """Return the models by role."""
        return {"target": self.target}

    @property
    def team(self) -> Team | None:
        """Return the processes that hold the target together; None if this one holds it whole."""
        shard = self.target.loaded.shard
        return None if shard is None else shard.team

    def agreed(self, value: T) -> T:
        """Return a value that rests on times, and that all processes must have alike: that of the first one. Alone, it is the value itself."""
        return value if self.team is None else self.team.agreed(value)

    def least(self, value: int) -> int:
        """Return the least of the values of all processes, such as what fits into the memory of each. Alone, it is the value itself."""
        return value if self.team is None else self.team.least(value)

    def own(self, path: Path | None, work: str = "") -> Path | None:
        """Return where this process keeps a file or a folder of its work: at `path`, or in a copy beside the first process (`Team.own`).

        `work` is the fingerprint of the work, if it has one. Raises SettingsError if it is another one in another process.
        """
        if self.team is None:
            return path
        self.team.require_same({"the work (models, prompts, settings)": work})
        return self.team.own(path)

    @property
    def place(self) -> str:
        """Return the kind of device for records, which is the same in all processes: each may have a GPU of its own."""
        return self.target.device.type

    @property
    def vocabulary_size(self) -> int:
        """Return the number of first tokens that hold all that can be drafted."""
        return min(model.vocabulary_size for model in self.models.values())

    def alone(self) -> "Target":
        """Return the target without a draft."""
        return Target(self.target, self.tokenizer, self.eos_token_ids, self.pictures)

    def pixels(self, *prompts: Prompt) -> Tensor | None:
        """Return the pictures of prompts, float [pictures, 3, height, width] on the target's device; None if there are none.

        Raises DatasetError, ModelError.
        """
        found = [prompt.picture for prompt in prompts if prompt.picture is not None]
        if not found:
            return None
        if self.pictures is None:
            raise ModelError(f"the prompts have pictures, but {self.target.name} {TEXT_ONLY}")
        return torch.cat([self.pictures.pixels(picture) for picture in found]).to(self.target.device)

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what people should know of how the models were loaded, in sentences."""
        of_team = () if self.team is None or not self.team.note else (self.team.note,)
        return (*(note for model in self.models.values() for note in model.notes), *of_team)

    def release(self) -> None:
        """Undo what was changed in the modules: their weights get memory of their own again. Decoding with them needs a new pair."""
        for model in self.models.values():
            model.release()

    def describe(self) -> dict[str, Any]:
        """Return the facts that identify work with these models: names, revisions, weights, families, sizes, dtypes, device."""
        return {
            "draft": None,
            **{role: model.describe() for role, model in self.models.items()},
            "device": self.place,
            "dtype": _dtype(self.target),
            "vocabulary_size": self.target.vocabulary_size,
            "eos_token_ids": sorted(self.eos_token_ids),
            "pictures": None if self.pictures is None else self.pictures.digest,
        }

    @property
    def sha256(self) -> str:
        """Return the fingerprint of what the models are, whatever device and number type they run in: equal for files that name one pair.

        Models are known by the SHA-256 of their weights, or by name and size where no file has been read.
        """
        known = {role: model.identity() for role, model in self.models.items()}
        return fingerprint(known, sorted(self.eos_token_ids))

    def provenance(self, **known: Any) -> dict[str, Any]:
        """Return a provenance record of work done with these models, as plain JSON. It names a GPU only if they are on it."""
        facts = {role: model.describe() for role, model in self.models.items()}
        names = {role: named(known) for role, known in facts.items()}
        names |= {_adapter_role(role): known["adapter"]["name"] for role, known in facts.items() if "adapter" in known}
        stored = {role: known["quantization"] for role, known in facts.items() if known.get("quantization") is not None}
        offloaded = self.target.loaded.streamed > 0
        known["processes"] = known["processes"] if (known.get("processes") or 1) > 1 else None
        if self.team is not None:
            known = {**known, **spread(self.team)}
        if self.target.device.type != "cuda":
            known = {"gpu": None, "driver": None, **known}
        known = {"draft_kind": facts.get("draft", {}).get("kind"), "offloaded": offloaded, **known}
        return Provenance.collect(models=names, quantization=stored, dtype=_dtype(self.target), **known).to_json()


@dataclass(frozen=True, repr=False)
class Pair(Target):
    """A target together with its draft."""

    _: KW_ONLY
    draft: Draft

    @property
    def models(self) -> dict[str, Draft]:
        """See `Target.models`."""
        return {"target": self.target, "draft": self.draft}


def spread(team: Team) -> dict[str, Any]:
    """Return the fields of a provenance record that say how a target is spread over processes."""
    return {"tensor_parallel": team.size, "processes": team.size, "hosts": team.hosts, "backend": team.backend}


def _dtype(model: Draft) -> str:
    """Return the name of a model's number type, such as "float32"."""
    return str(model.dtype).removeprefix("torch.")


def _adapter_role(role: str) -> str:
    """Return the role of a model's adapter in records: `adapter` for the target's, `draft_adapter` for the draft's."""
    return "adapter" if role == "target" else f"{role}_adapter"


@dataclass(frozen=True)
class TargetInfo:
    """The facts about a target before a weight is read."""

    target: ModelInfo

    @property
    def models(self) -> dict[str, DraftInfo]:
        """See `Target.models`."""
        return {"target": self.target}

    def alone(self) -> "TargetInfo":
        """Return the target without a draft."""
        return TargetInfo(self.target)

    @property
    def vocabulary_size(self) -> int:
        """See `Target.vocabulary_size`."""
        return min(model.vocabulary_size for model in self.models.values())

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Return the first tokenizer that one of the models has."""
        return next((model.tokenizer for model in self.models.values() if model.tokenizer is not None), None)

    def load(self, *, device: str = "cpu", dtype: str = "auto", offload: bool = False, team: Team | None = None) -> Target:
        """Load the target. `offload` keeps its layers in host memory; of a `team`, each process loads its part. Raises ModelError."""
        reader = self.target.pictures
        loaded = self.target.load(device=device, dtype=dtype, offload=offload, team=team)
        model = tree_model(loaded, self.target.name, self.target.vocabulary_size)
        return Target(model, self.tokenizer, model.eos_token_ids, reader)


@dataclass(frozen=True)
class PairInfo(TargetInfo):
    """The facts about a target and a draft that fit each other, before a weight is read."""

    draft: DraftInfo

    @classmethod
    def of(
        cls,
        target: str,
        draft: str,
        *,
        revision: str | None = None,
        draft_revision: str | None = None,
        adapter: str | None = None,
        draft_adapter: str | None = None,
        corpus: Sequence[StrPath] = (),
    ) -> "PairInfo":
        """Read the facts about two folders or hub ids. Raises ModelError as `load_pair` does, except for weights and devices."""
        known = ModelInfo.of(target, revision, adapter)
        return cls(known, draft_of(known, draft, draft_revision, draft_adapter, corpus))

    @property
    def models(self) -> dict[str, DraftInfo]:
        """See `Target.models`."""
        return {"target": self.target, "draft": self.draft}

    def load(self, *, device: str = "cpu", dtype: str = "auto", offload: bool = False, team: Team | None = None) -> Pair:
        """Load both models, of a `team` this process's part of the target and the whole draft. `offload` keeps the target's layers in host memory.

        Raises ModelError.
        """
        alone = super().load(device=device, dtype=dtype, offload=offload, team=team)
        draft = self.draft.load_draft(alone.target, device=device if team is None else team.device, dtype=dtype)
        if team is not None:
            team.require_same({f"the draft {draft.name}": draft.identity()})
        return Pair(alone.target, alone.tokenizer, alone.eos_token_ids, alone.pictures, draft=draft)


def load_target(
    target: str,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    offload: bool = False,
    adapter: str | None = None,
    tensor_parallel: int = 1,
) -> Target:
    """Load a target alone. `offload` keeps its layers in host memory; an `adapter` is merged into it; for `tensor_parallel` see `load_pair`.

    Raises ModelError, SettingsError.
    """
    team = team_of(tensor_parallel, str(device), offload=offload)
    return TargetInfo(ModelInfo.of(target, revision, adapter)).load(
        device=str(device), dtype=str(dtype).removeprefix("torch."), offload=offload, team=team
    )


def load_pair(
    target: str,
    draft: str,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    draft_revision: str | None = None,
    offload: bool = False,
    adapter: str | None = None,
    draft_adapter: str | None = None,
    corpus: Sequence[StrPath] = (),
    tensor_parallel: int = 1,
) -> Pair:
    """Load both models and check that they speak the same vocabulary. `offload` keeps the target's layers in host memory.

    `adapter` and `draft_adapter` are folders of LoRA adapters, which are merged into the weights of target and draft. The draft "ngram" needs no
    model: it proposes what followed the same tokens before, in the text and in the files of UTF-8 text that `corpus` names. A model's name that
    ends in "+ngram" has them beside the model, as one draft.

    With `tensor_parallel` N, this is one of N processes that torchrun has started with the same script, and each loads its part of the target
    and the whole draft, on its own GPU (`device` "cuda") or on the CPU. All of them must make the same calls; each gets the same results.

    The target is the same with every draft and without one. The draft drafts the ids that mean the same to both: special and added tokens
    may differ, and so may the padding behind the vocabulary. The files are checked before any weight is read. Raises ModelError,
    SettingsError.
    """
    team = team_of(tensor_parallel, str(device), offload=offload)
    known = PairInfo.of(
        target, draft, revision=revision, draft_revision=draft_revision, adapter=adapter, draft_adapter=draft_adapter, corpus=corpus
    )
    return known.load(device=str(device), dtype=str(dtype).removeprefix("torch."), offload=offload, team=team)


def team_of(processes: int, device: str, *, offload: bool = False, line: str = "SCRIPT.py") -> Team | None:
    """Return the team of so many processes; None for one. `line` is what torchrun is to start, for messages. Raises SettingsError, ModelError."""
    require_whole(1, tensor_parallel=processes)
    if processes == 1:
        return None
    if offload:
        require_one_way()
    return join(processes, device, line)


def load_drafts(
    target: Target, drafts: Sequence[str | DraftInfo], *, device: str = "cpu", dtype: str = "auto", corpus: Sequence[StrPath] = ()
) -> tuple[Draft, ...]:
    """Load several drafts for one loaded target, each checked against it as by `load_pair`, or before, by `drafts_of`.

    `corpus` is for those that count n-grams. Raises ModelError.
    """
    model = target.target
    shape = None if model.vision is None else model.vision.shape
    known = ModelInfo(model.name, None, target.tokenizer, shape, model.vocabulary_size, model.max_positions, rope_note=model.rope_note)
    fitted = [draft_of(known, draft, corpus=corpus if reads_corpus(draft) else ()) if isinstance(draft, str) else draft for draft in drafts]
    return tuple(draft.load_draft(model, device=device, dtype=dtype) for draft in fitted)
