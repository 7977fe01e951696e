"""A pool and a clock in the hands of a test: events go in one by one, actions come out."""

from dataclasses import replace
from typing import Any

from rlhf_ray.scheduling.events import (
    Action,
    Death,
    Deliver,
    Event,
    Fail,
    Kill,
    Lease,
    Ping,
    Result,
    Scale,
    Start,
    Started,
    Submit,
    Tick,
)
from rlhf_ray.scheduling.limits import Limits
from rlhf_ray.scheduling.pool import Pool

LIMITS = Limits(
    start_s=100, load_s=50, ping_s=1000, pings=3, chunk_floor_s=10, chunk_cap_s=40, drain_s=20,
    min_workers=1, short_s=150, stall_s=500, restarts=2, window_s=300, backoff_s=2,
    longest_backoff_s=5, init_tries=2, tries=2, window=4,
)  # fmt: skip


class Loop:
    """A pool and a clock; what it wants done is kept, nothing is done."""

    def __init__(self, workers: int = 0, *, version: int = 0, **limits: Any) -> None:
        self.pool, self.now = Pool(replace(LIMITS, **limits), version), 0.0
        if workers:
            self.say(Scale(workers))
            self.tick()
            for worker in range(workers):
                self.say(Started(worker, version))

    def say(self, *events: Event) -> list[Action]:
        return [action for event in events for action in self.pool.step(self.now, event)]

    def tick(self, seconds: float = 0.0) -> list[Action]:
        self.now += seconds
        return [one for one in self.say(Tick()) if not isinstance(one, Ping)]

    def done(self, worker: int, key: int, version: int = 0) -> list[Action]:
        return self.say(Result(worker, key, version, f"{key}@{version}"))

    def submit(self, *keys: int) -> list[Action]:
        return self.say(Submit("wave", keys))


def leased(actions: list[Action]) -> list[tuple[int, Any]]:
    return [(one.worker, one.key) for one in actions if isinstance(one, Lease)]


def delivered(actions: list[Action]) -> list[Any]:
    return [one.key for one in actions if isinstance(one, Deliver)]


def killed(actions: list[Action]) -> list[tuple[int, Death]]:
    return [(one.worker, one.death) for one in actions if isinstance(one, Kill)]


def started(actions: list[Action]) -> list[tuple[int, int]]:
    return [(one.worker, one.slot) for one in actions if isinstance(one, Start)]


def failure(actions: list[Action]) -> Exception:
    (found,) = [one.error for one in actions if isinstance(one, Fail)]
    return found
