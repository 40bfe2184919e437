"""What lies beside an acceptance profile: growmaps that promise by replay what its trees give, and the profiles of a tuning run's other drafts."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from treeopt.profiles.acceptance import AcceptanceProfile, read_acceptance
from treespec.errors import ProfileError
from treespec.files.kinds import HEAD, schema_of
from treespec.files.reading import StrPath
from treespec.trees.growmap import SCHEMA, GrowMap, read_growmap


def replayed_growmaps(source: StrPath, acceptance: str, latency: str) -> Iterator[tuple[Path, GrowMap]]:
    """Yield the growmaps in the folder of an acceptance profile that were made of it and of a latency profile, and promise what replay gave.

    `source` is the file of the acceptance profile; both profiles are known by their SHA-256. Raises GrowMapError for a growmap that cannot be read.
    """
    made_of = {"acceptance_sha256": acceptance, "latency_sha256": latency}
    for path in sorted(Path(source).parent.glob("*.json")):
        if path.is_file() and _schema(path) == SCHEMA:
            grown = read_growmap(path)
            if isinstance(grown.metadata.get("acceptance_model"), Mapping) and made_of.items() <= grown.metadata.items():
                yield path, grown


def other_candidates(source: StrPath) -> Iterator[tuple[Path, Path, AcceptanceProfile]]:
    """Yield the profiles of the candidates of a tuning run whose folder holds the acceptance profile `source`: both files, and the acceptance."""
    folder = Path(source).parent
    for place in ("candidates", "pilot/candidates"):
        for path in sorted(folder.glob(f"{place}/*/*/acceptance.json")):
            latency = path.parents[1] / "latency.json"
            try:
                profile = read_acceptance(path)
            except ProfileError:  # it takes the place of no other
                continue
            if latency.is_file():
                yield path, latency, profile


def _schema(path: Path) -> str | None:
    with path.open("rb") as file:
        return schema_of(file.read(HEAD))
