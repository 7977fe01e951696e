"""`rlhf-ray submit` against a real job server: codes of real drivers, and stop and resume."""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commandline import RUN_S, command
from conftest import ROOT, TINY
from ray_head import Head, submit

LONG = [*TINY, "loop.waves=20"]
"""A wave takes less than a second, and stopping a job some."""


def words(head: Head, folder: Path, *more: str) -> list[str]:
    options = ["-c", "configs/demo.yaml", "--address", head.jobs, "--run-dir", str(folder)]
    return command("submit", *options, *LONG, *more)


def call(
    head: Head, folder: Path, *more: str, environment: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        words(head, folder, *more), cwd=ROOT, env=environment or head.environment,
        capture_output=True, text=True, timeout=RUN_S, check=False,
    )  # fmt: skip


class Follower:
    """A call that goes on while the test does something else, and not for longer than that."""

    def __init__(self, head: Head, folder: Path, log: Path) -> None:
        self.log = log
        with log.open("w") as out:
            self.process = subprocess.Popen(
                words(head, folder), cwd=ROOT, env=head.environment, stdout=out, stderr=out
            )

    def __enter__(self) -> "Follower":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(timeout=30)

    def printed(self) -> str:
        return self.log.read_text()

    def until(self, what: str) -> None:
        self.wait(lambda: what in self.printed(), what)

    def code(self) -> int:
        self.wait(lambda: self.process.poll() is not None, "its end")
        return self.process.wait(timeout=1)

    def wait(self, done: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + RUN_S
        while not done():
            assert time.monotonic() < end, f"no {what}: {self.printed()}"
            alive = self.process.poll() is None
            assert alive or done(), f"no {what}: {self.printed()}"
            time.sleep(0.2)


def waves(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_text().count('"wave"') if path.is_file() else 0


@pytest.mark.slow
@pytest.mark.timeout(3 * RUN_S)
def test_a_run_is_started_left_joined_stopped_and_resumed_by_one_command(
    head: Head, tmp_path: Path
) -> None:
    folder = tmp_path / "it's a run"
    without = {k: v for k, v in head.environment.items() if k != "RAY_AUTH_TOKEN"}
    stranger = call(head, folder, environment=without | {"HOME": str(tmp_path)})
    assert stranger.returncode == 78
    assert "there is no token in RAY_AUTH_TOKEN" in stranger.stderr

    refused = call(head, tmp_path / "refused", "policy.path=./no/model")
    assert refused.returncode == 78, refused.stdout + refused.stderr
    assert "policy.path is ./no/model, which is not a" in refused.stdout
    assert "demo-a1 ended with exit code 78; mend its cause first" in refused.stderr

    with Follower(head, folder, tmp_path / "first.log") as first:
        first.until("Running entrypoint for job demo-a2")
        first.process.send_signal(signal.SIGINT)
        assert first.code() == 75
        assert "started demo-a2" in first.printed()
        assert "no longer following demo-a2: it goes on in" in first.printed()

    with Follower(head, folder, tmp_path / "second.log") as second:
        second.until("demo-a2 does this run already")
        second.wait(lambda: waves(folder) > 1, "second wave")
        stopped = submit(head, "stop", "demo-a2", timeout=120)
        assert stopped.returncode == 0, stopped.stderr
        assert second.code() == 75
        assert "demo-a2 was stopped; the same command resumes the run" in second.printed()
        polite = "stopped; the same command goes on where it was"
        assert polite in second.printed(), "the driver had no time to say so"

    resumed = call(head, folder)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "started demo-a3" in resumed.stderr
    assert "resuming after wave" in resumed.stdout
    assert json.loads((folder / "summary.json").read_text())["status"] == "completed"
