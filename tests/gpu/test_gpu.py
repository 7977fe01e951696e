"""The whole loop with engines on GPUs; skipped, with the reason, where there are none."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from commandline import rlhf_ray
from conftest import TINY


def gpus() -> int:
    if shutil.which("nvidia-smi") is None:
        return 0
    found = subprocess.run(
        ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False
    )
    return len(found.stdout.splitlines()) if found.returncode == 0 else 0


def run(folder: Path, *settings: str) -> None:
    done = rlhf_ray(
        "run", "-c", "configs/demo.yaml", "--run-dir", str(folder), *TINY,
        "learner.precision=bf16", *settings,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((folder / "summary.json").read_text())["status"] == "completed"


@pytest.mark.gpu
@pytest.mark.skipif(gpus() < 1, reason="needs an Nvidia GPU")
def test_the_loop_shares_one_gpu_in_bf16(tmp_path: Path) -> None:
    run(
        tmp_path / "run", "weights.backend=host", "rollouts.num_gpus=0.4", "learner.num_gpus=0.3",
        "judge_fleet.num_gpus=0.2", "rollouts.engine_args={gpu_memory_utilization: 0.3}",
    )  # fmt: skip


@pytest.mark.gpu
@pytest.mark.skipif(gpus() < 3, reason="needs three Nvidia GPUs: NCCL joins two processes")
def test_weights_travel_by_nccl(tmp_path: Path) -> None:
    run(
        tmp_path / "run", "weights.backend=nccl", "rollouts.num_gpus=1", "learner.num_gpus=1",
        "judge_fleet.num_gpus=1",
    )  # fmt: skip
