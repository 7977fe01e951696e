"""What has this run done so far, in order, and is that story undamaged?

Segments `000001.jsonl`, `000002.jsonl`, ... hold one record per line; each attempt writes its own.
Every record carries the hash of the line before it, over segment borders, and one of itself.
"""

import base64
import hashlib
import io
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from rlhf_ray.durable import fsio
from rlhf_ray.errors import BadData

Body = dict[str, Any]

_BEFORE_THE_FIRST = (-1, "0" * 16)
_SUMMED = re.compile(rb'(.*),"sum":"([0-9a-f]{16})"}\n')


@dataclass(frozen=True, slots=True)
class Record:
    """One line; without wall times, so that equal runs have equal journals."""

    seq: int
    kind: str
    key: str
    prev: str
    """First 16 hex digits of the SHA-256 of the line before, its newline included."""
    body: Body


class Journal:
    """Append-only memory of a run.

    Opening reads and verifies all of it. What an interrupted append left at the very end is moved
    to `torn-<segment>.txt`; any other damage is `BadData`. The segment of this attempt is made by
    its first append, so opening a journal to read it adds nothing.

    What an attempt wrote after another had taken over is no part of the story: the segment of the
    other follows an earlier line.
    """

    def __init__(self, folder: Path, check: Callable[[], None] = lambda: None) -> None:
        """`folder` holds the segments; it is made where there is none. `check` raises once this
        attempt may write no more.

        Raises BadData for damage; see also `audit` for what a journal cannot know of itself.
        """
        fsio.make_dir(folder)
        self.folder = folder
        self.check = check
        self._position = _BEFORE_THE_FIRST
        self._hashes: list[str] = []  # of the lines, by `seq`
        self._bodies: dict[str, dict[str, Body]] = {}  # kind -> key -> last body
        self._read_so_far: list[tuple[Record, bytes]] = []
        self.segments = _segments(folder)
        odd = ""  # a fragment that ends the segment before
        for path in self.segments:
            odd = self._read(path, odd, is_last=path == self.segments[-1])
        self._read_so_far = []
        # What a killed attempt wrote last may be in memory only; from here on it is counted on.
        fsio.fsync_tree(folder)
        self._path = folder / _name(len(self.segments) + 1)
        self._segment: fsio.LineFile | None = None

    @property
    def position(self) -> tuple[int, str]:
        """`seq` and hash (16 hex digits) of the last line; (-1, zeros) while there is none."""
        return self._position

    def holds(self, seq: int, sha: str) -> bool:
        """Whether `position` has once been this."""
        return (seq, sha) == _BEFORE_THE_FIRST or self._hashes[seq : seq + 1] == [sha]

    def append(self, kind: str, key: str, body: Body) -> None:
        """Write one record; it is on disk when this returns.

        Raises:
            BadData: `body` holds NaN or infinity, which JSON does not have.
            StorageFailed: it could not be written; this journal takes no more records.
            TakenOver: another attempt goes on with this run.
        """
        self.check()
        seq, prev = self._position
        line = _line(Record(seq + 1, kind, key, prev, body))
        if self._segment is None:
            self._segment = fsio.LineFile(self._path)
        self._segment.append(line)
        # Keep what a restart would read, not what was passed: tuples come back as lists.
        read = _parsed(line)
        assert read is not None, line
        self._take(read, line)

    def find(self, kind: str, key: str) -> Body | None:
        """The body of the last record with this kind and key."""
        return self._bodies.get(kind, {}).get(key)

    def all(self, kind: str) -> list[tuple[str, Body]]:
        """Every key of a kind with its last body, in the order the keys first appeared.

        A step done again after a restart thus keeps its place among the steps.
        """
        return list(self._bodies.get(kind, {}).items())

    def close(self) -> None:
        if self._segment is not None:
            self._segment.close()

    def _read(self, path: Path, odd: str, *, is_last: bool) -> str:
        """Take in a segment; where its last line is a fragment and others follow, which it is.

        An attempt that was taken over in the middle of a line may have ended it afterwards.
        """
        lines = io.BytesIO(fsio.read_bytes(path)).readlines()
        for number, line in enumerate(lines, start=1):
            record = _parsed(line)
            if record is not None:
                self._follow(record, line, path, number, odd)
            elif not is_last and number == len(lines):
                return f"{path}:{number}"
            elif is_last and number == len(lines) and is_torn(line):
                fsio.atomic_write(path.with_name(f"torn-{path.stem}.txt"), line)
                fsio.truncate(path, sum(map(len, lines[:-1])))
            else:
                _damaged(f"{path}:{number}", "not a whole record")
        return ""

    def _follow(self, record: Record, line: bytes, path: Path, number: int, odd: str) -> None:
        if (
            number == 1
            and self._position[0] == record.seq
            and self.holds(record.seq - 1, record.prev)
        ):
            self._forget_last()
        seq, prev = self._position
        if (record.seq, record.prev) != (seq + 1, prev):
            if odd and number == 1:
                _damaged(odd, "not a whole record")
            last = path.with_name(_name(int(path.stem) - 1))
            before = f"line {number - 1}" if number > 1 else last
            _damaged(
                f"{path}:{number}",
                f"record {record.seq} does not follow {before}, which ends with record {seq}; one "
                "of the two was changed, or lines between them were lost",
            )
        self._read_so_far.append((record, line))
        self._take(record, line)

    def _forget_last(self) -> None:
        """Its attempt had been taken over while it wrote this. There is never more than one: it
        looked for a newer attempt before each."""
        told, self._read_so_far = self._read_so_far[:-1], []
        self._position, self._hashes, self._bodies = _BEFORE_THE_FIRST, [], {}
        for record, line in told:
            self._read_so_far.append((record, line))
            self._take(record, line)

    def _take(self, record: Record, line: bytes) -> None:
        self._hashes.append(_hash(line))
        self._position = record.seq, self._hashes[-1]
        self._bodies.setdefault(record.kind, {})[record.key] = record.body


def encode_array(array: NDArray[Any]) -> Body:
    """Numbers or truth values of any shape as JSON, bit for bit, little-endian; NaN may occur."""
    assert array.dtype.kind in "biuf", f"cannot journal an array of {array.dtype}"
    little = array.astype(array.dtype.newbyteorder("<"))
    return {
        "dtype": little.dtype.str,
        "shape": list(little.shape),
        "base64": base64.b64encode(little.tobytes()).decode(),
    }


def decode_array(encoded: Body) -> NDArray[Any]:
    """The array `encode_array` was given; the copy is the caller's."""
    data = base64.b64decode(encoded["base64"], validate=True)
    return np.frombuffer(data, dtype=encoded["dtype"]).reshape(encoded["shape"]).copy()


def _name(number: int) -> str:
    return f"{number:06d}.jsonl"


def _segments(folder: Path) -> list[Path]:
    found = {path.name for path in fsio.entries(folder) if path.suffix == ".jsonl"}
    expected = [_name(number) for number in range(1, len(found) + 1)]
    if odd := found.symmetric_difference(expected):
        strangers = [name for name in odd if not re.fullmatch(r"\d{6}\.jsonl", name)]
        _damaged(
            str(folder / min(strangers or odd)), f"{len(found)} segments must be 1 to {len(found)}"
        )
    return [folder / name for name in expected]


def _line(record: Record) -> bytes:
    try:
        text = json.dumps(asdict(record), sort_keys=True, separators=(",", ":"), allow_nan=False)
    except ValueError as error:
        raise BadData(
            f"record '{record.kind}' of '{record.key}' cannot be written as JSON: {error}"
        ) from error
    whole = text.encode("ascii")
    return whole[:-1] + b',"sum":"%b"}\n' % _hash(whole).encode()


def _parsed(line: bytes) -> Record | None:
    if not line.endswith(b"\n"):
        return None
    if summed := _SUMMED.fullmatch(line):  # lines of earlier versions have no sum
        line = summed[1] + b"}"
        if _hash(line) != summed[2].decode():
            return None
    try:
        return Record(**json.loads(line.decode("ascii")))
    except (ValueError, TypeError):  # TypeError: JSON, but not with the fields of a record
        return None


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def is_torn(line: bytes) -> bool:
    """Whether one interrupted append can have left this: its beginning, and zeros for the rest.

    A disk may also have written the end of a line first; before it there are zeros then.
    """
    if line.endswith(b"\n"):
        return line.startswith(b"\0") or b"\0\0" in line  # one zero may be a flipped bit
    text = line.rstrip(b"\0")
    if b"\0\0" in text or text.startswith(b"\0"):
        return True
    try:
        _, end = json.JSONDecoder().raw_decode(text.decode("ascii", errors="replace"))
    except ValueError:
        return True
    return end == len(text)


def _damaged(where: str, why: str) -> NoReturn:
    raise BadData(
        f"{where}: the journal is damaged: {why}; put it back from a copy of the run folder, "
        "or start a new run from a checkpoint"
    )
