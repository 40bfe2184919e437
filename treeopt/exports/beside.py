"""Promises by replay: growmaps in the folder of an acceptance profile tell better what their trees give than the chances of ranks do."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from treeopt.exports.choosing import Setting, replayed
from treeopt.optimizer.given import Given
from treeopt.optimizer.selection import replay_grounds
from treeopt.profiles.latency import LatencyProfile
from treespec.files.kinds import HEAD, schema_of
from treespec.files.reading import PipeablePath, StrPath
from treespec.trees.growmap import SCHEMA, GrowMap, read_growmap


def replayed_settings(
    chosen: Sequence[Setting],
    given: Given,
    times: Mapping[int, LatencyProfile],
    files: Mapping[int, PipeablePath | None],
    context: int | None,
) -> tuple[list[Setting], list[str]]:
    """Return settings of fixed trees with what growmaps beside the profiles promise of these trees by replay, and sentences on these promises."""
    settings, said = [], []
    for setting in chosen:
        file = files[setting.batch]
        if given.source is not None and file is not None and setting.speculates:
            for path, grown in _replayed_growmaps(given.source, given.digest, file.sha256):
                if grown.tree == setting.tree and grown.metadata.get("context") == times[setting.batch].at_context(context).context:
                    of = str(grown.metadata["acceptance_model"].get("chosen"))
                    said.append(f"{path} was made of these profiles and has this tree: {replay_grounds(of, setting.tokens_per_step)}")
                    setting = replayed(setting, grown)
                    break
        settings.append(setting)
    return settings, said


def _replayed_growmaps(source: StrPath, acceptance: str, latency: str) -> Iterator[tuple[Path, GrowMap]]:
    """Yield the growmaps in the folder of an acceptance profile that were made of it and of a latency profile, and promise what replay gave.

    `source` is the file of the acceptance profile; both profiles are known by their SHA-256. Raises GrowMapError for a growmap that cannot be read.
    """
    made_of = {"acceptance_sha256": acceptance, "latency_sha256": latency}
    for path in sorted(Path(source).parent.glob("*.json")):
        if path.is_file() and _schema(path) == SCHEMA:
            grown = read_growmap(path)
            if isinstance(grown.metadata.get("acceptance_model"), Mapping) and made_of.items() <= grown.metadata.items():
                yield path, grown


def _schema(path: Path) -> str | None:
    """Return the schema that a file states; None for one that cannot be read, which tells of no growmap."""
    try:
        with path.open("rb") as file:
            return schema_of(file.read(HEAD))
    except OSError:
        return None
