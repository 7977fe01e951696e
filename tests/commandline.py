"""The command line as a user calls it, for tests that run the whole program."""

import json
import subprocess
import sys
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


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
