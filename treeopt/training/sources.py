"""The models that training starts from: the target, whose tokenizer is often enough, and the draft, new or old."""

import gc
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from treeopt.training.folder import write_model
from treeopt.training.settings import CONFIGS, TrainSettings, TrainSources
from treeopt.training.texts import Texts
from treeopt.training.trainer import DraftTrainer, Watch
from treespec.errors import ModelError, TrainingError, TreeoptError, reason_of
from treespec.files.kinds import other_kind
from treespec.files.reading import read_bytes
from treespec.models import families
from treespec.models.heads.info import contents_of_head
from treespec.models.loading import load_config, load_model, require_model, tokenizer_or_none
from treespec.models.locating import folder_of, locate, optional_file, weights_digest
from treespec.models.quantised import quantisation, refuse_quantised
from treespec.models.tree_model import TreeModel
from treespec.models.vision import is_vision, text_module
from treespec.models.vocabularies import require_same_vocabulary, shared_rows
from treespec.models.weights import holds_weights

_MAX_CONFIG_BYTES = 1 << 20
_NOT_SHAPE = ("auto_map", "architectures", "dtype", "torch_dtype", "transformers_version", "quantization_config")
"""Keys of a configuration about its own weights, their code and their precision, and not about the model's shape."""

_PICTURE_FILES = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class Draft:
    """A float32 model to train, and the tokens that it shares with the target.

    Only the text model of a vision-language model is trained; `picture_files` belong into its folder as well.
    """

    module: PreTrainedModel
    vocabulary: int
    picture_files: tuple[Path, ...] = ()
    reads_target = False
    """Whether it cannot be trained without the target's weights, whatever the objective."""

    @property
    def config(self) -> PreTrainedConfig:
        """The configuration that bounds its positions."""
        return self.module.config

    def require_texts(self, settings: TrainSettings) -> None:
        """See `HeadToTrain.require_texts`: a model reads texts of any length."""

    def trainer(
        self, target: "Target", texts: Texts, held_out: Texts | None, settings: TrainSettings, arguments: TrainingArguments, watch: Watch
    ) -> DraftTrainer:
        """Return the Trainer of this draft. A target that does not teach is forgotten."""
        teacher = target.load()[0].module if settings.loss != "ce" else None
        if teacher is None:
            target.forget()
        return DraftTrainer(
            self.module,
            texts,
            arguments,
            loss=settings.loss,
            vocabulary=self.vocabulary,
            teacher=teacher,
            temperature=settings.temperature,
            held_out=held_out,
            callbacks=[watch],
        )

    def write(self, folder: Path, target: "Target", trainer: DraftTrainer | None, checkpoint: Path | None) -> None:
        """Save the draft that was trained, or without a `trainer` that of a checkpoint, as a plain folder. Raises OutputError."""
        module = self.module
        if trainer is None:
            assert checkpoint is not None
            module = load_model(str(checkpoint), dtype="float32").module
        module.config.use_cache = True
        write_model(folder, module, target.tokenizer, self.picture_files)


class Trained(Protocol):
    """A draft that is trained: a model, or a head of its target."""

    @property
    def vocabulary(self) -> int:
        """Number of tokens that it shares with the target."""

    @property
    def reads_target(self) -> bool:
        """Whether it cannot be trained without the target's weights, whatever the objective."""

    @property
    def config(self) -> PreTrainedConfig | None:
        """The configuration that bounds its positions; None if nothing does."""

    def require_texts(self, settings: TrainSettings) -> None:
        """Raise CapacityError if texts of these lengths cannot train it."""

    def trainer(
        self, target: "Target", texts: Texts, held_out: Texts | None, settings: TrainSettings, arguments: TrainingArguments, watch: Watch
    ) -> DraftTrainer:
        """Return its Trainer, which measures acceptance on `held_out`. Raises ModelError."""

    def write(self, folder: Path, target: "Target", trainer: DraftTrainer | None, checkpoint: Path | None) -> None:
        """Save what a Trainer has trained, or without one the weights of a checkpoint. Each file is written whole. Raises OutputError."""


class Target:
    """The target's configuration and tokenizer, which are read at once. Its weights are loaded once, when they are asked for."""

    def __init__(self, name: str, revision: str | None, dtype: str, device: str) -> None:
        """Read the configuration and the tokenizer. Raises ModelError if there is no such model, or if it cannot run trees exactly."""
        self.name, self.revision, self.dtype, self.device = name, revision, dtype, device
        config = load_config(name, revision)
        self.config, self.commit = config.get_text_config(decoder=True), getattr(config, "_commit_hash", None)
        families.check(config, name)
        self.vocabulary = int(self.config.vocab_size)
        self.tokenizer: PreTrainedTokenizerBase | None = tokenizer_or_none(name, revision)
        self._model: TreeModel | None = None

    @property
    def key(self) -> str:
        """The facts that its texts depend on: its weights (for a hub id, its name and revision) and the arithmetic. Raises ModelError."""
        weights = weights_digest(self.name) or [self.name, self.contents]
        return json.dumps([weights, self.dtype, torch.device(self.device).type])

    @property
    def contents(self) -> str | None:
        """The facts that tell its weights from others of the same name: their digest or, for a hub id, the commit. Raises ModelError."""
        return weights_digest(self.name) or self.revision or self.commit

    @property
    def end_of_text(self) -> int | None:
        """The token that ends a text."""
        own = getattr(self.tokenizer, "eos_token_id", None)
        ids: list[int] | int | None = self.config.eos_token_id if own is None else own
        return ids[0] if isinstance(ids, list) else ids

    def require_weights(self, remedy: str) -> None:
        """Raise TrainingError for a local folder without weights."""
        folder = folder_of(self.name)
        if folder.is_dir() and not holds_weights(folder):
            raise TrainingError(f"target {self.name} holds no weights; {remedy}")

    def load(self) -> tuple[TreeModel, frozenset[int]]:
        """Return the model in eval mode and its EOS ids. Raises ModelError."""
        if self._model is None:
            loaded = load_model(self.name, device=self.device, dtype=self.dtype, revision=self.revision)
            loaded.module.requires_grad_(False)
            self._model = TreeModel(loaded, name=self.name, kernels=False)
        return self._model, self._model.eos_token_ids

    def forget(self) -> None:
        """Release the memory of the weights."""
        self._model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def open_draft(sources: TrainSources, target: Target, seed: int) -> Draft:
    """Return the draft to train, on the CPU in float32. Raises ModelError: not found, another vocabulary, cannot run trees exactly."""
    if sources.config is not None:
        module = new_model(sources.config, target, seed)
        name, rows = sources.config, target.vocabulary
    else:
        assert sources.draft is not None
        name = sources.draft
        head = contents_of_head(name)
        if head is not None:
            raise TrainingError(
                f"{name} is {head[0]}, and a head that is there is not trained further; pass `kind` for a new one, or a whole model as `draft`"
            )
        files = require_model(name, sources.draft_revision)
        tokenizer = tokenizer_or_none(name, sources.draft_revision)
        require_same_vocabulary(target.name, target.tokenizer, name, tokenizer)
        loaded = load_model(files, device="cpu", dtype="float32")
        quantised = quantisation(loaded.module.config)
        if quantised is not None:
            refuse_quantised(name, quantised, "only plain weights can be trained; use the plain weights of the same model")
        module = loaded.module
        odd = next((weight for weight, values in module.named_parameters() if not bool(values.isfinite().all())), None)
        if odd is not None:
            raise ModelError(f"draft {name} cannot be trained: {odd} holds numbers that are not finite; use another draft or checkpoint")
        own = int(module.config.get_text_config(decoder=True).vocab_size)
        rows = shared_rows(target.name, target.tokenizer, target.vocabulary, name, tokenizer, own)
    TreeModel(module, name=name, kernels=False)  # tries out families that are not known to be exact
    if not is_vision(module.config):
        return Draft(module, rows)
    module.requires_grad_(False)
    text_module(module).requires_grad_(True)
    return Draft(module, rows, _picture_files(name, sources.draft_revision))


def contents(sources: TrainSources, target: Target, draft: Trained) -> dict[str, str | None]:
    """Return the facts that tell the files behind a run's names of models and configuration from others of these names. Raises ModelError."""
    found = {"target_weights": target.contents, "draft_weights": None, "config_file": None}
    if sources.draft is not None:
        commit = getattr(draft.config, "_commit_hash", None)
        found["draft_weights"] = weights_digest(sources.draft) or sources.draft_revision or commit
    elif sources.config is not None and sources.config not in CONFIGS:
        content = read_bytes(Path(sources.config), limit=_MAX_CONFIG_BYTES, error=ModelError)
        found["config_file"] = hashlib.sha256(content).hexdigest()
    return found


def _picture_files(name: str, revision: str | None) -> tuple[Path, ...]:
    """Return the files of a vision-language model that say how pictures are prepared, as far as it has them."""
    place = locate(name, revision)
    found = (optional_file(place, file, revision) for file in _PICTURE_FILES)
    return tuple(path for path in found if path is not None)


def new_model(config: str, target: Target, seed: int) -> PreTrainedModel:
    """Return a model with random weights, with the target's vocabulary and special tokens. Raises ModelError."""
    settings = CONFIGS[config] if config in CONFIGS else _read_config(Path(config))
    special = {f"{token}_token_id": getattr(target.config, f"{token}_token_id", None) for token in ("bos", "eos", "pad")}
    ends = special["eos_token_id"] if isinstance(special["eos_token_id"], list) else [special["eos_token_id"]]
    if special["pad_token_id"] in [special["bos_token_id"], *ends]:
        special["pad_token_id"] = None  # the padding token's embedding is not trained, but those of the others are
    if settings["model_type"] not in CONFIG_MAPPING:
        raise ModelError(
            f'configuration {config} has the model_type "{settings["model_type"]:.40}", which transformers does not know; correct it (llama, qwen2 ...)'
        )
    families.require_sizes(settings, config)
    try:
        made: PreTrainedConfig = AutoConfig.for_model(**{**settings, **special, "vocab_size": target.vocabulary})
        family = families.check(made, config)
        attention: dict[str, Any] = {} if family.attention is None else {"attn_implementation": family.attention}
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(made, dtype=torch.float32, **attention)  # type: ignore[no-untyped-call]
    except (TreeoptError, MemoryError):
        raise
    except Exception as error:  # transformers checks settings here and there, in its own ways
        raise ModelError(f"no model can be made from configuration {config}: {reason_of(error)}; correct it") from error
    return model


def _read_config(path: Path) -> dict[str, Any]:
    """Return a transformers configuration file, without the keys that belong to the model that it comes from and not to its shape."""
    if not path.suffix and not path.exists():
        raise ModelError(f"there is no configuration {path}; pass {', '.join(CONFIGS)}, or a config.json of transformers")
    data = read_bytes(path, limit=_MAX_CONFIG_BYTES, error=ModelError)
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as e:
        other = other_kind(path, data, "a config.json of transformers", "pass one")
        raise ModelError(other or f"{path} is no JSON: {e}; pass a config.json of transformers") from e
    if not isinstance(found, dict) or not isinstance(found.get("model_type"), str):
        raise ModelError(f'{path} is no configuration of transformers: it names no "model_type"')
    return {key: value for key, value in found.items() if key not in _NOT_SHAPE and not key.startswith("_")}
