"""What is done to nodes: raylets of a small cluster on this machine, and its head."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from bench import RUN_S, Bench, Check, draws, tail
from nodes import NODES, small_cluster, take_away

RAYLET = "R4 raylet killed, another node joins: the run goes on and ends alike"
HEAD = "R4 head killed: on a new cluster the same command ends alike"
FAST = ["timeouts.ping_s=1", "rollouts.workers=2"]


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
        take_away(cluster, victim)
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
