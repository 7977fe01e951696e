"""How long may a chunk take?"""

from collections import defaultdict, deque

KEPT, OFTEN = 256, 16
"""Durations remembered per kind; beyond OFTEN, the limit is worked out once in so many."""
FACTOR, QUANTILE = 3.0, 0.99


class Times:
    """Durations of chunks by kind: a limit is three times their 99th percentile, within bounds."""

    def __init__(self, floor_s: float, cap_s: float) -> None:
        self.floor_s, self.cap_s = floor_s, cap_s
        self._recent: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=KEPT))
        self._added: dict[str, int] = defaultdict(int)
        self._limits: dict[str, float] = {}

    def add(self, kind: str, seconds: float) -> None:
        recent = self._recent[kind]
        recent.append(seconds)
        self._added[kind] += 1
        if len(recent) <= OFTEN or self._added[kind] % OFTEN == 0:
            slowest = sorted(recent)[int(QUANTILE * (len(recent) - 1) + 0.5)]
            self._limits[kind] = min(max(self.floor_s, FACTOR * slowest), self.cap_s)

    def limit(self, kind: str) -> float:
        """Seconds a chunk may take; as many as the cap says where none is known."""
        return self._limits.get(kind, self.cap_s)
