"""Which errors mean that a rank is gone, and which are its own?"""

import socket
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, GetTimeoutError, OutOfMemoryError, RayTaskError

from actors import judge, learner
from actors import learners as gang
from actors.judge import Judges, Place
from actors.learner import LearnerActor
from actors.learners import Learners
from rlhf_ray.config.judges import Judge, JudgeFleet, RuleJudge
from rlhf_ray.config.schema import Timeouts
from rlhf_ray.errors import BadData, ClusterUnavailable, LearnersLost, RecipeError


def raised(cause: Exception) -> Any:
    """As it comes from a rank."""
    return RayTaskError("update", "the trace", cause, "title", 1, "ip").as_instanceof_cause()


class Ray:
    """Calls are what they come to."""

    @staticmethod
    def get(refs: Any, timeout: float) -> Any:
        for ref in refs if isinstance(refs, list) else [refs]:
            if isinstance(ref, Exception):
                raise ref
        return refs

    @staticmethod
    def wait(refs: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        return refs, []


@pytest.fixture
def learners(monkeypatch: pytest.MonkeyPatch) -> Learners:
    monkeypatch.setattr(gang, "ray", Ray)
    monkeypatch.setattr(gang, "resources", lambda: "no CPUs")
    return Learners.__new__(Learners)


PEER = raised(RuntimeError("Connection closed by peer"))


@pytest.mark.parametrize(
    "refs",
    [[ActorDiedError(), 1], [PEER, ActorDiedError()], [OutOfMemoryError("no memory")],
     [GetTimeoutError("late")]],
)  # fmt: skip
def test_a_rank_that_is_gone_costs_the_gang_also_where_its_peer_is_heard_first(
    refs: list[Any], learners: Learners
) -> None:
    with pytest.raises(LearnersLost, match="the learners to update"):
        learners._get(refs, timeout_s=1.0, what="update")


def test_a_node_that_does_not_see_the_run_folder_is_named_before_anything_is_trained(
    learners: Learners, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learner, "SEEN_S", 0.0)
    path = tmp_path / "000001.json"
    path.write_bytes(b"driver 1")
    sees = partial(LearnerActor.sees, None)
    assert sees(path, b"driver 1") == ""
    assert sees(path, b"driver 2") == sees(tmp_path / "other", b"") == socket.gethostname()

    learners.timeouts, host = Timeouts(), socket.gethostname()
    monkeypatch.setattr(learners, "_ask", lambda *asked, timeout_s: ["", ""])
    learners._check_folder(path)
    monkeypatch.setattr(learners, "_ask", lambda *asked, timeout_s: ["", "node-7"])
    with pytest.raises(RecipeError, match=rf"node-7 does not see {path}.*{host}.*--run-dir"):
        learners._check_folder(path)


def test_an_error_of_a_rank_whose_peers_live_is_raised_as_it_is(learners: Learners) -> None:
    with pytest.raises(RuntimeError):
        learners._get([PEER, PEER], timeout_s=1.0, what="update")
    with pytest.raises(BadData):
        learners._get([raised(BadData("loss is nan")), PEER], timeout_s=1.0, what="update")


def test_a_judge_worker_that_holds_other_weights_than_it_was_given_is_not_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(judge.ray, "get", lambda ref, timeout: 4)
    place = Place.__new__(Place)
    place._loading = {"good": (0, 4), "old": (1, 5)}
    assert place.loaded("good") == {0: None}
    assert place.loaded("old") == {1: "it holds 4 after loading 5"}


class Pool:
    """A pool that gets its worker, or does not."""

    def __init__(self, place: Any, **options: Any) -> None:
        self.place, self.stopped, self.published = place, False, 0

    def stop(self) -> None:
        self.stopped = True

    def publish(self) -> None:
        self.published += 1


def test_judges_stay_where_they_are_where_there_is_no_room_for_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full: list[bool] = []

    def gather(pools: list[Pool], within_s: float | None = None) -> None:
        if full and within_s is not None:
            raise ClusterUnavailable("no judge 1 worker was ready in time")

    monkeypatch.setattr(judge, "WorkerPool", Pool)
    monkeypatch.setattr(judge, "gather", gather)
    wanted, told = [1], list[str]()
    entries: dict[str, Judge] = {name: RuleJudge(rule="length") for name in "ab"}
    judges = Judges(
        entries, {}, JudgeFleet(), Timeouts(), wanted=lambda: wanted[0], tell=told.append
    )
    full.append(True)
    wanted[0] = 2
    judges._fit()
    assert judges.homes == {"a": [0], "b": [0]}
    assert "judges stay on 1 workers, 2 were ordered: no judge 1 worker" in told[0]
    full.clear()
    wanted[0] = 3
    judges._fit()
    assert judges.homes == {"a": [0], "b": [1]}
    assert [[one.judge for one in place.editions] for place in judges.places] == [["a"], ["b"]]
    wanted[0] = 1
    judges._fit()
    assert (len(judges.pools), [one.judge for one in judges.places[0].editions]) == (1, ["a", "b"])


def test_judges_are_built_as_the_recipe_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "WorkerPool", Pool)
    monkeypatch.setattr(judge, "gather", lambda pools, within_s=None: None)
    fleet = JudgeFleet(precision="bf16", tokens_per_batch=77, num_gpus=0.5)
    found = Judges({"a": RuleJudge(rule="length")}, {}, fleet, Timeouts())
    assert found.places[0].options == {
        "tokens_per_batch": 77, "critic": None, "num_gpus": 0.5, "precision": "bf16",
    }  # fmt: skip
