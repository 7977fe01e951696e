"""Small runs on the real classes of `durable`, which end in milliseconds and then go on.

`lean` uses the classes alone, in the order of `RunRecord`. `driven` is the driver itself and the
real record, with roles from `fakes`.
"""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import fakes

from rlhf_ray.bandit.linucb import LinUCB
from rlhf_ray.bandit.selector import Selector
from rlhf_ray.config.schema import Checkpoints as Settings
from rlhf_ray.config.schema import Loop, Pairs
from rlhf_ray.driver import Driver
from rlhf_ray.durable import fsio
from rlhf_ray.durable.audit import check_shards
from rlhf_ray.durable.checkpoint import Checkpoints
from rlhf_ray.durable.journal import Journal
from rlhf_ray.durable.record import RunRecord
from rlhf_ray.durable.recorded import (
    RecordedCritic,
    RecordedEvaluator,
    RecordedJudges,
    RecordedPolicy,
    RecordedRefresher,
    SettledLearner,
    replay,
    resume_point,
)
from rlhf_ray.durable.writer import Beside, beside
from rlhf_ray.metrics import Clock
from rlhf_ray.same_end import CLOCK

Run = Callable[[Path], None]
"""Begins a run in a folder, or goes on with what is left of one."""

KINDS = ["rollouts", "critiques", "scores", "learn", "wave", "evaluation", "refresh"]
"""What a journal tells that matters; a line of kind `checkpoint` may be lost: it is a hint."""
TASTES = {"right": "abcd", "wrong": "dcba"}
TWO_WAVES = Loop(rounds=2, waves=1, prompts=2)


def lean(folder: Path, *, waves: int = 3, keep: int = 2) -> None:
    """The weights after a wave are thrice those before, and its number."""
    for name in ("samples", "rollouts"):
        fsio.make_dir(folder / name)
    with closing(Journal(folder / "journal")) as journal:
        checkpoints = Checkpoints(folder / "checkpoints", keep)
        done, weights, path = resume_point(checkpoints, journal)
        assert path is None or (path / "state").read_text() == f"state {weights}"
        check_shards(journal, folder, done)
        _drop_rollouts(folder, checkpoints)
        for index in range(done, waves):
            _sample(folder, journal, index)
            step, sample = f"w{index}", f"samples {index} {weights}".encode() * 3
            fsio.atomic_write(folder / "samples" / f"{step}.parquet", sample)
            weights = 3 * weights + index + 1
            body = {"index": index, "samples": hashlib.sha256(sample).hexdigest()}
            journal.append("learn", step, body)
            extra = {"done": index + 1, "policy_version": weights, "journal": journal.position}
            made = checkpoints.commit(index, _saver(weights), extra)
            journal.append("checkpoint", step, {"name": made.name})
            _drop_rollouts(folder, checkpoints)


def _sample(folder: Path, journal: Journal, index: int) -> None:
    step, path = f"w{index}", folder / "rollouts" / f"w{index}.parquet"
    known = journal.find("rollouts", step)
    if known is None:
        fsio.atomic_write(path, f"rollouts {index}".encode())
        journal.append("rollouts", step, {"sha256": fsio.sha256_of(path)})
    else:
        assert fsio.sha256_of(path) == known["sha256"]
    if journal.find("scores", step) is None:
        journal.append("scores", step, {"text": "not so bad, @home"})


def _drop_rollouts(folder: Path, checkpoints: Checkpoints) -> None:
    for path in fsio.entries(folder / "rollouts"):
        if path.suffix == ".parquet" and int(path.stem[1:]) <= checkpoints.oldest():
            fsio.remove(path)


def _saver(weights: int) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        fsio.disk.mkdir(folder / "learner")
        careless(folder / "state", f"state {weights}".encode())
        careless(folder / "learner" / "optimizer", f"optimizer of {weights}".encode())

    return save


def twice_the_same_step(folder: Path) -> None:
    """One checkpoint, which another of the same step then replaces."""
    checkpoints = Checkpoints(folder / "checkpoints", keep=1)
    for weights in (1, 2):
        found = checkpoints.newest()
        if found is None or found[1]["policy_version"] < weights:
            extra = {"done": 1, "policy_version": weights, "journal": (-1, "0" * 16)}
            checkpoints.commit(0, _saver(weights), extra)


def careless(path: Path, data: bytes) -> None:
    """Write as engines do: nothing is flushed."""
    fd = fsio.disk.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        while data:
            data = data[fsio.disk.write(fd, data) :]
    finally:
        os.close(fd)


class CarelessLearner(fakes.Learner):
    """Saves as engines do."""

    def save(self, folder: Path) -> None:
        careless(folder / "state", f"{self.version} {self.weights} {self.reference}".encode())
        careless(folder / "optimizer", f"optimizer of {self.weights}".encode())

    def restore(self, folder: Path) -> None:
        found = (folder / "state").read_text().split()
        self.version, self.weights, self.reference = map(int, found)


def driven(folder: Path, *, loop: Loop = TWO_WAVES, keep: int = 1) -> None:
    """A checkpoint after every wave."""
    for name in ("samples", "pairs", "rollouts"):
        fsio.make_dir(folder / name)
    with closing(Journal(folder / "journal")) as journal, beside() as writer:
        _driver(folder, journal, writer, loop, keep)


def _driver(folder: Path, journal: Journal, writer: Beside, loop: Loop, keep: int) -> None:
    checkpoints, diary = Checkpoints(folder / "checkpoints", keep), list[str]()
    done, version, path = resume_point(checkpoints, journal)
    sampler, learner = fakes.Policy(diary), CarelessLearner(diary)
    bandit, arms = LinUCB(2, 2, alpha=0.5, ridge=1.0), tuple(TASTES)
    selector = Selector(bandit, arms, seed=5, low=0.2, high=0.8, window=20, keep=0.5)
    judges = fakes.Judges(diary, TASTES)
    judges.adopt(replay(journal, selector, arms, done=done, waves=loop.waves))
    if path is not None:
        learner.restore(path)
        sampler.version = version
    record = RunRecord(
        folder, journal, checkpoints, save=learner.save, show=lambda row, report: None,
        clock=Clock(), settings=Settings(every_waves=1, keep=keep), loop=loop, done=done,
        writer=writer,
    )  # fmt: skip
    refresh = fakes.Refresher(diary, {1: {"right": True}}, judges.adopt).refresh
    critic = fakes.Critic(diary, ["right", "wrong"])
    Driver(
        task=fakes.TurnTaking(), contexts=fakes.contexts, selector=selector,
        learner=SettledLearner(learner, writer),
        policy=RecordedPolicy(sampler.generate, 4, journal, folder / "rollouts", writer),
        refresher=RecordedRefresher(refresh, judges.adopt, journal, record.refreshed, writer),
        critic=RecordedCritic(critic.write, journal, folder / "rollouts", writer),
        judges=RecordedJudges(judges.score, journal, writer),
        delivery=fakes.Delivery(diary, sampler),
        evaluator=RecordedEvaluator(fakes.Evaluator(diary).measure, journal, writer),
        record=record, loop=loop, pairs=Pairs(per_prompt=2),
    ).run(done)  # fmt: skip


def leavings(folder: Path) -> dict[str, Any]:
    """All that two equal runs have in common: not the clock, the attempts and what was damaged."""
    found: dict[str, Any] = {}
    for path in fsio.below(folder):
        name = path.relative_to(folder).as_posix()
        if "/quarantine-" in name or name.split("/")[0] == "attempts":
            continue
        if path.name == "MANIFEST.json":
            manifest = json.loads(path.read_bytes())
            del manifest["self"]
            manifest["extra"].pop("journal", None)
            found[name] = manifest
        elif path.name == "metrics.jsonl":
            rows = map(json.loads, path.read_text().splitlines())
            timeless = ({k: v for k, v in row.items() if k not in CLOCK} for row in rows)
            found[name] = sorted(json.dumps(row, sort_keys=True) for row in timeless)
        elif path.is_file() and path.parent.name != "journal":
            found[name] = path.read_bytes()
    with closing(Journal(folder / "journal")) as journal:
        return found | {f"journal {kind}": journal.all(kind) for kind in KINDS}
