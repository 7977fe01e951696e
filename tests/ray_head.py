"""A head node of Ray on this machine, as `ray start` makes it, with token authentication."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
START_S = 120


@dataclass(frozen=True)
class Head:
    """Where it listens, and the environment that knows its token."""

    jobs: str
    """For `ray job` and `rlhf-ray submit`."""
    address: str
    """For RAY_ADDRESS."""
    environment: dict[str, str]
    log: Path


@contextmanager
def ray_head(folder: Path, cpus: int, nodes: int = 0, node_cpus: int = 0) -> Iterator[Head]:
    """Started on free ports; ended with all it has started, by process id, and only those.

    With `nodes`, Ray's own autoscaler adds up to so many of `node_cpus` each, where work waits for
    them: raylets on this machine.
    """
    gcs, dashboard, agent, client, metrics, runtime = free_ports(6)
    binaries, log = Path(sys.executable).parent, folder / "head.log"
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
    }
    command = [
        str(binaries / "ray"), "start", "--head", "--block", f"--num-cpus={cpus}",
        "--node-ip-address=127.0.0.1", f"--port={gcs}", f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}",
        f"--metrics-export-port={metrics}", f"--runtime-env-agent-port={runtime}",
        # Sockets live below the temporary folder, whose path must stay short.
        f"--temp-dir=/tmp/ray-test-{os.getpid()}", "--disable-usage-stats",
        "--include-dashboard=true",
    ]  # fmt: skip
    if nodes:
        plan = folder / "autoscaling.json"
        plan.write_text(json.dumps(autoscaling(f"127.0.0.1:{gcs}", cpus, nodes, node_cpus)))
        command.append(f"--autoscaling-config={plan}")
        environment |= {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    with log.open("w") as out:
        process = subprocess.Popen(
            command, env=environment, stdout=out, stderr=out, start_new_session=True
        )
    found = Head(f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{gcs}", environment, log)
    family = list[psutil.Process]()
    try:
        _wait_until_up(found, process)
        family = _started_by(process)
        yield found
    finally:
        family += _started_by(process)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=30)
        for one in psutil.wait_procs(family, timeout=5)[1]:
            with suppress(psutil.NoSuchProcess):  # it has ended just now
                one.kill()


def _started_by(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def autoscaling(gcs: str, cpus: int, nodes: int, node_cpus: int) -> dict[str, Any]:
    """What `--autoscaling-config` says of nodes that are processes here."""
    node = {"node_config": {}, "min_workers": 0}
    lists = (
        "initialization_commands", "setup_commands", "head_setup_commands", "rsync_exclude",
        "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands",
        "cluster_synced_files", "rsync_filter",
    )  # fmt: skip
    return {
        "cluster_name": "here",
        "provider": {
            "type": "fake_multinode", "gcs_address": gcs, "use_node_id_as_ip": True,
            "disable_node_updaters": True, "disable_launch_config_check": True,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": node | {"resources": {"CPU": cpus}, "max_workers": 0},
            "more": node | {
                "resources": {"CPU": node_cpus, "object_store_memory": 200 * 2**20},
                "max_workers": nodes,
            },
        },
        "max_workers": nodes, "upscaling_speed": 1.0, "idle_timeout_minutes": 1.0,
        "auth": {}, "docker": {}, "file_mounts": {}, "file_mounts_sync_continuously": False,
    } | {name: list[str]() for name in lists}  # fmt: skip


def free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def submit(
    head: Head, *arguments: str, timeout: float, environment: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """`ray job`, as a user calls it."""
    ray = str(Path(sys.executable).parent / "ray")
    return subprocess.run(
        [ray, "job", arguments[0], "--address", head.jobs, *arguments[1:]],
        cwd=ROOT, env=environment or head.environment, capture_output=True, text=True,
        timeout=timeout, check=False,
    )  # fmt: skip


def _wait_until_up(head: Head, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, head.log.read_text()
        if submit(head, "list", timeout=60).returncode == 0:
            return
        time.sleep(1)
    raise AssertionError(f"no head node after {START_S} s: {head.log.read_text()}")
