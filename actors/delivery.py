"""Weights from the learners into the rollout workers, checked on arrival."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from actors.learner import Learners
from actors.waiting import get
from rlhf_ray.config.schema import Weights
from rlhf_ray.data.batches import Tokens
from rlhf_ray.errors import WeightSyncMismatch
from rlhf_ray.messages import SyncReport


class WorkerClient:
    """The rollout workers as vLLM's trainer side calls them; lives in the learner's rank 0.

    Calls are queued and waited for at the end: an actor runs them one after another anyway.
    """

    def __init__(self, workers: Sequence[Any], tensor_parallel: int, timeout_s: float) -> None:
        self.workers, self.tensor_parallel, self.timeout_s = workers, tensor_parallel, timeout_s
        self.version = 0
        self._pending: list[Any] = []
        self._chunk_under_way = False

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """NCCL ranks of the workers follow the trainer's, a tensor-parallel group each."""
        requests = [
            {
                "init_info": init_info
                if "rank_offset" not in init_info
                else init_info
                | {"rank_offset": init_info["rank_offset"] + number * self.tensor_parallel}
            }
            for number in range(len(self.workers))
        ]
        refs = [
            worker.init_weight_transfer_engine.remote(request)
            for worker, request in zip(self.workers, requests, strict=True)
        ]
        get(refs, timeout_s=self.timeout_s, what="the rollout workers to meet the learner")

    def start_weight_update(self) -> None:
        self._queue("start_weight_update")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        if self._chunk_under_way:
            self._settle()  # one chunk at a time, so memory stays bounded
        self._queue("update_weights", ray.put({"update_info": update_info}))
        self._chunk_under_way = True
        if "tensors" not in update_info:
            self._settle()  # NCCL: the learner's broadcast runs beside this call

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._queue("finish_weight_update", self.version)

    def logprobs(self, probes: Sequence[Tokens]) -> list[Any]:
        """Queued behind the delivery; references to each worker's answer."""
        return [worker.logprobs.remote(probes) for worker in self.workers]

    def arrived(self, answers: list[Any]) -> list[list[NDArray[np.float32]]]:
        """Wait for the delivery and the workers' answers to the probes."""
        self._settle()
        found: list[list[NDArray[np.float32]]] = get(
            answers, timeout_s=self.timeout_s, what="the rollout workers' log-probabilities"
        )
        return found

    def _queue(self, method: str, *arguments: Any) -> None:
        self._pending += [getattr(worker, method).remote(*arguments) for worker in self.workers]

    def _settle(self) -> None:
        pending, self._pending, self._chunk_under_way = self._pending, [], False
        get(pending, timeout_s=self.timeout_s, what="the rollout workers to load weights")


class Delivery:
    """Sends each policy version and compares log-probabilities of a few sequences on both sides."""

    def __init__(
        self,
        learners: Learners,
        workers: Sequence[Any],
        settings: Weights,
        probes: Sequence[Tokens],
        *,
        backend: str,
        tensor_parallel: int,
        tolerance: float,
        timeout_s: float,
    ) -> None:
        self.learners, self.tolerance, self.delivered = learners, tolerance, -1
        client = WorkerClient(workers, tensor_parallel, timeout_s)
        learners.open_sender(
            backend,
            client,
            probes,
            chunk_bytes=settings.chunk_mib * 2**20,
            engine_ranks=len(workers) * tensor_parallel,
        )

    def deliver(self, version: int) -> SyncReport:
        """Bring every worker to `version`; nothing moves when it is there already.

        Raises WeightSyncMismatch naming the worker that does not hold the learner's weights.
        """
        began = time.perf_counter()
        if version == self.delivered:
            return SyncReport(version, 0.0, 0.0)
        differences = self.learners.deliver(version)
        for number, difference in enumerate(differences):
            if not difference <= self.tolerance:  # NaN is a mismatch too
                raise WeightSyncMismatch(
                    f"rollout worker {number}", version, difference, self.tolerance
                )
        self.delivered = version
        return SyncReport(version, time.perf_counter() - began, max(differences))
