"""Places that workers hold one after another: how often and how soon the next one may start."""

from collections import deque

from rlhf_ray.scheduling.events import Death
from rlhf_ray.scheduling.limits import Limits

FREE = {Death.PREEMPTED, Death.DRAINED, Death.WITHDRAWN}
"""Deaths nobody is to blame for: they cost no restart."""


class Slot:
    """At most `restarts` in `window_s`, each after a wait that doubles with each death in a row."""

    def __init__(self, number: int, limits: Limits) -> None:
        self.number, self.limits = number, limits
        self.worker: int | None = None
        self.due = 0.0
        """When the next worker may start."""
        self.closed = self._charged = False
        self._restarts: deque[float] = deque(maxlen=limits.restarts)
        self._deaths_in_row = self._inits_in_row = 0

    def reopen(self) -> None:
        """What kept its workers from starting may be over by now."""
        self.closed, self._inits_in_row = False, 0

    def may_start(self, now: float) -> bool:
        return self.worker is None and not self.closed and now >= self.due

    def start(self, worker: int, now: float) -> None:
        self.worker = worker
        if self._charged:
            self._restarts.append(now)

    def started(self) -> None:
        self._inits_in_row = 0

    def useful(self) -> None:
        """Its worker has finished a chunk."""
        self._deaths_in_row = 0

    def lose(self, death: Death, now: float) -> None:
        """Its worker is no more, or no longer counts."""
        limits, self.worker = self.limits, None
        self._charged = death not in FREE
        self.due = now + limits.backoff_s
        if not self._charged:
            return
        wait = limits.backoff_s * 2**self._deaths_in_row
        self.due = now + min(wait, limits.longest_backoff_s)
        self._deaths_in_row = min(self._deaths_in_row + 1, 32)  # 2**32 is beyond any backoff
        if len(self._restarts) == limits.restarts:
            self.due = max(self.due, self._restarts[0] + limits.window_s)
        if death is Death.INIT_FAILED:
            self._inits_in_row += 1
            self.closed = self._inits_in_row >= limits.init_tries
