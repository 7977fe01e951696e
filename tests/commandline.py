"""The command line as a user calls it, for tests that run the whole program."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from conftest import ROOT

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


def killed_when(seen: str, folder: Path, *arguments: str) -> str:
    """SIGKILL the driver of a run as soon as the journal in its folder tells of something; what it
    has said. `arguments` as of a user."""
    log = folder.with_suffix(".log")
    with log.open("w") as out:
        driver = subprocess.Popen(command(*arguments), cwd=ROOT, stdout=out, stderr=out)
        ends = time.monotonic() + RUN_S
        while (
            time.monotonic() < ends and driver.poll() is None and seen not in journal_text(folder)
        ):
            time.sleep(0.002)
        assert driver.poll() is None, log.read_text()
        driver.kill()
        driver.wait(timeout=60)
    return log.read_text()


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
