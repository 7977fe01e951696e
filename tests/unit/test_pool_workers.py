"""Does the pool start, replace, drain and give up workers as it should, event by event?"""

from dataclasses import replace
from typing import Any

import pytest
from pool_loop import LIMITS, Loop, failure, killed, leased, started

from rlhf_ray.errors import ClusterUnavailable
from rlhf_ray.scheduling.events import (
    Death,
    Died,
    Drain,
    Event,
    Fail,
    Failed,
    Fault,
    Kill,
    Leaving,
    Loaded,
    Pong,
    Publish,
    Result,
    Scale,
    Started,
    Tick,
)

# Slots.


def test_a_slot_waits_longer_with_each_death_in_a_row_and_no_longer_than_it_may() -> None:
    loop = Loop(1, restarts=9)
    for worker, wait in enumerate([2, 4, 5, 5]):
        loop.say(Died(worker, Death.INFRA, "segfault"))
        assert started(loop.tick(wait - 0.5)) == []
        assert started(loop.tick(0.5)) == [(worker + 1, 0)]
        loop.say(Started(worker + 1, 0))


def test_a_finished_chunk_makes_the_wait_short_again() -> None:
    loop = Loop(1)
    loop.submit(1, 2)
    loop.say(Died(0, Death.INFRA, "segfault"))
    loop.tick(2)
    loop.say(Started(1, 0))
    loop.done(1, 1)
    loop.say(Died(1, Death.INFRA, "segfault"))
    assert started(loop.tick(2)) == [(2, 0)]


def test_a_slot_has_so_many_restarts_in_its_window_preemptions_apart() -> None:
    loop = Loop(1)
    for worker, death in enumerate([Death.INFRA, Death.PREEMPTED, Death.INFRA, Death.PREEMPTED]):
        loop.say(Died(worker, death, ""))
        assert started(loop.tick(10)) == [(worker + 1, 0)]
        loop.say(Started(worker + 1, 0))
    loop.say(Died(4, Death.INFRA, ""))
    assert started(loop.tick(269)) == []
    assert started(loop.tick(1)) == [(5, 0)]  # the first restart was 300 s ago


@pytest.mark.parametrize(
    "said", [Died(1, Death.INIT_FAILED, "no CUDA"), Failed(1, Fault.DATA, "no CUDA")]
)
def test_a_slot_whose_workers_cannot_start_is_closed_and_the_others_go_on(said: Event) -> None:
    loop = Loop()
    loop.say(Scale(2))
    loop.tick()
    loop.say(Started(0, 0), said)
    assert started(loop.tick(3)) == [(2, 1)]
    loop.say(Died(2, Death.INIT_FAILED, "no CUDA"))
    assert loop.tick(400) == []
    loop.say(Scale(2))
    assert started(loop.tick()) == [(3, 2)]


def test_the_run_ends_when_too_few_workers_can_start() -> None:
    loop = Loop()
    loop.say(Scale(1))
    loop.tick()
    loop.say(Died(0, Death.INIT_FAILED, "no CUDA"))
    loop.tick(2)
    loop.say(Died(1, Death.INIT_FAILED, "no CUDA"))
    error = failure(loop.tick(1))
    assert isinstance(error, ClusterUnavailable)
    assert str(error).startswith(
        "workers cannot start; chunks left: 0, workers asked for: 1 (none is alive), the last that "
        "died: worker 0: init failed, no CUDA; worker 1: init failed, no CUDA."
    )


def test_one_worker_that_started_forgives_a_failed_start() -> None:
    loop = Loop()
    loop.say(Scale(1))
    loop.tick()
    loop.say(Died(0, Death.INIT_FAILED, ""))
    loop.tick(2)
    loop.say(Started(1, 0), Died(1, Death.INFRA, ""))
    loop.tick(5)
    loop.say(Died(2, Death.INIT_FAILED, ""))
    assert not loop.pool.crew.slots[0].closed


# More and fewer workers.


def test_a_smaller_pool_gives_up_first_what_costs_least() -> None:
    loop = Loop(4)
    loop.submit(7)  # worker 3
    loop.say(Died(0, Death.INFRA, ""), Scale(5))
    loop.tick()  # slot 0 waits, slot 4 has worker 4, which is starting
    assert loop.say(Scale(4)) == []
    assert killed(loop.say(Scale(3))) == [(4, Death.DRAINED)]
    assert killed(loop.say(Scale(2))) == [(2, Death.DRAINED)]
    assert loop.say(Scale(1)) == [Kill(1, Death.DRAINED, "the pool is to have 1")]
    assert started(loop.tick(100)) == []


def test_of_workers_without_a_chunk_those_go_first_that_are_furthest_from_being_ready() -> None:
    loop = Loop(3)
    loop.say(Publish(1), Loaded(2, 1), Died(0, Death.INFRA, ""))
    loop.tick(2)  # 1 loads, 2 is ready, 3 starts
    assert killed(loop.say(Scale(2))) == [(3, Death.DRAINED)]
    assert killed(loop.say(Scale(1))) == [(1, Death.DRAINED)]
    assert loop.pool.crew.deaths == {Death.INFRA: 1, Death.DRAINED: 2}
    assert list(loop.pool.crew.last_deaths) == ["worker 0: infra, "]


@pytest.mark.parametrize("last", [Result(1, 7, 0, "7@0"), Failed(1, Fault.DATA, "too long", 7)])
def test_a_worker_that_is_done_is_killed_at_once_where_it_is_no_longer_wanted(last: Event) -> None:
    loop = Loop(2)
    loop.submit(7, 8)
    loop.say(last)
    assert killed(loop.say(Scale(1))) == [(1, Death.DRAINED)]


def test_a_busy_worker_that_is_no_longer_wanted_ends_its_chunk_and_is_killed() -> None:
    loop = Loop(2)
    loop.submit(7, 8, 9)
    assert loop.say(Scale(1)) == [Drain(1, "the pool is to have 1")]
    actions = loop.done(1, 7)
    assert killed(actions) == [(1, Death.DRAINED)]
    assert leased(actions) == []
    assert leased(loop.done(0, 8)) == [(0, 9)]


def test_a_drain_ends_in_time_and_the_chunk_is_not_to_blame() -> None:
    loop = Loop(2)
    loop.submit(7, 8)
    loop.say(Scale(1))
    loop.done(0, 8)
    assert killed(loop.tick(19)) == []
    actions = loop.tick(1)
    assert killed(actions) == [(1, Death.DRAINED)]
    assert leased(actions) == [(0, 7)]
    assert loop.pool.work.open[7].faults == ()


def test_a_worker_whose_node_goes_away_is_replaced_while_it_ends_its_chunk() -> None:
    loop = Loop(1)
    loop.submit(7, 8)
    assert loop.say(Leaving(0, within_s=6)) == [Drain(0, "its node goes away")]
    assert loop.say(Leaving(0, within_s=6)) == []
    assert started(loop.tick(2)) == [(1, 0)]
    assert killed(loop.tick(4)) == [(0, Death.DRAINED)]
    assert leased(loop.say(Started(1, 0))) == [(1, 7)]


def test_fewer_workers_than_the_fewest_are_refused() -> None:
    with pytest.raises(ValueError, match="a pool of 1 was asked for; min_workers is 2"):
        Loop(3, min_workers=2).say(Scale(1))


def test_the_run_ends_when_too_few_workers_were_ready_for_too_long() -> None:
    loop = Loop(2, min_workers=2)
    loop.submit(*range(99))
    loop.say(Died(0, Death.PREEMPTED, "spot"))
    loop.tick()
    loop.tick(100)
    loop.say(Pong(1))
    for key in range(5):
        loop.done(1, key)
    error = failure(loop.tick(50))
    assert "fewer than 2 workers were ready for 150 s" in str(error)
    assert isinstance(error, ClusterUnavailable)


def test_too_few_workers_do_not_matter_where_there_is_no_work() -> None:
    loop = Loop(1)
    loop.say(Died(0, Death.PREEMPTED, "spot"))
    for _ in range(9):
        assert not [one for one in loop.tick(90) if isinstance(one, Fail)]


def test_the_run_ends_when_no_chunk_is_finished_for_too_long() -> None:
    loop = Loop(1, restarts=99, tries=99)
    loop.now = 1000.0
    loop.submit(7)
    for worker in range(49):
        loop.say(Died(worker, Death.PREEMPTED, f"spot {worker}"))
        loop.tick(10)
        loop.say(Started(worker + 1, 0), Tick())
    error = failure(loop.tick(10))
    assert "no chunk was finished for 500 s; chunks left: 1" in str(error)
    assert "spot 46; worker 47: preempted, spot 47; worker 48: preempted, spot 48" in str(error)


def test_more_work_does_not_hide_that_nothing_moves() -> None:
    loop = Loop(1)
    loop.submit(7)
    loop.now = 499.0
    loop.submit(8)
    loop.now = 500.0
    assert "no chunk was finished" in str(failure(loop.say(Tick())))


# What is said about workers that are gone.


@pytest.mark.parametrize(
    "event",
    [
        Started(0, 0),
        Loaded(0, 0),
        Pong(0),
        Died(0, Death.INFRA, ""),
        Leaving(0, 1.0),
        Failed(0, Fault.INFRA, "", 7),
        Failed(0, Fault.DATA, "", 7),
        Result(0, 9, 0, "9@0"),
    ],
)
def test_what_is_said_of_a_worker_that_is_gone_changes_nothing(event: Event) -> None:
    loop = Loop(1)
    loop.submit(7)
    loop.say(Died(0, Death.INFRA, ""))
    assert loop.say(event) == []
    assert loop.pool.work.open[7].copies == 0
    assert loop.pool.crew.slots[0].due == 2


@pytest.mark.parametrize(
    ("limits", "what"),
    [
        ({"tick_s": 0}, "tick_s is 0; it must be > 0"),
        ({"stall_s": 189}, r"stall_s is 189, but a first chunk may take 190 s"),
        ({"short_s": 149}, r"short_s is 149, but a worker may need 150 s to be ready"),
        ({"chunk_floor_s": 41}, r"chunk_floor_s is 41, above chunk_cap_s 40"),
    ],
)
def test_limits_that_contradict_each_other_are_refused(limits: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        replace(LIMITS, **limits)
