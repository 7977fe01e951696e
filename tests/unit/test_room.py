"""Is a cluster whose nodes are still coming waited for, and no longer than that?"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
from recipes import recipe_with

from rlhf_ray.config.resources import Actors, Crew, plan
from rlhf_ray.errors import ClusterUnavailable, RecipeError
from rlhf_ray.launch import start
from rlhf_ray.launch.start import await_room

CREW = plan(recipe_with(learner={"num_cpus": 6}))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "LOOK_S", 0.01)


def test_nodes_that_join_are_waited_for() -> None:
    sizes: Iterator[tuple[float, float]] = iter([(2, 0), (4, 0), (100, 0)])
    said, asks = list[str](), list[Any]()

    @contextmanager
    def asked(bundles: Any) -> Iterator[None]:
        asks.append(bundles)
        yield
        asks.append("no more")

    await_room(CREW, lambda: next(sizes), 30, said.append, asked)
    assert asks == [CREW.bundles, "no more"]
    assert [one.split(": ")[0] for one in said] == ["waiting up to 30 s for nodes"]
    assert list(sizes) == []


def test_nodes_that_do_not_join_may_join_another_time() -> None:
    with pytest.raises(ClusterUnavailable, match=r"the cluster has 2\. .*awaited 0\.1 s"):
        await_room(CREW, lambda: (2, 0), 0.1, lambda _: None, nullcontext)


def test_a_cluster_of_our_own_does_not_grow() -> None:
    with pytest.raises(RecipeError, match="the cluster has 2"):
        await_room(CREW, lambda: (2, 0), 0.0, lambda _: None, nullcontext)


def test_an_autoscaler_is_asked_for_each_worker_that_lives_at_the_same_time() -> None:
    few, many = Actors("judge", 2, 0.5, 0.0), Actors("voter", 2, 1.0, 1.0)
    crew = Crew((Actors("learner", 1, 1.0, 1.0), few, Actors("rollout", 1, 0.0, 0.0), many))
    gang = {"CPU": 1.0, "GPU": 1.0}
    assert crew.bundles == [gang, gang, gang], "judges start when voters have gone"
    assert Crew((few,)).bundles == [{"CPU": 0.5}] * 2
