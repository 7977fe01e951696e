"""Does a pool keep its promises in thousands of histories in which everything goes wrong?"""

import sys
from pathlib import Path
from random import Random
from types import ModuleType

import pytest
from pool_budgets import Violation
from pool_simulator import UNBROKEN, Simulation, Weather, plan, simulate, simulate_all

from rlhf_ray.scheduling import pool
from rlhf_ray.scheduling.events import Death

HISTORIES, PARTS = 10_000, 10
FOLDER = Path(pool.__file__).parent
STACKED = ("work", "slots", "crew", "pool")
"""The modules a fault may be planted in, each after those it imports."""

FAULTS = {
    "what is done already is delivered again": (
        "I1", "pool", 'self.counts["unused result"] += 1',
        "self._order(Deliver(event.key, event.value))",
    ),
    "results are delivered as they arrive": (
        "I10", "pool", "self.work.finish(chunk, event.value)",
        "self.work.finish(chunk, event.value); self._order(Deliver(chunk.key, event.value))",
    ),
    "the version of a result is not looked at": (
        "I3", "pool", "event.version != self.crew.version", "False",
        "pool", "if version != worker.version:", "if False:",
    ),
    "a worker is not given the published weights": (
        "I3", "crew", "elif worker.version != self.version:", "elif False:",
    ),
    "a worker that lied about its weights lives on": (
        "K", "crew", "if event.version != worker.version:", "if False:",
    ),
    "deadlines are ignored": ("I9", "crew", "if now >= worker.due:", "if False:"),
    "deadlines come too early": ("K", "crew", "now + limit_s\n", "now + limit_s / 8\n"),
    "pings that are missed are not counted": (
        "I9", "crew", "worker.missed += worker.waits_for_pong", "worker.missed += 0",
    ),
    "restarts are not bounded": (
        "I8", "slots", "if len(self._restarts) == limits.restarts:", "if False:",
    ),
    "a restart does not wait": ("I8", "slots", "2**self._deaths_in_row", "0"),
    "preemptions cost restarts": ("I9", "slots", "FREE = {Death.PREEMPTED, ", "FREE = {"),
    "a slot where nothing starts is not closed": (
        "I8", "slots", "self.closed = self._inits_in_row >= limits.init_tries", "pass",
    ),
    "the window does not bind": ("I8", "pool", "room = self.limits.window *", "room = 99 *"),
    "a chunk that died with its worker is forgotten": (
        "I9", "work", "chunk.stage = Stage.PENDING\n            self.again(chunk)",
        "chunk.stage = Stage.PENDING",
    ),
    "a late result is thrown away": (
        "I9", "pool", "not undone or", "not undone or not held or",
    ),
    "a straggler is given to everybody": ("I8", "pool", "chunk.copies == 1 and", ""),
    "a straggler is given to nobody": ("I9", "pool", "chunk.copies == 1 and", "False and"),
    "a poisonous chunk is tried for ever": (
        "I8", "work", "if len(chunk.faults) >= self.tries:", "if False:",
    ),
    "poison ends the run before all else is done": (
        "I1", "pool", "if self.work.poisoned and not self.work.left:", "if self.work.poisoned:",
    ),
    "a failed chunk goes to the worker it failed on": (
        "I8", "pool", "if not chunk.avoid:", "if True:",
    ),
    "a drained worker lives on": (
        "I8", "crew", "if worker.state is State.DRAINING:", "if False:",
    ),
    "a standstill is waited out": ("I9", "pool", "elif self.work.left and now", "elif False and 0"),
}  # fmt: skip
"""The invariant that catches it, then module, text and what takes its place, once or more."""


def planted(*changes: str) -> type[pool.Pool]:
    """The pool with lines of its source changed; the modules themselves stay as they are."""
    rest = list(changes)
    sources = {name: (FOLDER / f"{name}.py").read_text() for name in STACKED}
    while rest:
        name, old, new, *rest = rest
        assert sources[name].count(old) == 1, f"{name}.py has not one {old!r}"
        sources[name] = sources[name].replace(old, new)
    names = [f"rlhf_ray.scheduling.{name}" for name in STACKED]
    sound = {name: sys.modules[name] for name in names}
    try:
        for name, source in zip(names, sources.values(), strict=True):
            sys.modules[name] = module = ModuleType(name)
            exec(compile(source, name, "exec"), module.__dict__)
    finally:
        sys.modules.update(sound)
    found: type[pool.Pool] = module.Pool
    return found


@pytest.mark.parametrize("part", range(PARTS))
def test_ten_thousand_histories_keep_every_promise(part: int) -> None:
    size = HISTORIES // PARTS
    found = simulate_all(range(part * size, (part + 1) * size))
    # Weather that ends every run, or that never comes, would prove nothing.
    assert found["delivered"] > 0.7 * size
    happened = ["BadData", "ClusterUnavailable", "hedge", "late result", "unused result"]
    assert not [what for what in happened if not found[what]]
    assert not [death for death in Death if not found[f"died: {death}"]]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str) -> None:
    invariant, *changes = FAULTS[fault]
    faulty = planted(*changes)
    caught = set()
    for seed in range(500):
        try:
            simulate(seed, pool=faulty)
        except Violation as violation:
            caught.add(violation.invariant)
        if invariant in caught:
            return
    pytest.fail(f"500 histories hold, or broke {caught} only")


def test_the_same_seed_is_the_same_history() -> None:
    first, again = simulate(7), simulate(7)
    assert first.steps == again.steps > 50
    assert (first.now, first.pool.counts) == (again.now, again.pool.counts)


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", ["alike", "one is slow", "they come and go"])
def test_what_is_delivered_depends_on_no_number_or_speed_of_workers(
    workers: int, kind: str
) -> None:
    rng, shape = Random(workers), (12, 3, 6, 2)
    come_and_go = kind == "they come and go"
    simulation = Simulation(
        workers,
        Weather(crash=0.03, slow=0.1, late=0.5) if come_and_go else Weather(),
        workers=workers,
        waves=plan(shape),
        speed={
            "alike": lambda slot: 1.0,
            "one is slow": lambda slot: 4.0 if slot == 0 else 0.5,
            "they come and go": lambda slot: rng.uniform(0.2, 3.0),
        }[kind],
        scales=[5, 1, 4, 2, 6, 3] * 4 if come_and_go else [],
    )
    ledger = simulation.run()
    assert ledger.failure is None
    assert ledger.digest() == UNBROKEN[shape]
