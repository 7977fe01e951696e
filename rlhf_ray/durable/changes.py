"""What of a run folder is not behind its URL yet?"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rlhf_ray.durable import fsio
from rlhf_ray.durable.head import Head, Kept, Piece
from rlhf_ray.durable.pull import tree

MOST_PIECES = 64
"""A file of more objects than this is written anew."""
GROWING = "critiques/"
"""Files that are appended to while a run is pushed; what they held at first is what is sent."""


@dataclass(frozen=True, slots=True)
class Stat:
    """A file as it was when it was looked at."""

    size: int
    changed_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> "Stat | None":
        """None for a file that is gone."""
        try:
            found = path.stat()
        except FileNotFoundError:
            return None
        return cls(found.st_size, found.st_mtime_ns, found.st_ino)


@dataclass(slots=True)
class Changes:
    """A run folder at one moment, and what of it is not behind the URL yet."""

    files: dict[str, Kept] = field(default_factory=dict)
    seen: dict[str, Stat] = field(default_factory=dict)
    wholes: dict[str, Path] = field(default_factory=dict)
    tails: dict[str, bytes] = field(default_factory=dict)
    sent: list[str] = field(default_factory=list)

    def stand(self, folder: Path) -> bool:
        """Whether what was sent is still there as it was."""
        return all(_stands(name, self.seen[name], Stat.of(folder / name)) for name in self.sent)


def changes(
    folder: Path, head: Head, known: Mapping[str, Stat], *, key: Callable[[str], str]
) -> Changes:
    """A run folder as it is now, and what of it is not in `head`. `known`: files as they were when
    they were found to be in it. `key`: of the object that a file is put into."""
    found = Changes()
    for name, path in tree(folder).items():
        seen, kept = Stat.of(path), head.files.get(name)
        if seen is None:
            continue
        found.seen[name] = seen
        if kept is not None and seen == known.get(name):
            found.files[name] = kept
            continue
        found.files[name], tail = _described(name, path, seen.size, kept, key(name))
        if tail is None:
            found.wholes[key(name)] = path
        elif tail:
            found.tails[key(name)] = tail
        found.sent.append(name)
    return found


def _stands(name: str, seen: Stat, now: Stat | None) -> bool:
    if now is not None and name.startswith(GROWING):
        return now.inode == seen.inode and now.size >= seen.size
    return now == seen


def _described(
    name: str, path: Path, size: int, known: Kept | None, key: str
) -> tuple[Kept, bytes | None]:
    """The first `size` bytes of a file, and what of them is not behind the URL yet: their end, or
    None for the whole file."""
    if (
        known is not None
        and size >= known.size
        and len(known.pieces) < MOST_PIECES
        and fsio.sha256_of(path, first=known.size) == known.sha256
    ):
        tail = fsio.read_bytes(path, start=known.size)[: size - known.size]
        if not tail:
            return known, b""
        return Kept(fsio.sha256_of(path, first=size), (*known.pieces, Piece(key, len(tail)))), tail
    kept = Kept(fsio.sha256_of(path, first=size), (Piece(key, size),))
    return kept, fsio.read_bytes(path)[:size] if name.startswith(GROWING) else None
