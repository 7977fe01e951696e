"""Does a pool keep its promises whatever it is told, in whatever order?"""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from pool_budgets import made
from pool_ledger import Ledger
from pool_simulator import LIMITS

from rlhf_ray.errors import RlhfRayError
from rlhf_ray.scheduling import events as e
from rlhf_ray.scheduling.events import Death, Fault
from rlhf_ray.scheduling.pool import Pool
from rlhf_ray.scheduling.slots import FREE, Slot

SECONDS = st.sampled_from([0.0, 0.3, 1.0, 4.0, 7.0, 15.0])
WORKERS = st.integers(0, 7)
KEYS = st.integers(0, 5)
VERSIONS = st.integers(0, 2)
DEATHS = st.sampled_from([Death.INFRA, Death.PREEMPTED, Death.OUT_OF_MEMORY, Death.INIT_FAILED])
EVENTS = st.one_of(
    st.just(e.Tick()),
    st.just(e.Tick()),
    st.builds(e.Submit, st.just("wave"), st.sampled_from([(0, 1, 2), (3,), (4, 5)])),
    st.builds(e.Publish, VERSIONS),
    st.builds(e.Scale, st.integers(1, 4)),
    st.builds(e.Started, WORKERS, VERSIONS),
    st.builds(e.Started, WORKERS, st.just(0)),
    st.builds(e.Loaded, WORKERS, VERSIONS),
    st.builds(e.Pong, WORKERS),
    st.tuples(WORKERS, KEYS, VERSIONS).map(lambda one: e.Result(*one, made(one[1], one[2]))),
    st.builds(e.Failed, WORKERS, st.sampled_from(Fault), st.just("why"), st.none() | KEYS),
    st.builds(e.Died, WORKERS, DEATHS, st.just("why")),
    st.builds(e.Leaving, WORKERS, SECONDS),
)


class Told:
    """A pool that is told anything, with a ledger; orders that cannot be are left out."""

    def __init__(self) -> None:
        self.pool, self.ledger, self.now = Pool(LIMITS, 0), Ledger(LIMITS), 0.0
        self.say(e.Scale(2))
        self.say(e.Tick())

    def say(self, event: e.Event) -> list[e.Action]:
        actions = self.pool.step(self.now, event)
        self.ledger.saw(self.now, event, actions)
        return actions

    def can_be(self, event: e.Event) -> bool:
        if isinstance(event, e.Submit):
            return not any(key in self.ledger.place for key in event.keys)
        return not (isinstance(event, e.Publish) and self.pool.work.left)


@settings(max_examples=300)
@given(st.lists(st.tuples(SECONDS, EVENTS), max_size=60))
def test_no_order_of_events_breaks_an_invariant(history: list[tuple[float, e.Event]]) -> None:
    told = Told()
    for seconds, event in history:
        told.now += seconds
        if told.can_be(event) and told.pool.failure is None:
            told.say(event)


@settings(max_examples=150)
@given(st.lists(st.tuples(SECONDS, EVENTS), max_size=40))
def test_whatever_has_happened_sound_workers_bring_it_to_an_end(
    history: list[tuple[float, e.Event]],
) -> None:
    told = Told()
    todo: list[Any] = []
    for seconds, event in history:
        told.now += seconds
        if told.can_be(event) and told.pool.failure is None:
            todo += told.say(event)
    holds = dict.fromkeys(range(999), told.pool.crew.version)
    for _ in range(400):
        if not told.pool.work.left or told.pool.failure is not None:
            break
        while todo:
            todo += replies(told, todo.pop(0), holds)
        told.now += LIMITS.tick_s
        todo += told.say(e.Tick())
    assert not told.pool.work.left or isinstance(told.pool.failure, RlhfRayError)


def replies(told: Told, action: e.Action, holds: dict[int, int]) -> list[e.Action]:
    """What a sound worker says at once."""
    match action:
        case e.Start(worker, _):
            holds[worker] = 0
            return told.say(e.Started(worker, 0))
        case e.Load(worker, version):
            holds[worker] = version
            return told.say(e.Loaded(worker, version))
        case e.Ping(worker):
            return told.say(e.Pong(worker))
        case e.Lease(worker, key, _):
            version = holds[worker]
            return told.say(e.Result(worker, key, version, made(key, version)))
    return []


@given(st.lists(st.tuples(st.floats(0, 50), st.sampled_from(Death)), max_size=40))
def test_no_window_holds_more_restarts_than_a_slot_may_have(
    lives: list[tuple[float, Death]],
) -> None:
    slot, now, charged = Slot(0, LIMITS), 0.0, []
    slot.start(0, now)
    for lived_s, death in lives:
        slot.started()
        slot.lose(death, now + lived_s)
        assert not slot.may_start(now + lived_s)
        now = slot.due
        assert slot.may_start(now)
        slot.start(0, now)
        charged += [now] if death not in FREE else []
    pairs = zip(charged, charged[LIMITS.restarts :], strict=False)
    assert all(later - earlier >= LIMITS.window_s - 1e-6 for earlier, later in pairs)
