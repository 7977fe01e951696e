"""How many leases/s, how much memory and disk does one driver core manage, up to 512 workers?

The driver's loop, the worker pool, the record with its journal, samples and checkpoints are the
product's. Workers, judges and the learner are simulated: a lease takes 5 to 15 s of a simulated
clock, drawn by a key; in one of 500 the worker dies, and its successor takes 30 s to start. The
clock also goes on by what the pool really costs this core. Judges and learner take no time, so what
is left of a wave is the driver. Each line is a process of its own; its folder is deleted.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_ray.bandit.linucb import LinUCB
from rlhf_ray.bandit.selector import Selector
from rlhf_ray.config.schema import Checkpoints as Settings
from rlhf_ray.config.schema import Loop, Pairs
from rlhf_ray.critiques.wave import NoCritic
from rlhf_ray.driver import Driver
from rlhf_ray.durable.checkpoint import Checkpoints
from rlhf_ray.durable.fsio import make_dir
from rlhf_ray.durable.journal import Journal
from rlhf_ray.durable.record import RunRecord
from rlhf_ray.durable.recorded import (
    RecordedEvaluator,
    RecordedJudges,
    RecordedPolicy,
    SettledLearner,
    replay,
    resume_point,
)
from rlhf_ray.durable.writer import beside
from rlhf_ray.keys import generator
from rlhf_ray.messages import (
    Accuracy,
    Choices,
    Critiques,
    Evaluation,
    Pair,
    Prompt,
    Refreshed,
    Response,
    Rollout,
    Scores,
    Step,
    SyncReport,
    UpdateReport,
)
from rlhf_ray.metrics import Clock
from rlhf_ray.scheduling.events import (
    Action,
    Death,
    Deliver,
    Died,
    Event,
    Fail,
    Lease,
    Load,
    Loaded,
    Ping,
    Pong,
    Publish,
    Result,
    Scale,
    Start,
    Started,
    Submit,
    Tick,
)
from rlhf_ray.scheduling.limits import Limits
from rlhf_ray.scheduling.pool import Pool

ARMS = ("a", "b")
SAMPLES, TOKENS, CHUNK, WAVE = 4, 16, 4, 62_500
"""Responses per prompt, tokens of one, prompts of a lease, and prompts of a wave."""
DIES, START_S, LOAD_S = 1 / 500, 30.0, 1.0
LIMITS = Limits()
UTILISED = 0.95
RESUME_S = 10.0
"""Until it is known where a run goes on, what has to be loaded aside."""
DEADLINE_S = 900


class Workers:
    """Rollout workers behind the real pool, on a clock of their own."""

    def __init__(self, count: int) -> None:
        self.count, self.version = count, 0
        self.pool = Pool(LIMITS, version=0)
        self.now, self.tick = 0.0, 0.0
        self.busy_s = self.span_s = self.pool_s = 0.0
        self.leases = 0
        self.queue: list[tuple[float, int, Event]] = []
        self.numbers = 0
        self.draws = generator(0, "latencies")
        self.given: dict[Any, list[Prompt]] = {}
        self._do(Scale(count))
        self._until(lambda: self.pool.crew.states().get("ready", 0) == count)

    def generate(self, purpose: str, prompts: Sequence[Prompt], samples: int) -> list[Rollout]:
        cut = [prompts[at : at + CHUNK] for at in range(0, len(prompts), CHUNK)]
        self.given = {(purpose, place): list(part) for place, part in enumerate(cut)}
        self.delivered: list[Rollout] = []
        began = self.now
        self._do(Submit("wave", list(self.given)))
        self._until(lambda: not self.pool.work.left)
        self.span_s += self.now - began
        return self.delivered

    def publish(self, version: int) -> None:
        self.version = version
        self._do(Publish(version))

    def _until(self, reached: Any) -> None:
        while not reached():
            if self.queue and self.queue[0][0] <= self.tick:
                at, _, event = heappop(self.queue)
            else:
                at, event, self.tick = self.tick, Tick(), self.tick + LIMITS.tick_s
            self.now = max(self.now, at)
            self._do(event)

    def _do(self, event: Event) -> None:
        began = time.process_time()
        actions = self.pool.step(self.now, event)
        spent = time.process_time() - began
        self.pool_s += spent
        self.now += spent  # workers wait while the driver thinks
        for action in actions:
            self._act(action)

    def _act(self, action: Action) -> None:
        match action:
            case Deliver(_, value):
                self.delivered += value
            case Lease(worker, key, _):
                took, died = 5.0 + 10.0 * self.draws.random(), self.draws.random() < DIES
                self.leases += 1
                if died:
                    self._later(took / 2, Died(worker, Death.INFRA, "simulated"))
                else:
                    self.busy_s += took
                    value = [self._rollout(prompt) for prompt in self.given[key]]
                    self._later(took, Result(worker, key, self.version, value))
            case Start(worker, _):
                self._later(START_S, Started(worker, self.version))
            case Load(worker, version):
                self._later(LOAD_S, Loaded(worker, version))
            case Ping(worker):
                self._later(0.01, Pong(worker))
            case Fail(error):
                raise error

    def _later(self, after_s: float, event: Event) -> None:
        heappush(self.queue, (self.now + after_s, self.numbers, event))
        self.numbers += 1

    def _rollout(self, prompt: Prompt) -> Rollout:
        """What a worker sends: made here, as a driver would unpack it."""
        made = tuple(
            Response(
                f"response {n} to {prompt.id}",
                (n, *range(1, TOKENS)),
                np.full(TOKENS, -0.5, np.float32),
                finished=True,
            )
            for n in range(SAMPLES)
        )
        return Rollout(prompt, tuple(range(TOKENS)), made, self.version)


class Task:
    def wave(self, step: Step, size: int) -> list[Prompt]:
        return [Prompt(f"{step}-{n}", f"prompt {n} of {step}", "s") for n in range(size)]


class Others:
    """Judges, learner, delivery and evaluator that take no time."""

    def __init__(self, workers: Workers) -> None:
        self.workers, self.version = workers, 0

    def score(
        self, step: Step, choices: Choices, rollouts: Sequence[Rollout], critiques: Critiques
    ) -> Scores:
        values = generator(0, "scores", step.index).random((len(ARMS), len(rollouts), SAMPLES))
        return Scores(np.where(choices.asked.T[:, :, None], values, np.nan), {}, 0.0)

    def begin_round(self) -> None: ...

    def refresh(self, round: int) -> list[Refreshed]:
        return []

    def update(self, step: Step, pairs: Sequence[Pair]) -> UpdateReport:
        self.version += 1
        return UpdateReport(self.version, np.ones(len(pairs)), {})

    def deliver(self, version: int) -> SyncReport:
        self.workers.publish(version)
        return SyncReport(version, 0.0, 0.0)

    def measure(self, round: int) -> Evaluation:
        found = Accuracy(0.0, {})
        return Evaluation(round, found, found)


def save(folder: Path) -> None:
    (folder / "state").write_text("nothing")


def contexts(prompts: Sequence[Prompt]) -> NDArray[np.float32]:
    return np.ones((len(prompts), 2), np.float32)


def run(folder: Path, workers: Workers, loop: Loop) -> None:
    """A whole run of the product's driver, without engines."""
    for name in ("samples", "pairs", "rollouts"):
        make_dir(folder / name)
    others = Others(workers)
    with closing(Journal(folder / "journal")) as journal, beside() as writer:
        record = record_of(folder, journal, loop, done=0, writer=writer)
        Driver(
            task=Task(), contexts=contexts, refresher=others, delivery=others,
            evaluator=RecordedEvaluator(others.measure, journal, writer),
            learner=SettledLearner(others, writer), critic=NoCritic(),
            judges=RecordedJudges(others.score, journal, writer),
            selector=selector(),
            policy=RecordedPolicy(workers.generate, SAMPLES, journal, folder / "rollouts", writer),
            record=record, loop=loop, pairs=Pairs(),
        ).run()  # fmt: skip


def resume(folder: Path, loop: Loop) -> None:
    """What a resumed run does before it loads its learners: the journal read and verified, the
    checkpoint chosen, the bandit brought to where it stood, the files of all waves looked at."""
    with closing(Journal(folder / "journal")) as journal:
        done, _, _ = resume_point(Checkpoints(folder / "checkpoints", 2), journal)
        assert done == loop.waves
        replay(journal, selector(), ARMS, done=done, waves=loop.waves)
        record_of(folder, journal, loop, done=done)


def record_of(folder: Path, journal: Journal, loop: Loop, **more: Any) -> RunRecord:
    return RunRecord(
        folder, journal, Checkpoints(folder / "checkpoints", 2), save=save,
        show=lambda row, report: None, clock=Clock(),
        settings=Settings(every_waves=1, keep=2), loop=loop, **more,
    )  # fmt: skip


def selector() -> Selector:
    bandit = LinUCB(2, len(ARMS), alpha=0.5, ridge=1.0)
    return Selector(bandit, ARMS, seed=0, low=0.2, high=0.8, window=20000, keep=0.5)


def size(folder: Path, pattern: str) -> int:
    return sum(one.stat().st_size for one in folder.rglob(pattern) if one.is_file())


def one(count: int, prompts: int) -> dict[str, float]:
    """What one simulated run came to."""
    before = memory()
    with tempfile.TemporaryDirectory(prefix="scale-") as name:
        folder = Path(name)
        workers = Workers(count)
        loop = Loop(rounds=1, waves=-(-prompts // WAVE), prompts=min(WAVE, prompts), warm_waves=0)
        cpu = time.process_time()
        run(folder, workers, loop)
        cpu_s, mib = time.process_time() - cpu, memory() - before
        began = time.perf_counter()
        resume(folder, loop)
        samples = prompts * SAMPLES
        return {
            "leases": workers.leases,
            "cpu_s": cpu_s,
            "pool_s": workers.pool_s,
            "utilised": workers.busy_s / (count * workers.span_s),
            "mib": mib,
            "resume_s": time.perf_counter() - began,
            "journal": size(folder / "journal", "*.jsonl") / samples,
            "parquet": size(folder, "*.parquet") / samples,
        }


def memory() -> float:
    """Largest resident memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def apart(count: int, prompts: int) -> dict[str, float]:
    """`one` in a process of its own, so that its memory is its own."""
    words = [sys.executable, __file__, "--only", str(count), str(prompts)]
    done = subprocess.run(words, check=True, timeout=DEADLINE_S, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--prompts", type=int, nargs="+", default=[WAVE, 4 * WAVE, 16 * WAVE])
    parser.add_argument("--only", type=int, nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.only:
        print(json.dumps(one(*asked.only)))
        return
    print("| workers | prompts | leases/s | of it the pool alone | utilised | memory, MiB "
          "| journal, bytes per sample | Parquet, bytes per sample | resume, s |")  # fmt: skip
    print("|---" * 9 + "|")
    missed = False
    sizes = [(count, min(asked.prompts)) for count in asked.workers[:-1]]
    for count, prompts in [*sizes, *((asked.workers[-1], each) for each in asked.prompts)]:
        got = apart(count, prompts)
        missed |= got["utilised"] < UTILISED or got["resume_s"] > RESUME_S
        print(
            f"| {count} | {prompts:,} | {got['leases'] / got['cpu_s']:,.0f} "
            f"| {got['leases'] / got['pool_s']:,.0f} | {got['utilised']:.1%} | {got['mib']:,.0f} "
            f"| {got['journal']:.1f} | {got['parquet']:.1f} | {got['resume_s']:.1f} |",
            flush=True,
        )
    if missed:
        sys.exit(f"workers were to be utilised to {UTILISED:.0%}, runs resumed in {RESUME_S:g} s")


if __name__ == "__main__":
    main()
