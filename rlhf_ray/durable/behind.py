"""Work on the disk in the order it was given, beside the run: a wave is kept while the next one is
sampled.

A crash loses what was still waiting. It is the end of what was done, never something between, so
that it is as if the crash had come a moment earlier.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rlhf_ray.errors import StorageFailed

Work = Callable[[], None]

PATIENCE_S = 6 * 3600.0
"""What is done here ends by deadlines of its own; this one is for a disk that hangs."""
LAST_S = 0.5
"""Longest wait for what is under way when the run is asked to stop."""


class AtOnce:
    """Work on the disk is done where it is asked for."""

    def later(self, work: Work) -> None:
        """Do it. Raises what it raises."""
        work()

    def settle(self) -> None:
        """Return when all that was given is done."""

    def waited_s(self) -> float:
        """Seconds spent in `settle` since this was last asked."""
        return 0.0


AT_ONCE = AtOnce()


class Behind(AtOnce):
    """Work on the disk is done by a thread, one piece after the other.

    What fails is raised by the next call of `later` or `settle`, and nothing after it is begun.
    """

    def __init__(self, within_s: float = PATIENCE_S) -> None:
        """`within_s`: longest wait for a piece of work."""
        self._within_s, self._waited_s = within_s, 0.0
        self._given: deque[Work] = deque()  # the first of them is under way
        self._failed: BaseException | None = None
        self._over = False
        self._turn = threading.Condition()
        # A daemon: a run that is asked to stop does not wait for a checkpoint.
        self._thread = threading.Thread(target=self._run, daemon=True, name="behind")
        self._thread.start()

    def later(self, work: Work) -> None:
        """Do it when all that was given before is done. Raises what that has raised."""
        with self._turn:
            self._raise_failed()
            self._given.append(work)
            self._turn.notify_all()

    def settle(self) -> None:
        """Return when all that was given is done. Raises what it has raised, and StorageFailed
        where it takes longer than it may."""
        began = time.perf_counter()
        with self._turn:
            settled = self._turn.wait_for(self._settled, timeout=self._within_s)
            self._raise_failed()
        self._waited_s += time.perf_counter() - began
        if not settled:
            raise StorageFailed(
                f"waited {self._within_s:.0f} s for the wave before to be kept; check the storage, "
                "then resume the run"
            )

    def waited_s(self) -> float:
        waited, self._waited_s = self._waited_s, 0.0
        return waited

    def close(self, within_s: float) -> None:
        """Begin nothing more, and wait so long for what is under way."""
        with self._turn:
            self._over = True
            self._turn.notify_all()
        self._thread.join(timeout=within_s)

    def _settled(self) -> bool:
        return self._failed is not None or not self._given

    def _raise_failed(self) -> None:
        if self._failed is not None:
            raise self._failed

    def _run(self) -> None:
        while (work := self._next()) is not None:
            try:
                work()
            except BaseException as error:  # raised in the run itself, where it next looks
                self._end_with(error)
                return
            with self._turn:
                self._given.popleft()
                self._turn.notify_all()

    def _next(self) -> Work | None:
        with self._turn:
            while not self._given and not self._over:
                self._turn.wait(timeout=self._within_s)
            return None if self._over else self._given[0]

    def _end_with(self, error: BaseException) -> None:
        with self._turn:
            self._failed = error
            self._turn.notify_all()


@contextmanager
def behind() -> Iterator[Behind]:
    """All that was given is done where the block ends well. After an error only what is under way
    is; where the run is asked to stop, that has a moment. Raises what the work raises."""
    one = Behind()
    try:
        yield one
        one.settle()
    except Exception:
        one.close(PATIENCE_S)
        raise
    except BaseException:
        one.close(LAST_S)
        raise
    one.close(PATIENCE_S)
