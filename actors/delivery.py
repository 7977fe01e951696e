"""Weights from the learners into the rollout workers, checked on arrival."""

import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import ray

from actors.learner import Learners
from actors.rollout import Rollouts
from actors.waiting import get
from rlhf_ray.config.schema import Weights
from rlhf_ray.data.batches import Tokens
from rlhf_ray.errors import WeightSyncMismatch
from rlhf_ray.messages import SyncReport


class Delivery:
    """Sends each policy version and compares log-probabilities of a few sequences on both sides."""

    def __init__(
        self, learners: Learners, rollouts: Rollouts, settings: Weights, probes: Sequence[Tokens],
        *, tolerance: float, timeout_s: float,
    ) -> None:
        self.learners, self.rollouts, self.probes = learners, rollouts, probes
        self.tolerance, self.timeout_s = tolerance, timeout_s
        self.chunk_bytes = settings.chunk_mib * 2**20
        request = {"init_info": {}}
        self._each("init_weight_transfer_engine", request)

    def deliver(self, version: int) -> SyncReport:
        """Raises WeightSyncMismatch naming the worker that does not hold the learner's weights."""
        began = time.perf_counter()
        self.learners.send(
            partial(send_host, self.rollouts.workers, version, self.chunk_bytes, self.timeout_s)
        )
        expected = self.learners.logprobs(self.probes)
        worst = 0.0
        for number, found in enumerate(self.rollouts.logprobs(self.probes)):
            difference = max(
                float(np.abs(a - b).max()) for a, b in zip(expected, found, strict=True)
            )
            if not difference <= self.tolerance:  # NaN is a mismatch too
                raise WeightSyncMismatch(
                    f"rollout worker {number}", version, difference, self.tolerance
                )
            worst = max(worst, difference)
        return SyncReport(version, time.perf_counter() - began, worst)

    def _each(self, method: str, *arguments: Any) -> None:
        refs = [getattr(worker, method).remote(*arguments) for worker in self.rollouts.workers]
        get(refs, timeout_s=self.timeout_s, what=f"the rollout workers to {method}")


def send_host(
    workers: Sequence[Any], version: int, chunk_bytes: int, timeout_s: float,
    weights: Iterable[tuple[str, Any]], rank: int,
) -> None:
    """Stream weights through Ray's object store: rank 0 talks, the others only gather."""

    def each(method: str, *arguments: Any) -> None:
        refs = [getattr(worker, method).remote(*arguments) for worker in workers]
        get(refs, timeout_s=timeout_s, what=f"the rollout workers to {method}")

    if rank != 0:
        for _ in weights:
            pass
        return
    each("start_weight_update")
    for tensors in chunks(weights, chunk_bytes):
        each("update_weights", ray.put({"update_info": tensors}))
    each("finish_weight_update", version)


def chunks(weights: Iterable[tuple[str, Any]], limit: int) -> Iterator[dict[str, Any]]:
    """Update payloads of at most `limit` bytes; a larger tensor travels alone."""
    import torch

    tensors: dict[str, Any] = {}
    size, dtype = 0, "float32"
    for name, value in weights:
        host = value.cpu()
        dtype = str(host.dtype).removeprefix("torch.")
        # NumPy has no bfloat16: its bits travel as integers.
        array = (host.view(torch.uint16) if dtype == "bfloat16" else host).numpy().copy()
        if tensors and size + array.nbytes > limit:
            yield {"tensors": tensors, "dtype": dtype}
            tensors, size = {}, 0
        tensors[name] = array
        size += array.nbytes
    yield {"tensors": tensors, "dtype": dtype}
