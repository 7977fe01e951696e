"""Workers of every role are killed in a run, in phases that are seen: its end stays the same."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from commandline import RUN_S, command, journal_text
from conftest import ROOT, TINY
from victims import descendants, strike

from rlhf_ray.same_end import compare

ENDING = """
import os, signal
from actors.cluster import cluster
with cluster(1.0, 60.0):
    signal.signal(signal.SIGTERM, lambda *_: print("heard", flush=True))
os.kill(os.getpid(), signal.SIGTERM)
print("alive")
"""
WORKERS = {
    "rollouts.workers": 2, "timeouts.ping_s": 2,
    # Two workers hold all judges, and take their chunks in turn.
    **{f"judges.{one}_judge.replicas": 2 for one in ("sort", "reverse", "rotate", "swap")},
    "judge_fleet.chunk_prompts": 2,
}  # fmt: skip


class Run:
    """A driver on its own, and what it says."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.folder, self.said = folder, folder.with_suffix(".log")
        asked = ["run", "-c", "configs/demo.yaml", "--run-dir", str(folder), *TINY, *overrides]
        with self.said.open("w") as log:
            self.driver = subprocess.Popen(command(*asked), cwd=ROOT, stdout=log, stderr=log)

    def kill(self, title: str, *, after: str, kind: int = signal.SIGKILL) -> None:
        """End a worker in this phase, once the journal tells of something."""
        ends = time.monotonic() + RUN_S
        while after not in journal_text(self.folder):
            assert self.driver.poll() is None, self.said.read_text()
            assert time.monotonic() < ends, self.said.read_text()
            time.sleep(0.01)
        strike(self.driver.pid, title, timeout_s=RUN_S, kind=kind)

    def end(self) -> str:
        """Wait for it; what it said."""
        family = descendants(self.driver.pid)
        assert self.driver.wait(timeout=RUN_S) == 0, self.said.read_text()
        left = psutil.wait_procs(family, timeout=30)[1]
        assert left == [], "processes of the run that outlive it"
        return self.said.read_text()


@pytest.mark.parametrize(
    ("victims", "told"),
    [
        (
            [("RolloutActor.generate", ""), ("JudgeActor.score", '"kind":"rollouts"'),
             ("RolloutActor.finish_weight_update", '"kind":"learn"')],
            ["rollout worker", "judge 0 worker"],
        ),
        (
            [("LearnerActor.update", '"kind":"wave"'), ("RolloutActor", '"key":"r001-w000"')],
            ["new learners go on from the last commit", "resuming after wave"],
        ),
    ],
    ids=["rollout and judge workers", "a learner rank"],
)  # fmt: skip
def test_a_run_whose_workers_are_killed_ends_like_one_whose_are_not(
    victims: list[tuple[str, str]], told: list[str], tiny_run: Path, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run", *(f"{key}={value}" for key, value in WORKERS.items()))
    for title, after in victims:
        run.kill(title, after=after)
    said = run.end()
    for line in told:
        assert line in said
    assert [one for one in compare(tiny_run, run.folder) if not one.equal] == []


def test_a_run_that_is_scaled_while_it_runs_ends_like_one_that_is_not(
    tiny_run: Path, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")
    for after, order in (
        ("", ["rollouts=3", "judges=2"]),
        ('"key":"r000-w001","kind":"scores"', ["rollouts=1", "judges=1"]),
    ):
        ends = time.monotonic() + RUN_S
        while (
            after not in journal_text(run.folder)
            or not (run.folder / "config.resolved.yaml").exists()
        ):
            assert run.driver.poll() is None, run.said.read_text()
            assert time.monotonic() < ends, run.said.read_text()
            time.sleep(0.01)
        subprocess.run(command("scale", str(run.folder), *order), cwd=ROOT, timeout=60, check=True)
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
