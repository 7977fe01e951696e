"""Is all work on the disk done in its order, beside the run, and is nothing that fails lost?"""

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fakes
import pytest
import toy_runs

from actors.learners import Learners
from rlhf_ray.driver import steps
from rlhf_ray.durable import behind as module
from rlhf_ray.durable.attempts import TakenOver
from rlhf_ray.durable.behind import Behind, behind
from rlhf_ray.durable.recorded import SettledLearner
from rlhf_ray.errors import StorageFailed

SOON_S = 30.0
"""Far longer than anything here takes."""


def full() -> None:
    raise StorageFailed("the disk is full")


@pytest.fixture
def gate() -> threading.Event:
    """What work waits for that is to be under way for as long as a test likes."""
    return threading.Event()


def held(gate: threading.Event) -> Callable[[], None]:
    def work() -> None:
        assert gate.wait(SOON_S)

    return work


def test_work_is_done_in_the_order_it_was_given() -> None:
    done: list[int] = []
    with behind() as later:
        for number in range(200):
            later.later(partial(done.append, number))
    assert done == list(range(200))


def test_the_run_goes_on_while_work_is_under_way(gate: threading.Event) -> None:
    with behind() as later:
        later.later(held(gate))
        later.later(lambda: None)
        gate.set()  # only reached where `later` did not wait


def test_settling_waits_for_all_that_was_given_and_says_how_long(gate: threading.Event) -> None:
    done: list[str] = []
    with behind() as later:
        later.later(held(gate))
        later.later(lambda: done.append("last"))
        threading.Timer(0.05, gate.set).start()
        later.settle()
        assert done == ["last"]
        assert 0.04 < later.waited_s() < SOON_S
        assert later.waited_s() == 0.0


def test_what_fails_is_raised_where_the_run_next_looks_and_nothing_after_it_is_begun() -> None:
    done: list[str] = []
    later = Behind()
    later.later(full)
    with pytest.raises(StorageFailed, match="full"):
        later.settle()
    with pytest.raises(StorageFailed, match="full"):
        later.later(lambda: done.append("after"))
    later.close(SOON_S)
    assert done == []


def test_a_failure_in_the_last_moment_is_not_lost() -> None:
    with pytest.raises(StorageFailed, match="full"), behind() as later:
        later.later(full)


def test_after_an_error_only_what_is_under_way_is_done(gate: threading.Event) -> None:
    done: list[str] = []

    def under_way() -> None:
        held(gate)()
        done.append("under way")

    later = Behind()
    later.later(under_way)
    later.later(lambda: done.append("waiting"))
    threading.Timer(0.05, gate.set).start()
    later.close(SOON_S)
    assert done == ["under way"]


def test_an_error_of_the_run_waits_for_what_is_under_way(gate: threading.Event) -> None:
    done: list[str] = []

    def under_way() -> None:
        held(gate)()
        done.append("kept")

    def run() -> None:
        with behind() as later:
            later.later(under_way)
            threading.Timer(0.05, gate.set).start()
            raise TakenOver("somebody else has the run")

    with pytest.raises(TakenOver):
        run()
    assert done == ["kept"]


def test_a_run_that_is_stopped_does_not_wait_for_a_checkpoint(
    gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LAST_S", 0.01)

    def run() -> None:
        with behind() as later:
            later.later(held(gate))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    gate.set()


def test_a_disk_that_hangs_ends_the_wait(gate: threading.Event) -> None:
    later = Behind(within_s=0.01)
    later.later(held(gate))
    with pytest.raises(StorageFailed, match="for the wave before to be kept"):
        later.settle()
    gate.set()


class SlowLearner(toy_runs.CarelessLearner):
    """Each of its checkpoints takes until the next wave is sampled, or the run is over."""

    def __init__(self, diary: fakes.Diary) -> None:
        super().__init__(diary)
        self.sampling, self.saving = threading.Event(), False

    def save(self, folder: Path) -> None:
        self.saving = True
        assert self.sampling.wait(SOON_S), "the next wave was not sampled beside the checkpoint"
        super().save(folder)
        time.sleep(0.02)  # long enough for an update that does not wait
        self.sampling.clear()
        self.saving = False

    def update(self, *arguments: Any) -> Any:
        assert not self.saving, "updated while its weights were being saved"
        return super().update(*arguments)


def test_a_wave_is_sampled_while_the_one_before_is_kept_and_learnt_from_after_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learners: list[SlowLearner] = []

    def learner(diary: fakes.Diary) -> SlowLearner:
        learners.append(SlowLearner(diary))
        return learners[-1]

    loop = toy_runs.TWO_WAVES.model_copy(update={"rounds": 1, "waves": 2})
    generate, measure = fakes.Policy.generate, fakes.Evaluator.measure

    def beside(self: Any, key: str, *arguments: Any, **options: Any) -> Any:
        if key != "wave-0":
            learners[0].sampling.set()
        return generate(self, key, *arguments, **options)

    def at_the_end(self: Any, round: int) -> Any:
        if round == 1:
            learners[0].sampling.set()
        return measure(self, round)

    monkeypatch.setattr(fakes.Policy, "generate", beside)
    monkeypatch.setattr(fakes.Evaluator, "measure", at_the_end)
    monkeypatch.setattr(toy_runs, "CarelessLearner", learner)
    toy_runs.driven(tmp_path / "slow", loop=loop)
    monkeypatch.undo()
    toy_runs.driven(tmp_path / "straight", loop=loop)
    assert toy_runs.leavings(tmp_path / "slow") == toy_runs.leavings(tmp_path / "straight")


def test_a_learner_is_not_asked_for_anything_before_all_is_kept() -> None:
    diary: list[str] = []
    step = next(steps(toy_runs.TWO_WAVES, 0))
    learner = SimpleNamespace(
        begin_round=lambda: diary.append("begin"), update=lambda *_: diary.append("update")
    )
    with behind() as later:
        settled = SettledLearner(learner, later)
        for ask in (settled.begin_round, partial(settled.update, step, [])):
            later.later(partial(time.sleep, 0.02))
            later.later(lambda: diary.append("kept"))
            ask()
    assert diary == ["kept", "begin", "kept", "update"]


def test_calls_of_two_threads_reach_all_ranks_in_one_order() -> None:
    heard: list[list[str]] = [[], []]

    def rank(number: int, name: str) -> Any:
        def remote() -> None:
            heard[number].append(name)
            time.sleep(0.001)  # the other thread would come between

        return SimpleNamespace(remote=remote)

    learners = Learners.__new__(Learners)
    learners._turn = threading.Lock()
    learners.ranks = [
        SimpleNamespace(save=rank(number, "save"), deliver=rank(number, "deliver"))
        for number in range(2)
    ]
    threads = [
        threading.Thread(target=lambda name=name: [learners._send(name) for _ in range(20)])
        for name in ("save", "deliver")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=SOON_S)
    assert heard[0] == heard[1]
    assert len(heard[0]) == 40
