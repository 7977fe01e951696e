"""From objects to a folder: which files are a run's state, and how do they come here?"""

from pathlib import Path

from rlhf_ray.durable import fsio
from rlhf_ray.durable.head import Head, Kept, newest
from rlhf_ray.durable.objects import Objects
from rlhf_ray.errors import BadData

FETCHED = ".fetched"
HERE_ALONE = (".lock", "logs", "scale.json")
"""At the top of a run folder: what concerns one machine alone."""
_HALF = (".tmp-", ".trash-", FETCHED)


def tree(folder: Path, *, half: bool = False) -> dict[str, Path]:
    """Files of a run folder that are its state, by name, sorted; `half`: also what is half written
    or half deleted."""
    found = {}
    for path in fsio.below(folder):
        parts = path.relative_to(folder).parts
        if path.is_dir() or parts[0] in HERE_ALONE:
            continue
        whole = not any(part.startswith(_HALF) for part in parts)
        if half or (whole and not (path.name.startswith(".") and path.suffix == ".tmp")):
            found["/".join(parts)] = path
    return {name: found[name] for name in sorted(found)}


def pull(objects: Objects, head: Head, folder: Path) -> None:
    """Make `folder` what `head` says, but for what concerns this machine alone.

    What is there already is not fetched again.

    Raises BadData where an object is not what was written.
    """
    fsio.make_dir(folder)
    for name, path in tree(folder, half=True).items():
        if name not in head.files:
            fsio.remove(path)
    lacking = {name: one for name, one in head.files.items() if not _holds(folder / name, one)}
    fetched = folder / FETCHED
    fsio.make_dir(fetched)
    for name, parts in _fetched(objects, lacking, fetched).items():
        fsio.make_dir((folder / name).parent)
        fsio.atomic_join(folder / name, parts)
        for part in parts:
            fsio.remove(part)
        if not _holds(folder / name, head.files[name]):
            keys = ", ".join(piece.key for piece in head.files[name].pieces)
            raise BadData(
                f"{objects.url}: '{name}' is not as it was written; put back {keys} from a copy"
            )
    fsio.remove_dir(fetched)
    _remove_empty(folder)


def fetch(url: str, folder: Path) -> None:
    """The newest state of a run into a new folder.

    Raises BadData where there is something already, or no run behind the URL.
    """
    objects = Objects(url)
    if folder.exists():
        raise BadData(f"{folder} is there already; name a new folder")
    head = newest(objects)
    if head is None:
        raise BadData(f"there is no run in {url}; give the --run-dir it was started with")
    pull(objects, head, folder)


def _holds(path: Path, kept: Kept) -> bool:
    known = path.is_file() and path.stat().st_size == kept.size
    return known and fsio.sha256_of(path) == kept.sha256


def _fetched(objects: Objects, lacking: dict[str, Kept], folder: Path) -> dict[str, list[Path]]:
    """The objects of each file, as files in `folder`."""
    places = {
        name: [folder / f"{number}-{part}" for part in range(len(kept.pieces))]
        for number, (name, kept) in enumerate(lacking.items())
    }
    objects.download(
        {
            piece.key: place
            for name, kept in lacking.items()
            for piece, place in zip(kept.pieces, places[name], strict=True)
        }
    )
    return places


def _remove_empty(folder: Path) -> None:
    """A checkpoint that has lost its files would count as a damaged one."""
    for path in sorted((one for one in fsio.below(folder) if one.is_dir()), reverse=True):
        if path != folder / "logs" and not fsio.entries(path):
            fsio.remove_dir(path)
