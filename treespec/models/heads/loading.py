"""Loading a head beside its target: what kind it is, is told by its config.json and the names of its tensors before a weight is read."""

from collections.abc import Callable, Mapping

from huggingface_hub import snapshot_download

from treespec.decoding.protocol import LevelHead, ParallelHead
from treespec.errors import ModelError, listed
from treespec.models.contents import Contents, contents_of
from treespec.models.heads.borrowed import Embedding
from treespec.models.heads.dflash import DFlashHead, DFlashPlan
from treespec.models.heads.eagle import EagleHead, EaglePlan
from treespec.models.heads.eagle3 import Eagle3Head, Eagle3Plan
from treespec.models.heads.files import HeadFiles
from treespec.models.heads.medusa import MedusaHead, MedusaPlan
from treespec.models.heads.target import HeadTarget
from treespec.models.locating import Place, explained, locate
from treespec.models.recognised import HeadKind, head_kind

Loader = Callable[[HeadFiles, HeadTarget, Embedding | None], LevelHead | ParallelHead]
"""The type of the functions that check the files of a head against its target and load it."""
HEADS: Mapping[str, Loader] = {
    "eagle3": Eagle3Head.load,
    "eagle": EagleHead.load,
    "medusa": MedusaHead.load,
    "dflash": DFlashHead.load,
}
"""The kinds of heads that are run, by the names of `recognised.HeadKind`."""
PLANS: Mapping[str, Callable[[HeadFiles, HeadTarget], object]] = {
    "eagle3": Eagle3Plan.of,
    "eagle": EaglePlan.of,
    "medusa": MedusaPlan.of,
    "dflash": DFlashPlan.of,
}
"""The functions that check the files of each kind against a target, of whose weights they read the shapes alone."""


_FILES = ["*.json", "*.safetensors", "*.bin", "*.pt"]
"""The files of a head on the hub that are fetched: its configuration and its weights."""


def read_contents(name: str, revision: str | None = None) -> tuple[Contents | None, HeadKind | None]:
    """Return the files of a model, before a weight is read, and the kind of a head that they are; None where there are no such files or it is no head.

    A head on the hub of a kind that is run is fetched, weights included: it is small, and its files say whether it fits its target. Its kind must then
    be told by its config.json, as those of EAGLE-3, Medusa and DFlash do. Raises ModelError.
    """
    place = locate(name, revision)
    with explained(name, place, revision, "its weights or config.json" if place.local else "config.json"):
        contents = None if place.gguf is not None else contents_of(name, place, revision)
        kind = None if contents is None else head_kind(contents)
        if kind is not None and kind.name in HEADS and not place.local:
            fetched = snapshot_download(place.path, revision=revision, allow_patterns=_FILES)
            contents = contents_of(name, Place(fetched, local=True), revision)
        return contents, kind


def load_head(
    name: str, target: HeadTarget, *, embedding: Embedding | None = None, revision: str | None = None
) -> LevelHead | ParallelHead:
    """Load the head in a folder, or of a hub id, for its target, in the type and on the device of the target's embedding.

    The files are safetensors, or pickles of PyTorch after a check that they hold weights alone; no code from files is run. `embedding`: whose
    `embed_tokens` an EAGLE head reads tokens with, if its files hold one.

    Raises ModelError for what is no head or one of a kind that is not run, for files that are damaged, incomplete or contradict themselves,
    and for a head that was made for another target.
    """
    contents, kind = read_contents(name, revision)
    if contents is None or kind is None:
        raise ModelError(f"{name} is no head that reads a target's hidden states; load it as a model of its own")
    if kind.name not in HEADS:
        raise ModelError(f"{name} is {kind}, and only heads of the kinds {listed(sorted(HEADS))} are run; use one of these")
    with explained(name, Place(str(contents.folder), local=True), revision, "its weights or config.json"):
        return HEADS[kind.name](HeadFiles.of(name, contents), target, embedding)
