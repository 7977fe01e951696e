"""Real engines, started once per session: a Ray cluster, a learner gang, a rollout worker."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from conftest import ROOT, TINY

RUN_S = 600
"""Deadline of one command line in a test."""


def rlhf_ray(*arguments: str, cwd: Path = ROOT, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command line as a user calls it."""
    command = [sys.executable, "-m", "rlhf_ray", *arguments]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=RUN_S, check=False, **options
    )


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """One whole run of the demo, made small: the folder it leaves."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    done = rlhf_ray("run", "-c", "configs/demo.yaml", "--run-dir", str(folder), *TINY)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    ray.init("local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()

