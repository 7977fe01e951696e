"""`ray job submit` against a running cluster with token authentication, as a user does it."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from commandline import RUN_S
from conftest import ROOT, TINY

START_S = 120


@dataclass(frozen=True)
class Head:
    """A head node of our own: where it listens, and the environment that knows its token."""

    address: str
    environment: dict[str, str]
    log: Path


def free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


@pytest.fixture
def head(tmp_path: Path, cache: Path) -> Iterator[Head]:
    """Started on free ports; ended by its process id, and only that."""
    gcs, dashboard, agent, client, metrics, runtime = free_ports(6)
    binaries = Path(sys.executable).parent
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
    }
    log = tmp_path / "head.log"
    # Sockets live below the temporary folder, whose path must stay short.
    folder = Path(f"/tmp/ray-test-{os.getpid()}")
    command = [
        str(binaries / "ray"), "start", "--head", "--block", "--num-cpus=4",
        "--node-ip-address=127.0.0.1", f"--port={gcs}", f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}",
        f"--metrics-export-port={metrics}", f"--runtime-env-agent-port={runtime}",
        f"--temp-dir={folder}", "--disable-usage-stats", "--include-dashboard=true",
    ]  # fmt: skip
    with log.open("w") as out:
        process = subprocess.Popen(
            command, env=environment, stdout=out, stderr=out, start_new_session=True
        )
    found = Head(f"http://127.0.0.1:{dashboard}", environment, log)
    try:
        wait_until_up(found, process)
        yield found
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=30)


def wait_until_up(head: Head, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, head.log.read_text()
        if submit(head, "list", timeout=60).returncode == 0:
            return
        time.sleep(1)
    raise AssertionError(f"no head node after {START_S} s: {head.log.read_text()}")


def submit(
    head: Head, *arguments: str, timeout: float, environment: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    ray = str(Path(sys.executable).parent / "ray")
    return subprocess.run(
        [ray, "job", arguments[0], "--address", head.address, *arguments[1:]],
        cwd=ROOT, env=environment or head.environment, capture_output=True, text=True,
        timeout=timeout, check=False,
    )  # fmt: skip


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
