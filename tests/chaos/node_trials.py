"""What is done to nodes: raylets of a small cluster on this machine, and its head."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import RUN_S, Bench, Check, draws, tail
from ray.cluster_utils import Cluster

RAYLET = "R4 raylet killed, another node joins: the run goes on and ends alike"
HEAD = "R4 head killed: on a new cluster the same command ends alike"
NODES = 2
"""Beside the head, which holds no worker."""
FAST = ["timeouts.ping_s=1", "rollouts.workers=2"]


@contextmanager
def small_cluster() -> Iterator[Any]:
    """A head and some nodes, each a raylet of its own; all of them have ended afterwards."""
    # Deaths of nodes are found in seconds here, not in a minute.
    health = {"health_check_period_ms": 500, "health_check_failure_threshold": 4}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0, "include_dashboard": False, "_system_config": health,
        },
    )  # fmt: skip
    try:
        for _ in range(NODES):
            cluster.add_node(num_cpus=3)
        cluster.wait_for_nodes(timeout=60)
        yield cluster
    finally:
        cluster.shutdown()


def on(cluster: Any) -> dict[str, Any]:
    return {"within": ("env", f"RAY_ADDRESS={cluster.address}"), "more": FAST}


def kill_raylet(bench: Bench, seed: int, run: Path) -> list[Check]:
    """The node it lies on dies with all its workers, learners perhaps among them."""
    rng = draws(seed, "raylet")
    _, whole = bench.straight()
    with small_cluster() as cluster, bench.driver(run, **on(cluster)) as driver:
        time.sleep(rng.uniform(0.1, 0.9) * whole)
        if driver.poll() is not None:
            return []
        victim = list(cluster.worker_nodes)[int(rng.integers(NODES))]
        os.kill(victim.all_processes["raylet"][0].process.pid, signal.SIGKILL)
        cluster.add_node(num_cpus=3)
        code = driver.wait(timeout=RUN_S)
    if code != 0:
        return [Check(RAYLET, False, f"code {code}:\n{tail(run)}")]
    return [bench.same_end(run, RAYLET)]


def kill_head(bench: Bench, seed: int, run: Path) -> list[Check]:
    """Nothing of the cluster outlives it; the run does."""
    rng = draws(seed, "head")
    _, whole = bench.straight()
    with small_cluster() as cluster, bench.driver(run, **on(cluster)) as driver:
        time.sleep(rng.uniform(0.1, 0.9) * whole)
        if driver.poll() is not None:
            return []
        os.kill(cluster.head_node.all_processes["gcs_server"][0].process.pid, signal.SIGKILL)
        code = driver.wait(timeout=RUN_S)
    with small_cluster() as cluster, bench.driver(run, **on(cluster)) as driver:
        again = driver.wait(timeout=RUN_S)
    if again != 0:
        return [Check(HEAD, False, f"codes {code}, then {again}:\n{tail(run)}")]
    return [bench.same_end(run, HEAD)]
