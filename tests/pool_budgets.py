"""When may, and must, a slot get its next worker? Kept from the messages of a pool alone."""

from collections import defaultdict
from math import inf

from rlhf_ray.scheduling.events import Death, Key
from rlhf_ray.scheduling.limits import Limits

FREE = {Death.PREEMPTED, Death.DRAINED, Death.WITHDRAWN}
ROUNDING_S = 1e-6


class Violation(AssertionError):
    def __init__(self, invariant: str, *what: object) -> None:
        super().__init__(invariant, " ".join(map(str, what)))
        self.invariant = invariant


def holds(invariant: str, fine: object, *what: object) -> None:
    """The text is made only where it is needed: this is called a million times."""
    if not fine:
        raise Violation(invariant, *what)


def past(now: float, since: float, seconds: float) -> bool:
    return now - since >= seconds - ROUNDING_S


def made(key: Key, version: int) -> str:
    """What a sound worker makes of a chunk at a policy version."""
    return f"{key}@{version}"


class Budgets:
    """Restarts, deaths in a row and failed starts of each slot."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.empty: set[int] = set()
        """Slots that wait for their next worker."""
        self._last_death: dict[int, tuple[float, Death]] = {}
        self._restarts: dict[int, list[float]] = defaultdict(list)
        self._in_row: dict[int, int] = defaultdict(int)
        self._inits: dict[int, int] = defaultdict(int)

    @property
    def closed(self) -> int:
        return sum(failed >= self.limits.init_tries for failed in self._inits.values())

    def scaled(self) -> None:
        """Closed slots are given up, and of those that are empty nobody can say which."""
        self.empty.clear()
        for slot, failed in self._inits.items():
            if failed >= self.limits.init_tries:
                self._inits[slot] = 0

    def published(self) -> None:
        """Slots that were closed are tried again."""
        self._inits.clear()

    def starts(self, slot: int, now: float) -> None:
        if slot in self._last_death:
            due = self.due(slot)
            holds("I8", now >= due - ROUNDING_S, "a worker in slot", slot, "before", due)
            if self._last_death[slot][1] not in FREE:
                self._restarts[slot].append(now)
        self.empty.discard(slot)

    def started(self, slot: int) -> None:
        self._inits[slot] = 0

    def useful(self, slot: int) -> None:
        self._in_row[slot] = 0

    def lost(self, slot: int, now: float, death: Death) -> None:
        self._last_death[slot] = now, death
        self._in_row[slot] += death not in FREE
        self._inits[slot] += death is Death.INIT_FAILED
        self.empty.add(slot)

    def due(self, slot: int) -> float:
        limits, (died, death) = self.limits, self._last_death[slot]
        if self._inits[slot] >= limits.init_tries:
            return inf
        if death in FREE:
            return died + limits.backoff_s
        wait = min(limits.backoff_s * 2 ** (self._in_row[slot] - 1), limits.longest_backoff_s)
        recent = self._restarts[slot][-limits.restarts :]
        budget = recent[0] + limits.window_s if len(recent) == limits.restarts else 0.0
        return max(died + wait, budget)
