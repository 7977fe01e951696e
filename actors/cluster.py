"""Joining a Ray cluster, or starting one on this machine for the length of a run."""

import math
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import ray

from actors.family import descendants, end, watched
from rlhf_ray.errors import ClusterUnavailable

CONNECT_S = 30.0
"""To the head of a cluster that is there."""
SPARE_CPUS = 64
"""For workers that are ordered later: on one machine cores are shared, not owned."""


@contextmanager
def cluster(cpus_wanted: float, timeout_s: float) -> Iterator[str]:
    """The address of the cluster this run uses.

    Inside `ray job submit`, or with RAY_ADDRESS set, that cluster; otherwise a private one which
    ends with the run and admits any CPU plan: on one machine cores are shared, not owned.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _reachable(address, timeout_s)
    options = (
        {}
        if address
        else {
            "num_cpus": max(os.cpu_count() or 1, math.ceil(cpus_wanted)) + SPARE_CPUS,
            "include_dashboard": False,
            # Or Ray would start an idle process for each of them.
            "_system_config": {"prestart_worker_first_driver": False},
        }
    )
    # Before Ray: a driver may be killed while that starts.
    watcher, stopped = None if address else watched(), False
    try:
        context = ray.init(
            address or "local",
            log_to_driver=False,
            logging_level="error",
            configure_logging=True,
            **options,
        )
    except Exception as error:  # Ray has no class of its own for one that does not start in time
        if watcher is not None:
            watcher.kill()
        advice = (
            "is it up, and where it asks for a token: is RAY_AUTH_MODE=token, and does "
            "RAY_AUTH_TOKEN or ~/.ray/auth_token hold it?"
            if address
            else "is it busy, or short of memory or of room in /tmp? The same command tries again"
        )
        raise ClusterUnavailable(
            f"no Ray cluster at {address or 'this machine'}: {error}; {advice}"
        ) from error
    try:
        yield address or f"this machine ({context.address_info['session_dir']})"
    except KeyboardInterrupt:
        stopped = True
        raise
    finally:
        if stopped and watcher is not None:
            # Whoever asked may not wait for long, and everything that counts is on disk.
            end(descendants(os.getpid()))
        elif not stopped:  # nodes of another cluster end a driver's workers when it is gone
            handler = signal.getsignal(signal.SIGTERM)
            ray.shutdown()
            # It has put the default back, and SIGTERM would kill a run that is all but over.
            if handler is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)
        if watcher is not None:
            watcher.kill()


def _reachable(address: str, timeout_s: float) -> None:
    """Ray itself tries for minutes; a port nobody listens on is known at once."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=min(timeout_s, CONNECT_S)).close()
    except OSError as error:
        raise ClusterUnavailable(
            f"nothing answers at RAY_ADDRESS={address} ({error}); start the cluster, or unset it "
            "to use this machine"
        ) from error


@contextmanager
def asked(bundles: Sequence[Mapping[str, float]]) -> Iterator[None]:
    """Lets an autoscaler see what there is no room for yet: it adds nodes for nothing else.

    `bundles`: what each worker needs. Nothing is held afterwards, nor where the driver dies.
    """
    group = ray.util.placement_group([dict(one) for one in bundles])
    try:
        yield
    finally:
        ray.util.remove_placement_group(group)


def totals() -> tuple[float, float]:
    """CPUs and GPUs of the whole cluster."""
    found = ray.cluster_resources()
    return float(found.get("CPU", 0.0)), float(found.get("GPU", 0.0))


def draining() -> dict[str, float]:
    """Seconds left to the nodes that were told to go away, by node id."""
    # Private, but what Ray's own watcher of preemptions asks: there is no public call.
    found: dict[str, int] = ray._private.state.state.get_draining_nodes()
    now = time.time()
    # A deadline of zero: none was set, and the pool's own limit holds.
    return {node: max(0.0, ms / 1000 - now) if ms else math.inf for node, ms in found.items()}


def room(cpus: float, gpus: float, others: tuple[float, float]) -> int:
    """Workers of `cpus` and `gpus` each that the living nodes hold beside `others` (CPUs, GPUs)."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not os.environ.get("RAY_ADDRESS"):  # a cluster of our own admits more than the machine has
        nodes = [node | {"CPU": float(os.cpu_count() or 1)} for node in nodes]
    asked = [(kind, own) for kind, own in (("CPU", cpus), ("GPU", gpus)) if own > 0]
    if not asked:
        return 0
    held = sum(min(node.get(kind, 0.0) // own for kind, own in asked) for node in nodes)
    taken = max(other / own for other, own in zip(others, (cpus, gpus), strict=True) if own > 0)
    return max(0, int(held - math.ceil(taken)))
