"""How long each wait of a pool may last, and how often something may fail."""

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds end in `_s`. Raises ValueError for limits that contradict each other."""

    tick_s: float = 1.0
    """Longest time between two ticks: every deadline is kept to that."""
    start_s: float = 900.0
    load_s: float = 300.0
    ping_s: float = 10.0
    pings: int = 3
    """As many in a row without a pong, and a worker is given up."""
    chunk_floor_s: float = 60.0
    chunk_cap_s: float = 1800.0
    """A chunk may take three times what 99 of 100 of its kind took, between these two."""
    drain_s: float = 120.0
    """What a worker may take to end its last chunk."""
    min_workers: int = 1
    short_s: float = 1800.0
    """How long fewer than `min_workers` may be ready while there is work."""
    stall_s: float = 3600.0
    """How long no chunk may be finished while there is work."""
    restarts: int = 5
    window_s: float = 600.0
    """So many restarts of a slot in so long; preemptions are not counted."""
    backoff_s: float = 1.0
    longest_backoff_s: float = 60.0
    """Wait before a restart: doubles with each death in a row."""
    init_tries: int = 2
    """As many failed starts in a row, and a slot is closed."""
    tries: int = 3
    """As many faults of a chunk, and it is poison."""
    window: int = 8
    """Chunks per slot that may be begun and not yet delivered."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"{field.name} is {getattr(self, field.name)}; it must be > 0")
        longest = self.start_s + self.load_s + self.chunk_cap_s
        if self.stall_s < longest:
            raise ValueError(
                f"stall_s is {self.stall_s:g}, but a first chunk may take {longest:g} s "
                "(start_s + load_s + chunk_cap_s); raise stall_s"
            )
        if self.short_s < self.start_s + self.load_s:
            raise ValueError(
                f"short_s is {self.short_s:g}, but a worker may need "
                f"{self.start_s + self.load_s:g} s to be ready (start_s + load_s); raise short_s"
            )
        if self.chunk_floor_s > self.chunk_cap_s:
            raise ValueError(
                f"chunk_floor_s is {self.chunk_floor_s:g}, above chunk_cap_s {self.chunk_cap_s:g}"
            )
