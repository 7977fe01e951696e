"""What is a run's state behind a URL? One object that names all others.

    heads/000000012.json                        the newest one is the state
    files/000003/journal/000001.jsonl@000000012 written by attempt 3, and never changed

A file that has grown consists of several objects. Whoever makes the newest head has the run; a
driver that finds a newer one than its own has been taken over.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rlhf_ray.durable.attempts import Owner
from rlhf_ray.durable.manifest import NewerFormat
from rlhf_ray.durable.objects import Objects
from rlhf_ray.errors import BadData

FORMAT = 1
HEADS = "heads"


@dataclass(frozen=True, slots=True)
class Piece:
    """One object, and how many bytes of a file it holds."""

    key: str
    size: int


@dataclass(frozen=True, slots=True)
class Kept:
    """One file of a run folder."""

    sha256: str
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        return sum(piece.size for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Head:
    """A run folder as it was at one moment."""

    number: int
    attempt: int
    """Whose: drivers are counted from 1."""
    owner: Owner
    ended: bool = False
    """Whether its driver has let go of the run."""
    files: Mapping[str, Kept] = field(default_factory=dict)
    """By their path below the run folder."""

    @property
    def key(self) -> str:
        return head_key(self.number)

    def after(self, files: Mapping[str, Kept], *, ended: bool) -> "Head":
        """The one its driver makes after it."""
        return Head(self.number + 1, self.attempt, self.owner, ended, files)

    def keys(self) -> set[str]:
        """All objects it needs."""
        return {piece.key for kept in self.files.values() for piece in kept.pieces}

    def to_bytes(self) -> bytes:
        body = {"format": FORMAT, **asdict(self)}
        return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def of(cls, data: bytes, where: str) -> "Head":
        """Raises BadData for what is none, NewerFormat where a later version wrote it."""
        try:
            body: dict[str, Any] = json.loads(data)
            if (found := body.pop("format")) != FORMAT:
                raise NewerFormat(
                    f"{where} has format {found}, this version of rlhf_ray reads {FORMAT}; go on "
                    "with the version that wrote it"
                )
            files = {
                _checked(name): Kept(one["sha256"], tuple(Piece(**it) for it in one["pieces"]))
                for name, one in body.pop("files").items()
            }
            if not all(kept.pieces for kept in files.values()):
                raise ValueError("a file without objects")
            return cls(owner=Owner(**body.pop("owner")), files=files, **body)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise BadData(
                f"{where} is no state of a run ({error!r}); restore it from a copy"
            ) from error


def newest(objects: Objects) -> Head | None:
    """The state of the run; None before there was one.

    Raises BadData where it cannot be read.
    """
    for _ in range(3):  # it may be replaced between the list and the look
        numbers = numbered(objects)
        if not numbers:
            return None
        key = head_key(numbers[-1])
        data = objects.read(key)
        if data is not None:
            return Head.of(data, f"{objects.url}/{key}")
    raise BadData(f"{objects.url}/{HEADS} changes faster than it can be read; see who writes there")


def head_key(number: int) -> str:
    return f"{HEADS}/{number:09d}.json"


def numbered(objects: Objects) -> list[int]:
    """Numbers of the heads that are there, in order."""
    stems = [name.rpartition("/")[2].removesuffix(".json") for name in objects.names(HEADS)]
    return sorted(int(stem) for stem in stems if stem.isdigit())


def _checked(name: str) -> str:
    """A path that stays below the run folder."""
    if not all(part not in ("", ".", "..") for part in name.split("/")) or "\0" in name:
        raise ValueError(f"a file '{name}'")
    return name
