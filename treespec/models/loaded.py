"""LoadedModel: a transformers module together with facts about its weights, which are kept here and not on the module."""

from dataclasses import dataclass

from transformers import PreTrainedConfig, PreTrainedModel

from treespec.models.adapters import Adapter
from treespec.models.offload.streaming import streamed_bytes
from treespec.models.parallel.shard import Shard


@dataclass(frozen=True)
class LoadedModel:
    """The result of `load_model`, from which a `TreeModel` is made. Use `dataclasses.replace` for a part of the same model."""

    module: PreTrainedModel
    digest: str | None = None
    """The `weights_digest` of the folder or GGUF file that it was loaded from; None for a hub id and for a module made in memory."""
    revision: str | None = None
    """The commit on the hub; None if none is known."""
    streamed: int = 0
    """Bytes that a pass copies from host memory; 0 if the module is not offloaded."""
    format: str = "safetensors"
    """The kind of file that the weights were read from: safetensors, bin (pickles of PyTorch) or gguf."""
    quantization: str | None = None
    """The type that the file's weights had and what was done to them, as in "Q4_1, dequantised"; None if they were not quantised."""
    adapter: Adapter | None = None
    """The adapter that was merged into the weights."""
    notes: tuple[str, ...] = ()
    """Sentences about how it was loaded, for people."""
    shard: Shard | None = None
    """The part of the model that this process holds; None if it holds the whole model."""

    @classmethod
    def of(cls, model: "PreTrainedModel | LoadedModel") -> "LoadedModel":
        """Return the LoadedModel of a module that was made or loaded elsewhere; a LoadedModel is returned unchanged."""
        if isinstance(model, LoadedModel):
            return model
        return cls(model, revision=getattr(model.config, "_commit_hash", None), streamed=streamed_bytes(model))


def return_objects(module: PreTrainedModel) -> None:
    """Undo what a configuration says of the form in which modules return their results: tuples, attentions, hidden states."""
    for part in module.modules():
        config = getattr(part, "config", None)
        if isinstance(config, PreTrainedConfig):
            config.return_dict, config.output_attentions, config.output_hidden_states = True, False, False
