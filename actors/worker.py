"""What our actors have in common: a log of their own and, in a pool, an answer to pings."""

import os
from pathlib import Path
from typing import Any

import ray


def log_to(folder: Path | None, name: str, threads: int) -> None:
    """Send everything this worker prints, engines included, to a file of its own.

    Thread counts are set here because engines read them when they are imported.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)
    # Roles take turns on the same cores: threads that wait by spinning would slow the others down.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    log = os.open(folder / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


class Worker:
    """An actor of a pool."""

    def __init__(self, name: str, logs: Path | None, threads: int) -> None:
        log_to(logs, name, threads)

    @ray.method(concurrency_group="health")  # type: ignore[untyped-decorator]
    def ping(self) -> str:
        """The node it lives on; answers beside whatever else the worker does."""
        return str(ray.get_runtime_context().get_node_id())


def pooled(worker: type[Worker], num_cpus: float, num_gpus: float) -> Any:
    """A class as Ray makes actors of it, each with what it needs."""
    groups = {"health": 1}  # one thread of its own, for pings
    return ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, concurrency_groups=groups)(worker)
