"""`ray job submit` against a running cluster with token authentication, as a user does it."""

import json
from pathlib import Path

from commandline import RUN_S
from conftest import TINY
from ray_head import Head, submit


def test_a_submitted_job_runs_the_demo_and_leaves_its_results(head: Head, tmp_path: Path) -> None:
    without = {k: v for k, v in head.environment.items() if k != "RAY_AUTH_TOKEN"}
    stranger = submit(head, "list", timeout=60, environment=without | {"HOME": str(tmp_path)})
    assert stranger.returncode != 0

    folder = tmp_path / "run"
    command = ["python", "-m", "rlhf_ray", "run", "-c", "configs/demo.yaml"]
    job = submit(
        head, "submit", "--working-dir", ".", "--", *command, "--run-dir", str(folder), *TINY,
        timeout=RUN_S,
    )  # fmt: skip
    assert job.returncode == 0, job.stdout + job.stderr
    assert "held-out gold accuracy" in job.stdout
    assert json.loads((folder / "summary.json").read_text())["status"] == "completed"
    assert (folder / "final" / "model.safetensors").is_file()
