"""What is done to workers: killed or suspended, in phases that are seen before the blow."""

import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import yaml
from bench import RUN_S, Bench, Check, Process, draws, family_of, gone, tail
from victims import strike

KILLED = "R2 worker of any kind killed in a phase that was seen: the run goes on, ends alike"
HANGING = "R11 rollout or judge worker suspended: found, replaced, and the run ends alike"
LEARNER = "R3 learner rank killed in a phase that was seen: a new gang, the run ends alike"
STUCK = "R12 learner rank suspended: found at its deadline, a new gang, the run ends alike"
GONE = "R13 no process of ours 30 s after a run in which workers were killed"
SCALED = "R7 workers added and taken away in a run: it ends alike"
SCALED_KILLED = "R2 R7 worker killed in a run in which workers come and go: it ends alike"

WORKERS = (
    "RolloutActor", "RolloutActor.start", "RolloutActor.generate", "RolloutActor.logprobs",
    "RolloutActor.update_weights", "RolloutActor.finish_weight_update",
    "JudgeActor", "JudgeActor.load", "JudgeActor.score",
    "after RolloutActor.generate", "after JudgeActor.score",
)  # fmt: skip
"""Idle, loading, generating, answering probes, syncing, and returning."""
BUSY = ("RolloutActor.generate", "JudgeActor.score")
CRITICS = ("CriticActor", "CriticActor.start", "CriticActor.generate", "after CriticActor.generate")
"""Of recipes whose critic has a model of its own."""
LEARNERS = (
    "LearnerActor", "LearnerActor.update", "LearnerActor.deliver", "LearnerActor.save",
    "LearnerActor.begin_round", "LearnerActor.advance", "LearnerActor.begin",
)  # fmt: skip
FAST = ["timeouts.ping_s=1", "rollouts.workers=2"]
SOON = [*FAST, *(f"timeouts.{name}_s=45" for name in ("update", "sync", "engine"))]
"""Ranks have no pings: what they are asked for has a deadline."""


def kill_workers(bench: Bench, seed: int, run: Path) -> list[Check]:
    critic = yaml.safe_load(bench.recipe.read_text()).get("critic", {"kind": "none"})
    titles = WORKERS + (CRITICS if critic.get("kind", "model") == "model" else ())
    return broken(bench, seed, run, titles, KILLED, signal.SIGKILL)


def suspend_workers(bench: Bench, seed: int, run: Path) -> list[Check]:
    return broken(bench, seed, run, BUSY, HANGING, signal.SIGSTOP)


def kill_learners(bench: Bench, seed: int, run: Path) -> list[Check]:
    return broken(bench, seed, run, LEARNERS, LEARNER, signal.SIGKILL)


def suspend_learners(bench: Bench, seed: int, run: Path) -> list[Check]:
    return broken(bench, seed, run, LEARNERS[1:5], STUCK, signal.SIGSTOP, SOON)


def broken(
    bench: Bench, seed: int, run: Path, titles: tuple[str, ...], promise: str, kind: int,
    more: Sequence[str] = FAST,
) -> list[Check]:  # fmt: skip
    """Some blows in phases drawn by the seed; the run itself is never started again."""
    rng, struck = draws(seed, promise), list[str]()
    _, whole = bench.straight()
    with bench.driver(run, more=more) as driver:
        family = family_of(driver)
        for _ in range(bench.blows):
            title = titles[int(rng.integers(len(titles)))]
            time.sleep(rng.uniform(0.0, whole / bench.blows))
            if not _strike(driver, title, kind):
                break
            struck.append(title)
        family = [*family, *family_of(driver)]
        code = driver.wait(timeout=RUN_S)
    if not struck:
        return []
    if code != 0:
        return [Check(promise, False, f"code {code} after {struck}:\n{tail(run)}")]
    return [bench.same_end(run, promise, times=len(struck)), gone(run, family, GONE)]


def _strike(driver: Process, title: str, kind: int) -> bool:
    """Whether a worker was seen in this phase before the run was over."""
    try:
        strike(driver.pid, title, timeout_s=RUN_S, kind=kind)
    except psutil.NoSuchProcess:
        return False
    return driver.poll() is None


def scale_run(bench: Bench, seed: int, run: Path) -> list[Check]:
    """Other numbers of workers ordered at random moments, and some of them killed."""
    from rlhf_ray.scale import order

    rng, orders, struck = draws(seed, "scale"), list[dict[str, int | None]](), list[str]()
    _, whole = bench.straight()
    with bench.driver(run, more=FAST) as driver:
        while driver.poll() is None:
            time.sleep(rng.uniform(0.0, whole / 4))
            if (run / "config.resolved.yaml").is_file() and driver.poll() is None:
                counts = rng.integers(1, 5, size=2).tolist()
                orders.append({"rollouts": counts[0], "judges": counts[1]})
                order(run, orders[-1])
                title = WORKERS[int(rng.integers(len(WORKERS)))]
                if len(struck) < bench.blows and _strike(driver, title, signal.SIGKILL):
                    struck.append(title)
        code = driver.wait(timeout=RUN_S)
    if code != 0:
        return [Check(SCALED, False, f"code {code} after {orders}, {struck}:\n{tail(run)}")]
    if not orders:
        return []
    scaled = bench.same_end(run, SCALED, times=len(orders))
    return (
        [scaled, replace(scaled, promise=SCALED_KILLED, times=len(struck))] if struck else [scaled]
    )
