"""The scripts of cluster/, run for real; programs of Slurm and Ray only write down their words."""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

CLUSTER = Path(__file__).parents[2] / "cluster"
SCRIPTS = sorted(path for path in CLUSTER.rglob("*") if path.suffix in (".sh", ".sbatch"))
AGAIN, FINAL = (69, 70, 74, 75, 137, 143), (0, 1, 2, 65, 78)


def named(path: Path) -> str:
    return path.relative_to(CLUSTER).as_posix()


@pytest.mark.parametrize("path", SCRIPTS, ids=named)
def test_a_script_is_bash_and_stops_at_errors(path: Path) -> None:
    assert "set -euo pipefail\n" in path.read_text(encoding="utf-8")
    assert not re.search(r"\beval\b", path.read_text(encoding="utf-8"))
    subprocess.run(["bash", "-n", path], check=True, timeout=30)


@pytest.mark.parametrize("path", SCRIPTS, ids=named)
def test_shellcheck_finds_nothing(path: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(
        ["shellcheck", "--shell=bash", path], capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("code", [*AGAIN, *FINAL])
def test_retry_calls_again_only_where_that_can_help(tmp_path: Path, code: int) -> None:
    calls = tmp_path / "calls"
    done = subprocess.run(
        ["bash", CLUSTER / "retry.sh", "sh", "-c", f'printf "%s\n" "$1" >> "$0"; exit {code}',
         calls, "it's $HOME"],
        env=os.environ | {"RETRIES": "3", "RETRY_PAUSE_S": "0"}, timeout=60, check=False,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == code
    assert calls.read_text().splitlines() == ["it's $HOME"] * (3 if code in AGAIN else 1)


STUBS = {
    "scontrol": """
        case $1 in show) printf 'node-1\\nnode-2\\n' ;; *) echo "$@" >> "$LOGS/scontrol" ;; esac""",
    "srun": """
        while [[ $1 == --* ]]; do shift; done
        if [[ $1 == hostname ]]; then echo 127.0.0.1 ::1; exit; fi
        for SLURM_PROCID in 0 1; do export SLURM_PROCID; "$@"; done""",
    "ray": 'printf "%s\\0" "$@" "${#RAY_AUTH_TOKEN}" "$RAY_AUTH_MODE" $\'\\n\' >> "$LOGS/ray"',
    "python": 'cat > /dev/null; exit "${JOINED:-0}"',
    "rlhf-ray": """
        trap 'exit 75' TERM
        printf '%s\\0' "$@" > "$LOGS/driver.new" && mv "$LOGS/driver.new" "$LOGS/driver"
        while [[ $CODE == wait ]]; do sleep 0.02; done
        exit "$CODE" """,
}


class Allocation:
    """What Slurm gives a job, as far as the script asks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        programs = folder / "bin"
        programs.mkdir()
        for name, body in STUBS.items():
            (programs / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
            (programs / name).chmod(0o755)
        self.head = socket.create_server(("127.0.0.1", 0))
        self.environment = os.environ | {
            "PATH": f"{programs}:/usr/bin:/bin", "LOGS": str(folder), "SLURM_JOB_ID": "7",
            "SLURM_CPUS_PER_TASK": "2", "SLURM_JOB_NODELIST": "node-[1-2]",
            "SLURM_JOB_NUM_NODES": "2", "RAY_START_S": "20",
            "RAY_PORT": str(self.head.getsockname()[1]),
        }  # fmt: skip

    def start(self, *words: str, **environment: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            ["bash", CLUSTER / "slurm" / "train.sbatch", *words],
            env=self.environment | environment, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, *words: str, **environment: str) -> int:
        process = self.start(*words, **environment)
        process.communicate(timeout=60)
        return process.returncode

    def words(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().split("\0") if path.exists() else []


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Allocation]:
    found = Allocation(tmp_path)
    yield found
    found.head.close()


@pytest.mark.parametrize("code", [70, 75, 137, 0, 65, 78])
def test_slurm_queues_again_only_where_that_can_help(slurm: Allocation, code: int) -> None:
    assert slurm.run("-c", "a b.yaml", "x=it's $HOME", CODE=str(code)) == code
    assert slurm.words("driver") == ["run", "-c", "a b.yaml", "x=it's $HOME", ""]
    assert slurm.words("scontrol") == (["requeue 7\n"] if code in AGAIN else [])


def test_slurm_starts_one_head_and_workers_that_hold_its_token(slurm: Allocation) -> None:
    assert slurm.run(CODE="0") == 0
    head, worker, end = "\0".join(slurm.words("ray")).split("\n\0")
    assert end == ""
    assert head.split("\0")[:2] == ["start", "--head"]
    assert "--include-dashboard=false" in head
    assert worker.startswith(f"start\0--address=127.0.0.1:{slurm.environment['RAY_PORT']}\0")
    for one in (head, worker):
        assert one.endswith("--num-cpus=2\x0064\0token\0")


@pytest.mark.parametrize(
    ("number", "queued"), [(signal.SIGUSR1, ["requeue 7\n"]), (signal.SIGTERM, [])]
)
def test_the_time_limit_queues_again_and_scancel_does_not(
    slurm: Allocation, number: signal.Signals, queued: list[str]
) -> None:
    process = slurm.start(CODE="wait")
    try:
        end = time.monotonic() + 30
        while not slurm.words("driver"):
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 75
    assert slurm.words("scontrol") == queued


def test_slurm_gives_up_after_many_restarts(slurm: Allocation) -> None:
    assert slurm.run(CODE="70", SLURM_RESTART_COUNT="20") == 70
    assert slurm.words("scontrol") == []


def test_nodes_that_do_not_join_are_a_reason_to_queue_again(slurm: Allocation) -> None:
    assert slurm.run(CODE="0", JOINED="69") == 69
    assert slurm.words("driver") == []
    assert slurm.words("scontrol") == ["requeue 7\n"]


def test_outside_slurm_the_script_says_how_it_is_called(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", CLUSTER / "slurm" / "train.sbatch"], env={"PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "call this with sbatch" in done.stderr
