"""Workers of every role are killed in a run, in phases that are seen: its end stays the same."""

import subprocess
import sys
from pathlib import Path

from commandline import RUN_S, Driver, command
from conftest import ROOT, TINY

from rlhf_ray.same_end import compare

ENDING = """
import os, signal
from actors.cluster import cluster
with cluster(1.0, 60.0):
    signal.signal(signal.SIGTERM, lambda *_: print("heard", flush=True))
os.kill(os.getpid(), signal.SIGTERM)
print("alive")
"""
DEMO = ["-c", "configs/demo.yaml", *TINY]
WORKERS = {
    "rollouts.workers": 2, "timeouts.ping_s": 2,
    # Two workers hold all judges, and take their chunks in turn.
    **{f"judges.{one}_judge.replicas": 2 for one in ("sort", "reverse", "rotate", "swap")},
    "judge_fleet.chunk_prompts": 2,
}  # fmt: skip


VICTIMS = [
    ("after RolloutActor.generate", ""),
    ("JudgeActor.score", '"kind":"rollouts"'),
    ("RolloutActor.finish_weight_update", '"kind":"learn"'),
    ("LearnerActor.update", '"kind":"wave"'),
    ("RolloutActor", '"key":"r001-w000"'),
]
"""Whom, and once the journal tells of what."""


def test_a_run_whose_workers_and_learner_are_killed_ends_like_one_whose_are_not(
    tiny_run: Path, tmp_path: Path
) -> None:
    workers = [f"{key}={value}" for key, value in WORKERS.items()]
    with Driver(tmp_path / "run", *DEMO, *workers) as run:
        for title, after in VICTIMS:
            run.strike(title, after=after)
        said = run.end()
    for line in ("rollout worker", "judge 0 worker", "new learners go on from the last commit",
                 "resuming after wave"):  # fmt: skip
        assert line in said
    assert [one for one in compare(tiny_run, run.folder) if not one.equal] == []


def test_a_run_that_is_scaled_while_it_runs_ends_like_one_that_is_not(
    tiny_run: Path, tmp_path: Path
) -> None:
    with Driver(tmp_path / "run", *DEMO) as run:
        for after, order in (
            ("rollout engines ready", ["rollouts=3", "judges=2"]),
            ('"key":"r000-w001","kind":"scores"', ["rollouts=1", "judges=1"]),
        ):
            run.until(after)
            asked = command("scale", str(run.folder), *order)
            subprocess.run(asked, cwd=ROOT, timeout=60, check=True)
        run.end()
    assert (run.folder / "logs" / "rollout-2.log").exists()
    assert (run.folder / "logs" / "judge-1.log").exists()
    assert [one for one in compare(tiny_run, run.folder) if not one.equal] == []


def test_a_run_that_is_asked_to_stop_when_ray_has_ended_does_not_die_of_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDING], cwd=ROOT, capture_output=True, text=True, timeout=RUN_S,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.split()) == (0, ["heard", "alive"]), done.stderr
