"""A run folder that outlives this machine: a folder here, and its state behind a URL.

The driver works in the folder; `push` makes what it holds the state of the run, all of it at once.
What came after the last push is done again on another machine, to the same end. A driver that
begins takes the run for itself, unless another's beat is still to be heard, and its state into a
folder.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf_ray.durable import fsio
from rlhf_ray.durable.attempts import Owner, TakenOver
from rlhf_ray.durable.changes import Stat, changes
from rlhf_ray.durable.head import Head, head_key, newest, numbered
from rlhf_ray.durable.objects import Objects
from rlhf_ray.durable.pull import MARK, pull
from rlhf_ray.errors import BadData, RecipeError, StorageFailed

Say = Callable[[str], None]

BEAT_S = 10.0
"""Between two signs of life of a driver."""
SILENT_S = 3 * BEAT_S
"""A driver that gives none for so long is dead, or can write no more."""
LAST_S = 1.0
"""Longest wait for an answer of a driver that is asked to stop."""
FILES, BEATS = "files", "beats"
LOOKS = 3
"""Files that somebody changes while they are pushed are looked at so often."""


class Mirror:
    """One driver's hold on a run behind a URL, from `take` on."""

    def __init__(self, objects: Objects, folder: Path, say: Say) -> None:
        self.objects, self.folder, self.say = objects, folder, say
        self.head: Head | None = None
        self.whole = False
        """Whether the folder holds a state of the run, and what was done since."""
        self._seen: dict[str, Stat] = {}
        self._unneeded: list[str] = []
        self._lock, self._count = threading.Lock(), 0
        self._beat: _Beat | None = None
        self._mark = folder / MARK

    def take(self, *, takeover: bool) -> None:
        """Take the run, and its state into the folder; what else lay there is gone.

        Raises RecipeError where another driver has the run, StorageFailed where the store cannot
        be used, BadData where the state is damaged.
        """
        self.objects.check_exclusive()
        before = _freed(self.objects, takeover=takeover, say=self.say)
        self.head = _begun(self.objects, before)
        self._beat = _Beat(self.objects, self.head.attempt, self.say)
        if before is None or not self._goes_on_from(before):
            pull(self.objects, self.head, self.folder)
        self.whole = True
        self._keep_mark(self.head)
        self._clear(self.head)

    def push(self) -> None:
        """Make the folder as it is the state of the run. Threads may call it.

        Raises TakenOver where another driver has it, StorageFailed where it cannot be written.
        """
        with self._lock:
            self._push(ended=False)

    def end(self) -> None:
        """Push for the last time, and let go of the run. Raises what `push` does."""
        with self._lock:
            self._push(ended=True)

    def let_go(self) -> None:
        """Let go of the run as it was last pushed, in a second or two, or not at all.

        Where the folder is whole, a driver on this machine goes on from it as it is.
        """
        if self.head is None:
            return
        last = self.head.after(self.head.files, ended=True)
        free = self._lock.acquire(timeout=LAST_S / 2)
        try:
            if not free:
                raise StorageFailed("a push is under way in another thread")
            if self.objects.create(last.key, last.to_bytes(), within_s=LAST_S) and self.whole:
                self._keep_mark(last)
        except StorageFailed:
            self.say(f"a driver on another machine will listen {SILENT_S:g} s for this one")
        finally:
            if free:
                self._lock.release()

    def close(self) -> None:
        """No further sign of life."""
        if self._beat is not None:
            self._beat.stop()

    def _push(self, *, ended: bool) -> None:
        assert self.head is not None, "not taken"
        for _ in range(LOOKS):
            self._count += 1
            found = changes(self.folder, self.head, self._seen, key=self._key)
            if found.files == self.head.files and not ended:
                self._check(self.head)
                self._seen = found.seen
                return
            try:
                self.objects.upload(found.wholes)
            except FileNotFoundError:
                continue  # somebody has deleted one meanwhile
            self.objects.write(found.tails)
            if found.stand(self.folder):
                self._commit(self.head, self.head.after(found.files, ended=ended))
                self._seen = found.seen
                return
        raise StorageFailed(
            f"{self.folder} was changed whenever it was pushed to {self.objects.url}; end what "
            "else writes there, then start the same command again"
        )

    def _key(self, name: str) -> str:
        """Of the object that this push puts a file into."""
        assert self.head is not None
        return f"{FILES}/{self.head.attempt:06d}/{name}@{self._count:09d}"

    def _check(self, head: Head) -> list[int]:
        """Numbers of the heads there are. Raises TakenOver where `head` is not the newest."""
        numbers = numbered(self.objects)
        if numbers[-1:] != [head.number]:
            self._taken_over()
        return numbers

    def _commit(self, before: Head, head: Head) -> None:
        """Make `head` the state; what neither it nor the one before needs is deleted."""
        if not self.objects.create(head.key, head.to_bytes()):
            self._taken_over()
        numbers = self._check(head)
        self.head = head
        self._keep_mark(head)
        # Somebody may still be reading the state before this one; the one before that is gone.
        older = [head_key(number) for number in numbers if number < before.number]
        self.objects.delete([*older, *self._unneeded])
        self._unneeded = sorted(before.keys() - head.keys())

    def _taken_over(self) -> None:
        found = newest(self.objects)
        raise TakenOver(
            f"{found.owner if found else 'somebody'} has taken over {self.objects.url}; this "
            "driver writes no more"
        )

    def _goes_on_from(self, head: Head) -> bool:
        """Whether the folder was worked in after it was this very state: it holds all of it, unless
        somebody has cleared it away. Checkpoints go with time, the journal never does."""
        known = self._mark.is_file() and fsio.read_bytes(self._mark) == _mark_of(head)
        return known and all(
            (seen := Stat.of(self.folder / name)) is not None and seen.size >= kept.size
            for name, kept in head.files.items()
            if name.startswith("journal/")
        )

    def _keep_mark(self, head: Head) -> None:
        fsio.atomic_write(self._mark, _mark_of(head))

    def _clear(self, head: Head) -> None:
        """Delete what earlier attempts have left and no state needs: they can make none now."""
        older = {
            *(key for key in self.objects.names(FILES) if key < f"{FILES}/{head.attempt:06d}/"),
            *(key for key in self.objects.names(BEATS) if key < _beat_key(head.attempt)),
            *(head_key(one) for one in numbered(self.objects) if one < head.number),
        }
        self.objects.delete(sorted(older - head.keys()))


@contextmanager
def mirrored(url: str, folder: Path, *, takeover: bool, say: Say) -> Iterator[Mirror]:
    """A run in `folder` whose state is behind `url`; it is let go of however this ends.

    After an error nothing is pushed: what was done since the last time is in the folder alone, and
    where that is damaged, the next driver takes the state from behind the URL.

    Raises what `Mirror.take` and `Mirror.push` raise.
    """
    mirror = Mirror(Objects(url, say), folder, say)
    try:
        mirror.take(takeover=takeover)
        yield mirror
        mirror.end()
    except TakenOver:
        raise
    except BaseException as error:
        mirror.whole = mirror.whole and not isinstance(error, BadData)
        mirror.let_go()
        raise
    finally:
        mirror.close()


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


def _freed(objects: Objects, *, takeover: bool, say: Say) -> Head | None:
    """The state of a run that nobody has any more; None before there was one."""
    head = newest(objects)
    while head is not None and not head.ended:
        _await_silence(objects, head, takeover=takeover, say=say)
        # Its last push may have been under way; or another driver was waiting beside us.
        before, head = head, newest(objects)
        if head is not None and head.attempt == before.attempt:
            break
    return head


def _await_silence(objects: Objects, head: Head, *, takeover: bool, say: Say) -> None:
    """Return when the driver that made `head` is dead, or may be taken over."""
    owner, key = head.owner, _beat_key(head.attempt)
    if takeover:
        owner.end()  # where it is a process of this host: both would work in one folder
        return
    if owner.ended_here():
        return
    ends, first = time.monotonic() + SILENT_S, objects.read(key)
    if not owner.lives_here():
        say(f"listening {SILENT_S:g} s for {owner}, which has not let go of {objects.url}")
    while not owner.lives_here() and objects.read(key) == first:
        if time.monotonic() > ends:
            return
        time.sleep(BEAT_S / 5)
    raise RecipeError(
        f"another driver is running in {objects.url} ({owner}); wait for it, end it, take the run "
        "over with --takeover, or use another --run-dir"
    )


def _mark_of(head: Head) -> bytes:
    # Not its number: that of another run, where this one was deleted, may be the same.
    return hashlib.sha256(head.to_bytes()).hexdigest().encode()


def _beat_key(attempt: int) -> str:
    return f"{BEATS}/{attempt:06d}"


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
                self._objects.write({self._key: str(count).encode()}, within_s=BEAT_S)
                failed = 0
            except StorageFailed as error:
                failed += 1
                if failed == 1 and not self._over.is_set():
                    self._say(f"{error}\n  until it can be reached, another driver may take over")
            self._over.wait(timeout=BEAT_S)
