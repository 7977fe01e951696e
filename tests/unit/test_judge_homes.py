"""Where judges live when workers come and go, and what their workers are told."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from actors import judge, judges
from actors.judge import Ask, Home
from actors.judges import Judges
from rlhf_ray.config.judges import BradleyTerryJudge, Judge, JudgeFleet, RuleJudge
from rlhf_ray.config.schema import Timeouts
from rlhf_ray.errors import ClusterUnavailable
from rlhf_ray.messages import Judgement
from rlhf_ray.scheduling.homes import homes


def test_judges_are_spread_over_workers_in_recipe_order() -> None:
    three = {"a": 1, "b": 1, "c": 1}
    assert homes(three, 1) == {("a", "b", "c"): 1}
    assert homes(three, 2) == {("a", "c"): 1, ("b",): 1}
    assert homes(three, 9) == {("a",): 1, ("b",): 1, ("c",): 1}, "no worker without a judge"


def test_replicas_of_a_judge_live_on_different_workers() -> None:
    assert homes({"a": 3, "b": 1}, 1) == {("a", "b"): 1, ("a",): 2}
    assert homes({"a": 3, "b": 1}, 4) == {("a",): 3, ("b",): 1}


def test_a_judge_worker_that_holds_other_weights_than_it_was_given_is_not_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(judge.ray, "get", lambda ref, timeout: 4)
    home = Home.__new__(Home)
    home._loading = {"good": (0, 4), "old": (1, 5)}
    assert home.loaded("good") == {0: None}
    assert home.loaded("old") == {1: "it holds 4 after loading 5"}


class Pool:
    """A pool that gets its workers where there is room."""

    def __init__(self, workers: Home, size: int, **options: Any) -> None:
        self.workers, self.size, self.published = workers, size, 0

    def stop(self) -> None:
        self.size = 0

    def publish(self) -> None:
        self.published += 1

    def scale(self, size: int) -> None:
        self.size = size


@dataclass
class Fleet:
    """Judges on pools that are not real, on a cluster with room for some workers."""

    judges: Judges
    wanted: list[int]
    room: list[int]
    told: list[str]
    made: list[Pool]

    def fit(self, workers: int) -> dict[tuple[str, ...], Any]:
        """The pools, once so many workers were ordered; each holds what it is said to hold."""
        self.wanted[0] = workers
        self.judges._fit()
        for names, pool in self.judges.pools.items():
            assert tuple(one.judge for one in pool.workers.editions) == names
        lost = [one for one in self.made if one not in self.judges.pools.values()]
        assert [one.size for one in lost] == [0] * len(lost), "nobody would ever end these"
        return dict(self.judges.pools)

    def sizes(self, workers: int) -> dict[tuple[str, ...], int]:
        return {names: pool.size for names, pool in self.fit(workers).items()}


def fleet(monkeypatch: pytest.MonkeyPatch, **replicas: int) -> Fleet:
    room, wanted, told, made = [9], [1], list[str](), list[Pool]()

    def make(*arguments: Any, **options: Any) -> Pool:
        made.append(Pool(*arguments, **options))
        return made[-1]

    def gather(pools: list[Pool], needed: int = 1, within_s: float | None = None) -> None:
        others = sum(one.size for one in made if one not in pools)
        if others + len(pools) > room[0]:
            raise ClusterUnavailable("no judge 1 worker was ready in time")

    monkeypatch.setattr(judges, "WorkerPool", make)
    monkeypatch.setattr(judges, "gather", gather)
    entries: dict[str, Judge] = {
        name: BradleyTerryJudge(path=name, replicas=count) for name, count in replicas.items()
    }
    ours = Judges(entries, {}, JudgeFleet(), Timeouts(), wanted=lambda: wanted[0], tell=told.append)
    return Fleet(ours, wanted, room, told, made)


def test_judges_stay_where_they_are_where_there_is_no_room_for_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = fleet(monkeypatch, a=1, b=1)
    ours.room[0] = 1
    (both,) = ours.fit(2).values()
    assert (both.size, both.published) == (1, 0)
    waits, stays = ours.told
    assert waits == "2 judge workers were ordered; the run waits for new ones to load"
    assert "judges stay where they are, 2 workers were ordered: no judge 1 worker" in stays


def test_workers_change_their_judges_where_others_come_and_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = fleet(monkeypatch, a=1, b=1)
    before = ours.fit(1)
    apart = ours.fit(3)
    assert list(apart) == [("a",), ("b",)]
    assert apart[("a",)] is before[("a", "b")]
    assert ours.fit(1) == {("a", "b"): apart[("a",)]}


def test_replicas_are_workers_of_one_pool_which_has_more_of_them_or_fewer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = fleet(monkeypatch, a=3, b=1)
    first = ours.fit(1)
    assert {names: pool.size for names, pool in first.items()} == {("a", "b"): 1, ("a",): 2}
    more = ours.fit(4)
    assert {names: pool.size for names, pool in more.items()} == {("a",): 3, ("b",): 1}
    assert more == {("a",): first[("a",)], ("b",): first[("a", "b")]}


def test_no_more_workers_live_at_a_time_than_before_or_than_ordered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = fleet(monkeypatch, a=2, b=2)
    ours.room[0] = 4
    assert ours.sizes(4) == {("a",): 2, ("b",): 2}
    assert ours.sizes(3) == {("a", "b"): 1, ("a",): 1, ("b",): 1}, "who goes makes room"
    ours.room[0] = 2
    assert ours.sizes(2) == {("a", "b"): 2}
    assert ours.sizes(3) == {("a", "b"): 2}, "as it was"
    assert sum("stay where they are" in line for line in ours.told) == 1


def test_judges_are_built_as_the_recipe_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judges, "WorkerPool", Pool)
    monkeypatch.setattr(judges, "gather", lambda pools, needed=1, within_s=None: None)
    fleet = JudgeFleet(precision="bf16", tokens_per_batch=77, num_gpus=0.5)
    found = Judges({"a": RuleJudge(rule="length")}, {}, fleet, Timeouts())
    assert found.pools[("a",)].workers.options == {
        "tokens_per_batch": 77, "critic": None, "num_gpus": 0.5, "precision": "bf16",
    }  # fmt: skip


NAN = float("nan")


@pytest.mark.parametrize(
    ("values", "failures", "why"),
    [
        ([[1.0, 2.0]], {}, None),
        ([[1.0, NAN]], {"timeout": 1}, None),
        ([[1.0], [2.0]], {}, "values of shape (2, 1) where (1, 2) was asked"),
        ([[1.0, NAN]], {}, "1 values that are not finite, 0 have a reason"),
        ([[1.0, float("inf")]], {}, "1 values that are not finite, 0 have a reason"),
        ([[1.0, 2.0]], {"timeout": 1}, "0 values that are not finite, 1 have a reason"),
    ],
)
def test_a_worker_whose_scores_cannot_be_is_found_out(
    values: list[list[float]], failures: dict[str, int], why: str | None
) -> None:
    ask = Ask("score", "a", (["p"], [["x", "y"]], [["", ""]], [None]))
    assert Home.__new__(Home).check(ask, Judgement(np.array(values), failures)) == why


@pytest.mark.parametrize("method", ["score", "margins"])
def test_a_worker_that_answers_something_else_altogether_is_found_out(method: str) -> None:
    wrong = Home.__new__(Home).check(Ask(method, "a", ()), "garbage")
    assert wrong is not None
    assert wrong.startswith("str where ")


def test_a_margin_may_be_missing_but_not_infinite() -> None:
    home, ask = Home.__new__(Home), Ask("margins", "a", (["p", "q"],))
    assert home.check(ask, np.array([1.0, NAN])) is None
    assert home.check(ask, np.array([1.0])) == "values of shape (1,) where (2,) was asked"
    infinite = home.check(ask, np.array([1.0, -float("inf")]))
    assert infinite == "1 values that are not finite, 0 have a reason"
