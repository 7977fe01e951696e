"""Joining a Ray cluster, or starting one on this machine for the length of a run."""

import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from rlhf_ray.errors import ClusterUnavailable


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
            "num_cpus": max(os.cpu_count() or 1, math.ceil(cpus_wanted)),
            "include_dashboard": False,
        }
    )
    try:
        context = ray.init(
            address or "local",
            log_to_driver=False,
            logging_level="error",
            configure_logging=True,
            **options,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterUnavailable(
            f"no Ray cluster at {address or 'this machine'}: {error}; is it up, and does "
            "RAY_AUTH_TOKEN or ~/.ray/auth_token hold its token?"
        ) from error
    try:
        yield address or f"this machine ({context.address_info['session_dir']})"
    finally:
        ray.shutdown()


def _reachable(address: str, timeout_s: float) -> None:
    """Ray itself tries for minutes; a port nobody listens on is known at once."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=timeout_s).close()
    except OSError as error:
        raise ClusterUnavailable(
            f"nothing answers at RAY_ADDRESS={address} ({error}); start the cluster, or unset it "
            "to use this machine"
        ) from error


def totals() -> tuple[float, float]:
    """CPUs and GPUs of the whole cluster."""
    found = ray.cluster_resources()
    return float(found.get("CPU", 0.0)), float(found.get("GPU", 0.0))
