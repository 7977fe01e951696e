"""A small cluster on this machine: a head and some nodes, each a raylet of its own."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
from victims import workers

NODES = 2
"""Beside the head, which holds no worker."""
CPUS = 3


@contextmanager
def small_cluster() -> Iterator[Any]:
    """All of its processes have ended afterwards."""
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
            cluster.add_node(num_cpus=CPUS)
        cluster.wait_for_nodes(timeout=60)
        yield cluster
    finally:
        cluster.shutdown()


def raylet(node: Any) -> int:
    """Its process id."""
    return int(node.all_processes["raylet"][0].process.pid)


def node_of(cluster: Any, title: str) -> Any:
    """The node on which a worker of this title lives."""
    homes = (
        node
        for node in cluster.worker_nodes
        if any(one.startswith(title) for one in workers(raylet(node)).values())
    )
    return next(homes)


def announce(cluster: Any, node: Any, within_s: float) -> None:
    """Tell Ray, as a cloud does, that a node will be taken away."""
    deadline_ms = int(1000 * (time.time() + within_s))
    accepted, why = GcsClient(address=cluster.address).drain_node(
        node.node_id, DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"), "a notice",
        deadline_ms,
    )  # fmt: skip
    assert accepted, why


def take_away(cluster: Any, node: Any) -> None:
    """It dies with all its workers, and another one joins."""
    os.kill(raylet(node), signal.SIGKILL)
    cluster.add_node(num_cpus=CPUS)
