"""The command line as a user calls it, for tests that run the whole program."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from conftest import ROOT
from victims import descendants, strike

RUN_S = 600
"""Deadline of one command line in a test."""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "rlhf_ray", *arguments]


def rlhf_ray(
    *arguments: str, cwd: Path = ROOT, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=cwd, env=env, capture_output=True, text=True, timeout=RUN_S,
        check=False,
    )  # fmt: skip


def journal_text(folder: Path) -> str:
    """All that the journal of a run tells by now."""
    return "".join(path.read_text() for path in sorted((folder / "journal").glob("*.jsonl")))


class Driver:
    """A run beside the test, and what it says. `arguments` as of a user, less the folder."""

    def __init__(self, folder: Path, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.folder, self.log = folder, folder.with_suffix(".log")
        asked = command("run", "--run-dir", str(folder), *arguments)
        with self.log.open("w") as log:
            self.process = subprocess.Popen(asked, cwd=ROOT, env=env, stdout=log, stderr=log)

    def __enter__(self) -> "Driver":
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def said(self) -> str:
        return self.log.read_text()

    def until(self, seen: str) -> None:
        """Until it says this, or its journal tells of it."""
        ends = time.monotonic() + RUN_S
        while seen not in journal_text(self.folder) + self.said():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < ends, self.said()
            time.sleep(0.005)

    def strike(self, title: str, *, after: str = "", kind: int = signal.SIGKILL) -> None:
        """Send a signal to a worker in this phase, once something was seen."""
        self.until(after)
        strike(self.process.pid, title, timeout_s=RUN_S, kind=kind)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(timeout=60)

    def end(self) -> str:
        """Wait for it and for all its processes; what it said."""
        family = descendants(self.process.pid)
        assert self.process.wait(timeout=RUN_S) == 0, self.said()
        left = psutil.wait_procs(family, timeout=30)[1]
        assert left == [], "processes of the run that outlive it"
        return self.said()


def killed_when(seen: str, folder: Path, *arguments: str) -> str:
    """SIGKILL the driver of a run as soon as it, or its journal, tells of something; what it has
    said."""
    with Driver(folder, *arguments) as driver:
        driver.until(seen)
        assert driver.process.poll() is None, driver.said()
    return driver.said()


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
