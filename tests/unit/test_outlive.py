"""How often may the learners be lost, and what is a step forward?"""

from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from recipes import recipe_with

from rlhf_ray.durable.folder import RunFolder
from rlhf_ray.durable.journal import Journal
from rlhf_ray.durable.manifest import write_manifest
from rlhf_ray.errors import LearnersLost
from rlhf_ray.launch.run import outlive


class Run:
    """Attempts that each do something, and then lose their learners."""

    def __init__(self, folder: Path, *steps: Any) -> None:
        self.folder, self.steps = RunFolder(folder, recipe_with()), list(steps)
        self.gangs = 1
        self.models: Any = SimpleNamespace(
            view=SimpleNamespace(say=lambda line: None), new_learners=self.another
        )

    def another(self) -> None:
        self.gangs += 1

    def work(self) -> list[Any]:
        if not self.steps:
            return ["done"]
        self.steps.pop(0)(self)
        raise LearnersLost("a rank died")

    def learn(self, index: int) -> None:
        with closing(Journal(self.folder.path / "journal")) as journal:
            journal.append("learn", f"r000-w{index:03d}", {"index": index})


def nothing(run: Run) -> None:
    """Dies where the attempt before did."""


def test_learners_may_be_lost_again_and_again_where_the_run_gets_on(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", *[lambda run, n=n: run.learn(n) for n in range(9)])  # type: ignore[misc]
    assert outlive(run.models, run.folder, run.work) == ["done"]
    assert run.gangs == 10


def test_waves_done_again_are_no_step_forward(tmp_path: Path) -> None:
    again = [lambda run, n=n: run.learn(n) for n in (4, 0, 4, 0, 4)]  # type: ignore[misc]
    run = Run(tmp_path / "run", *again)
    with pytest.raises(LearnersLost):
        outlive(run.models, run.folder, run.work)
    assert run.gangs == 3, "the third loss in a row ends it"


def test_what_is_made_before_the_first_wave_is_a_step_forward(tmp_path: Path) -> None:
    def train(run: Run) -> None:
        place = run.folder.path / "judges" / f"judge-{len(run.steps)}"
        place.mkdir(parents=True)
        write_manifest(place, {})

    run = Run(tmp_path / "run", nothing, train, nothing, train, nothing)
    assert outlive(run.models, run.folder, run.work) == ["done"]


def test_a_gang_that_does_not_meet_is_lost_again(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", nothing)

    def never() -> None:
        run.gangs += 1
        raise LearnersLost("no room")

    run.models.new_learners = never
    with pytest.raises(LearnersLost, match="no room"):
        outlive(run.models, run.folder, run.work)
    assert run.gangs == 3


def test_a_driver_that_was_taken_over_does_not_go_on(tmp_path: Path) -> None:
    from rlhf_ray.durable.attempts import Attempt, TakenOver

    run = Run(tmp_path / "run", lambda run: Attempt(run.folder.path))
    with pytest.raises(TakenOver):
        outlive(run.models, run.folder, run.work)
