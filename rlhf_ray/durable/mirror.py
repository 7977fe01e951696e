"""A run folder that outlives this machine: a folder here, and its state behind a URL.

The driver works in the folder; `push` makes what it holds the state of the run, all of it at once.
What came after the last push is done again after a crash, to the same end. A driver that begins
takes the run for itself, unless another's beat is still to be heard, and its state into a folder.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rlhf_ray.durable import fsio
from rlhf_ray.durable.attempts import Owner, TakenOver
from rlhf_ray.durable.head import HEADS, Head, Kept, Piece, newest, numbered
from rlhf_ray.durable.objects import Objects
from rlhf_ray.durable.pull import pull, tree
from rlhf_ray.errors import RecipeError, StorageFailed

Say = Callable[[str], None]

BEAT_S = 10.0
"""Between two signs of life of a driver."""
SILENT_S = 3 * BEAT_S
"""A driver that gives none for so long is dead, or can write no more."""
LAST_S = 1.0
"""Longest that a driver takes to let go where it is asked to stop."""
MOST_PIECES = 64
"""A file of more objects than this is written anew."""


class Mirror:
    """One driver's hold on a run behind a URL."""

    def __init__(self, objects: Objects, folder: Path, *, takeover: bool, say: Say) -> None:
        """Take the run, and its state into `folder`; what else lay there is gone.

        Raises RecipeError where another driver has the run, StorageFailed where the store cannot
        be used, BadData where the state is damaged.
        """
        self.objects, self.folder = objects, folder
        objects.check_exclusive()
        before = newest(objects)
        if before is not None and not before.ended:
            _await_silence(objects, before, takeover=takeover, say=say)
        self.head = _begun(objects, before)
        self._beat = _Beat(objects, self.head.attempt, say)
        pull(objects, self.head, folder)
        self._seen = {name: _Seen.of(folder / name) for name in self.head.files}
        self._unneeded: list[str] = []
        self._clear()

    def push(self) -> None:
        """Make the folder as it is the state of the run.

        Raises TakenOver where another driver has it, StorageFailed where it cannot be written.
        """
        self._push(ended=False)

    def end(self) -> None:
        """Push for the last time, and let go of the run."""
        self._push(ended=True)

    def let_go(self, say: Say) -> None:
        """Let go of the run as it was last pushed, in about a second or not at all."""
        last = self.head.next(self.head.files, ended=True)
        try:
            self.objects.create(last.key, last.to_bytes(), timeout_s=LAST_S)
        except StorageFailed as error:
            say(f"{error}\n  a driver on another host will listen {SILENT_S:g} s for this one")

    def _push(self, *, ended: bool) -> None:
        old, number = self.head, self.head.number + 1
        seen, files = dict[str, _Seen](), dict[str, Kept]()
        wholes, tails = dict[str, Path](), dict[str, bytes]()
        for name, path in tree(self.folder).items():
            seen[name], known = _Seen.of(path), old.files.get(name)
            if known is not None and seen[name] == self._seen.get(name):
                files[name] = known
                continue
            key = f"files/{old.attempt:06d}/{name}@{number:09d}"
            files[name], tail = _looked_at(path, known, key)
            if tail is None:
                wholes[key] = path
            elif tail:
                tails[key] = tail
        if files != old.files or ended:
            self.objects.upload(wholes)
            self.objects.write(tails)
            self._commit(old.next(files, ended=ended))
        self._seen = seen

    def _commit(self, head: Head) -> None:
        """Make `head` the state; what neither it nor the one before needs is deleted."""
        made = self.objects.create(head.key, head.to_bytes())
        numbers = numbered(self.objects)
        if not made or numbers[-1:] != [head.number]:
            found = newest(self.objects)
            raise TakenOver(
                f"{found.owner if found else 'somebody'} has taken over {self.objects.url}; this "
                f"was attempt {head.attempt}, and it writes no more"
            )
        before, self.head = self.head, head
        # Somebody may still be reading the state before this one; the one before that is gone.
        older = [f"{HEADS}/{number:09d}.json" for number in numbers if number < before.number]
        self.objects.delete([*older, *self._unneeded])
        self._unneeded = sorted(before.keys() - head.keys())

    def _clear(self) -> None:
        """Delete what earlier attempts have left and no state needs: they can make none now."""
        number, attempt, needed = self.head.number, self.head.attempt, self.head.keys()
        older = {
            *(key for key in self.objects.names("files") if key < f"files/{attempt:06d}/"),
            *(key for key in self.objects.names("beats") if key < _beat_key(attempt)),
            *(f"{HEADS}/{one:09d}.json" for one in numbered(self.objects) if one < number),
        }
        self.objects.delete(sorted(older - needed))

    def close(self) -> None:
        """No further sign of life."""
        self._beat.stop()


@contextmanager
def mirrored(url: str, folder: Path, *, takeover: bool, say: Say) -> Iterator[Mirror]:
    """A run in `folder` whose state is behind `url`; it is let go of however this ends."""
    mirror = Mirror(Objects(url), folder, takeover=takeover, say=say)
    try:
        yield mirror
        mirror.end()
    except TakenOver:
        raise
    except (KeyboardInterrupt, SystemExit, StorageFailed):
        mirror.let_go(say)
        raise
    except Exception:
        # What went wrong is told; what was done until then is kept if it can be.
        try:
            mirror.end()
        except StorageFailed as error:
            say(str(error))
        raise
    finally:
        mirror.close()


@dataclass(frozen=True, slots=True)
class _Seen:
    """A file as it was when it was pushed."""

    size: int
    changed_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> "_Seen":
        with fsio.explained("look at", path):
            found = path.stat()
        return cls(found.st_size, found.st_mtime_ns, found.st_ino)


def _looked_at(path: Path, known: Kept | None, key: str) -> tuple[Kept, bytes | None]:
    """A file as it is now, and what of it is not behind the URL yet: its end, or None for all."""
    size = _Seen.of(path).size
    if (
        known is not None
        and size >= known.size
        and len(known.pieces) < MOST_PIECES
        and fsio.sha256_of(path, first=known.size) == known.sha256
    ):
        tail = fsio.read_bytes(path, start=known.size)
        more = (Piece(key, len(tail)),) if tail else ()
        return Kept(fsio.sha256_of(path), known.pieces + more), tail
    return Kept(fsio.sha256_of(path), (Piece(key, size),)), None


def _begun(objects: Objects, before: Head | None) -> Head:
    """The head with which this driver takes the run."""
    number, attempt = (before.number + 1, before.attempt + 1) if before else (1, 1)
    head = Head(number, attempt, Owner.here(), files=before.files if before else {})
    if objects.create(head.key, head.to_bytes()) and numbered(objects)[-1] == number:
        return head
    raise RecipeError(
        f"another driver has just begun in {objects.url}; wait for it, end it, or take the run "
        "over with --takeover"
    )


def _await_silence(objects: Objects, head: Head, *, takeover: bool, say: Say) -> None:
    """Return when the driver that made `head` is dead, or may be taken over."""
    owner, key = head.owner, _beat_key(head.attempt)
    if takeover:
        # On this host both would work in one folder.
        if owner.lives_here():
            os.kill(owner.pid, signal.SIGKILL)
            _await_death(owner)
        return
    running = RecipeError(
        f"another driver is running in {objects.url} ({owner}); wait for it, end it, take the run "
        "over with --takeover, or use another --run-dir"
    )
    if owner.lives_here():
        raise running
    if owner.host == Owner.here().host:
        return
    say(f"listening {SILENT_S:g} s for {owner}, which has not let go of {objects.url}")
    ends, first = time.monotonic() + SILENT_S, objects.read(key)
    while time.monotonic() < ends:
        time.sleep(BEAT_S / 5)
        if objects.read(key) != first:
            raise running


def _await_death(owner: Owner) -> None:
    ends = time.monotonic() + SILENT_S
    while owner.lives_here():
        if time.monotonic() > ends:
            raise RecipeError(f"{owner} was killed and does not end; see what holds it")
        time.sleep(0.05)


def _beat_key(attempt: int) -> str:
    return f"beats/{attempt:06d}"


class _Beat:
    """Says again and again that this driver lives."""

    def __init__(self, objects: Objects, attempt: int, say: Say) -> None:
        self._objects, self._key, self._say = objects, _beat_key(attempt), say
        self._over = threading.Event()
        threading.Thread(target=self._run, daemon=True, name="beat").start()

    def stop(self) -> None:
        self._over.set()

    def _run(self) -> None:
        count = failed = 0
        while not self._over.is_set():
            count += 1
            try:
                self._objects.write({self._key: str(count).encode()})
                failed = 0
            except StorageFailed as error:
                failed += 1
                if failed == 1 and not self._over.is_set():
                    self._say(f"{error}\n  until it can be reached, another driver may take over")
            self._over.wait(timeout=BEAT_S)
