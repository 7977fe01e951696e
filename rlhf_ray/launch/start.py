"""Before anything is loaded: the task is read, the cluster is joined, what cannot be is refused."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import actors
import rlhf_ray
from actors.cluster import asked, cluster, totals
from rlhf_ray.bootstrap.roles import Task
from rlhf_ray.config.judges import GoldJudge, RuleJudge
from rlhf_ray.config.resources import Crew, check_against_cluster, plan, refreshed, trained
from rlhf_ray.config.schema import FileData, GoldData, Recipe
from rlhf_ray.console import View
from rlhf_ray.data.task import FileTask
from rlhf_ray.errors import BadData, ClusterUnavailable, RecipeError
from rlhf_ray.evaluation import HeldOut
from rlhf_ray.gold.task import GoldTask
from rlhf_ray.messages import Step

LOOK_S = 2.0
"""Between two looks at how large the cluster has become."""


@contextmanager
def on_cluster(recipe: Recipe, view: View, crew: Crew | None = None) -> Iterator[None]:
    """Join or start Ray, and refuse what it cannot hold before any model is loaded.

    `crew`: whom a command starts; None: those of a whole run.
    """
    check_import()
    wanted = crew or plan(recipe)
    with cluster(wanted.total_cpus, recipe.timeouts.cluster_s) as address:
        # Ray has just put its own handler here, which would lose the exit code and the advice.
        signal.signal(signal.SIGTERM, stop)
        view.say(f"Ray: {address}")
        # Our own cluster is as large as it will ever be; the nodes of another may still be coming.
        wait_s = recipe.timeouts.cluster_s if os.environ.get("RAY_ADDRESS") else 0.0
        await_room(wanted, totals, wait_s, view.say, asked)
        yield


def await_room(
    wanted: Crew,
    totals: Callable[[], tuple[float, float]],
    wait_s: float,
    say: Callable[[str], None],
    asked: Callable[[Sequence[Mapping[str, float]]], AbstractContextManager[None]],
) -> None:
    """Wait until the cluster is large enough for what is to be started on it, and have its
    autoscaler `asked` for that meanwhile.

    Raises RecipeError where nothing can join, ClusterUnavailable where nothing did in time.
    """
    lacking = _lacking(wanted, totals)
    if lacking is None:
        return
    if not wait_s:
        raise lacking
    say(f"waiting up to {wait_s:g} s for nodes: {lacking}")
    ends = time.monotonic() + wait_s
    with asked(wanted.bundles):
        while lacking := _lacking(wanted, totals):
            if time.monotonic() > ends:
                raise ClusterUnavailable(
                    f"{lacking} (nodes were awaited {wait_s:g} s, timeouts.cluster_s)"
                ) from lacking
            time.sleep(min(LOOK_S, wait_s))


def _lacking(wanted: Crew, totals: Callable[[], tuple[float, float]]) -> RecipeError | None:
    """Why the cluster is too small as it is."""
    try:
        check_against_cluster(wanted, *totals())
    except RecipeError as error:
        return error
    return None


def stop(signum: int, frame: Any) -> None:
    """A polite end: the run folder is resumable at any moment, so there is nothing to save."""
    raise KeyboardInterrupt


def build_task(recipe: Recipe, *, alone: bool = False) -> Any:
    """The task with all its files read. Raises BadData or RecipeError for what cannot be used.

    `alone`: for judges or their critic without a run, which ask nothing of the prompts.
    """
    files: dict[str, Any] = {"judges": recipe.judges, "critic": recipe.critic}
    match recipe.data:
        case GoldData():
            task: Any = GoldTask(recipe.data, seed=recipe.seed, **files)
        case FileData():
            task = FileTask(recipe.data, seed=recipe.seed, **files)
    if not alone:
        check_prompts(recipe, task)
        check_refresh(recipe, task)
    return task


def check_prompts(recipe: Recipe, task: Task) -> None:
    """What the loop will ask of the prompts, asked before any model is loaded."""
    wave = task.wave(Step(0, 0, 0), recipe.loop.prompts)
    HeldOut.answered(task.held_out(recipe.evaluate.prompts))
    for name, entry in recipe.judges.items():
        verifies = isinstance(entry, GoldJudge) or (
            isinstance(entry, RuleJudge) and entry.rule not in ("length", "format")
        )
        for prompt in wave if verifies else ():
            if prompt.answer is None:
                raise BadData(
                    f"judge '{name}' compares with answers, prompt '{prompt.id}' has none; add "
                    "`answer` and `answer_type` to it, or leave it out"
                )


def check_refresh(recipe: Recipe, task: Any) -> None:
    """Whether a refresh has its prompts, and each of its judges an exam to be promoted by."""
    if recipe.refresh is None:
        return
    task.fresh(1, recipe.refresh.prompts)
    if not isinstance(task, FileTask) or any(one.answer_type for one in task.prompts):
        return
    among = refreshed(recipe, recipe.refresh)
    for name, _, training in trained(recipe):
        if name in among and getattr(training.preferences, "held_out", None) is None:
            raise RecipeError(
                f"refresh: nothing can show that judge '{name}' is no worse afterwards, so it "
                f"would never be promoted; add judges.{name}.train.preferences.held_out, or "
                "`answer` and `answer_type` to prompts"
            )


def check_import() -> None:
    """`actors` is a common name: say so when somebody else's package is found first."""
    ours = Path(rlhf_ray.__file__).parent.parent / "actors"
    found = Path(actors.__file__ or "").parent
    if ours != found:
        raise ImportError(
            f"'actors' was imported from {found}, not from {ours}; something else on sys.path has "
            "that name: run from another folder or use the `rlhf-ray` command"
        )
