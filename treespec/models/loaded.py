"""LoadedModel: a transformers module together with what is known of its weights, which nobody writes on the module itself."""

from dataclasses import dataclass

from transformers import PreTrainedModel

from treespec.models.offload.streaming import streamed_bytes


@dataclass(frozen=True)
class LoadedModel:
    """What `load_model` returns, and what a `TreeModel` is made of. Use `dataclasses.replace` for a part of the same model."""

    module: PreTrainedModel
    digest: str | None = None
    """The `weights_digest` of the folder that it was loaded from; None for a hub id, and for a module that was made in memory."""
    revision: str | None = None
    """The commit on the hub; None where none is known."""
    streamed: int = 0
    """Bytes that a pass copies from the host's memory; 0 where the module is not offloaded."""

    @classmethod
    def of(cls, model: "PreTrainedModel | LoadedModel") -> "LoadedModel":
        """Return what is known of a module that was made or loaded elsewhere; a LoadedModel is returned as it is."""
        if isinstance(model, LoadedModel):
            return model
        return cls(model, revision=getattr(model.config, "_commit_hash", None), streamed=streamed_bytes(model))
