"""How many chunks per second can the scheduler of a worker pool lease, take back and deliver?

Workers are a queue of what happens next, on a clock of its own: what is measured is the state
machine, and that queue. Ticks and pings come as they do in a run; one result in a hundred is so
late that its chunk is given to a second worker. Seconds are of one processor core.
"""

import argparse
import sys
import time
from heapq import heappop, heappush

from rlhf_ray.scheduling.events import (
    Action,
    Event,
    Lease,
    Ping,
    Pong,
    Result,
    Scale,
    Start,
    Started,
    Submit,
    Tick,
)
from rlhf_ray.scheduling.limits import Limits
from rlhf_ray.scheduling.pool import Pool

TARGET = 10_000
"""Chunks/s: enough for 512 workers whose chunks take 50 ms."""
GROWTH = 1.5
"""Most that a chunk may cost in the longest plan, over what it costs in the shortest."""
LIMITS = Limits(chunk_floor_s=10)
LATE_S = 8.0


def reply(action: Action, leases: int) -> tuple[float, Event] | None:
    """What a worker says to an action, and after how many seconds."""
    match action:
        case Lease(worker, key, _):
            took = LATE_S if leases % 100 == 99 else 0.5 + leases * 7919 % 1000 / 1000
            return took, Result(worker, key, 0, key)
        case Ping(worker):
            return 0.01, Pong(worker)
        case Start(worker, _):
            return 30.0, Started(worker, 0)
    return None


def seconds(workers: int, chunks: int) -> float:
    """Of one core, until the last chunk is delivered."""
    pool = Pool(LIMITS, version=0)
    queue: list[tuple[float, int, Event]] = []
    now, tick, numbers = 0.0, 0.0, 0
    began = time.process_time()
    todo = [*pool.step(now, Scale(workers)), *pool.step(now, Submit("wave", range(chunks)))]
    while pool.work.left:
        for action in todo:
            said = reply(action, pool.counts["lease"])
            if said is not None:
                heappush(queue, (now + said[0], numbers, said[1]))
                numbers += 1
        if queue and queue[0][0] <= tick:
            now, _, event = heappop(queue)
        else:
            now, event, tick = tick, Tick(), tick + LIMITS.tick_s
        todo = pool.step(now, event)
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--chunks", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    asked = parser.parse_args()
    print("| workers | " + " | ".join(f"chunks/s of {count:,}" for count in asked.chunks) + " |")
    print("|---" * (1 + len(asked.chunks)) + "|")
    slowest, growth = float("inf"), 0.0
    for workers in asked.workers:
        rates = [count / seconds(workers, count) for count in asked.chunks]
        print(f"| {workers} | " + " | ".join(f"{rate:,.0f}" for rate in rates) + " |", flush=True)
        slowest, growth = min(slowest, *rates), max(growth, rates[0] / rates[-1])
    print(f"\nslowest {slowest:,.0f} chunks/s (target: at least {TARGET:,})")
    print(f"cost of a chunk, longest plan over shortest: at most {growth:.2f} (target: {GROWTH})")
    if slowest < TARGET or growth > GROWTH:
        sys.exit("a target was missed")


if __name__ == "__main__":
    main()
