"""Weights from the learners into the rollout workers, checked on arrival."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from actors.learners import Learners
from actors.rollout import Rollouts
from actors.waiting import last_line
from rlhf_ray.config.schema import Weights
from rlhf_ray.data.batches import Tokens
from rlhf_ray.errors import LearnersLost, RlhfRayError, WeightSyncMismatch
from rlhf_ray.messages import SyncReport

Arrived = Mapping[int, float | str]
"""Per worker its largest difference in log-probability from the learner, or why it has none."""


class WorkerClient:
    """The rollout workers as vLLM's trainer side calls them; lives in the learner's rank 0.

    Calls are queued and waited for at the end: an actor runs them one after another anyway. A
    worker that fails is left out from then on and does not hold up the others; with NCCL, which
    sends to all of them at once, it does, and costs the gang.
    """

    def __init__(self, tensor_parallel: int, timeout_s: float) -> None:
        self.tensor_parallel, self.timeout_s = tensor_parallel, timeout_s
        self.workers: Mapping[int, Any] = {}
        self.version = self.delivery = 0
        self.failed: dict[int, str] = {}
        self._pending: list[tuple[int, Any]] = []
        self._chunk_under_way = False

    def address(self, workers: Mapping[int, Any], version: int, delivery: int) -> None:
        """Whom the next delivery goes to, and what it is."""
        self.workers, self.version, self.delivery = workers, version, delivery
        self.failed, self._pending, self._chunk_under_way = {}, [], False
        self.ends = time.monotonic() + self.timeout_s

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """NCCL ranks of the workers follow the trainer's, a tensor-parallel group each."""
        for place, number in enumerate(self.workers):
            own = dict(init_info)
            if "rank_offset" in own:
                own["rank_offset"] += place * self.tensor_parallel
            self._ask(number, "init_weight_transfer_engine", {"init_info": own})
        self._settle()

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
        self._queue("finish_weight_update", self.version, self.delivery)

    def logprobs(self, probes: Sequence[Tokens]) -> Callable[[], dict[int, Any]]:
        """Queued behind the delivery; what is returned waits for {worker: its answer}."""
        self._settle()
        refs = {n: self.workers[n].logprobs.remote(probes) for n in self._alive()}
        return lambda: self._results(list(refs.items()))

    def _alive(self) -> list[int]:
        return [number for number in self.workers if number not in self.failed]

    def _queue(self, method: str, *arguments: Any) -> None:
        for number in self._alive():
            self._ask(number, method, *arguments)

    def _ask(self, number: int, method: str, *arguments: Any) -> None:
        self._pending.append((number, getattr(self.workers[number], method).remote(*arguments)))

    def _settle(self) -> None:
        pending, self._pending, self._chunk_under_way = self._pending, [], False
        self._results(pending)

    def _results(self, pending: Sequence[tuple[int, Any]]) -> dict[int, Any]:
        """{worker: the last of its results}, without those that failed."""
        found: dict[int, Any] = {}
        for number, ref in pending:
            if number in self.failed:
                continue
            try:
                found[number] = ray.get(ref, timeout=max(0.0, self.ends - time.monotonic()))
            except RlhfRayError:
                raise
            except RayError as error:
                self.failed[number] = last_line(error)
        return {number: result for number, result in found.items() if number not in self.failed}


class Delivery:
    """Sends each policy version and compares log-probabilities of a few sequences on both sides.

    Workers that come later are sent what was delivered last.
    """

    def __init__(
        self,
        learners: Learners,
        rollouts: Rollouts,
        settings: Weights,
        probes: Sequence[Tokens],
        *,
        backend: str,
        tensor_parallel: int,
        tolerance: float,
        timeout_s: float,
    ) -> None:
        self.learners, self.rollouts, self.tolerance = learners, rollouts, tolerance
        self.timeout_s, self.delivered, self.difference = timeout_s, -1, 0.0
        self._sent: dict[Any, int] = {}
        client = WorkerClient(tensor_parallel, timeout_s)
        learners.open_sender(backend, client, probes, chunk_bytes=settings.chunk_mib * 2**20)

    def deliver(self, version: int) -> SyncReport:
        """Bring every worker to `version`; nothing moves when it is there already.

        Raises WeightSyncMismatch naming the worker that does not hold the learner's weights.
        """
        began = time.perf_counter()
        if version == self.delivered:
            return SyncReport(version, 0.0, 0.0)
        self.version, self.difference = version, 0.0
        self.rollouts.publish(self)
        self.delivered = version
        return SyncReport(version, time.perf_counter() - began, self.difference)

    def send(self, workers: Mapping[int, Any], delivery: int) -> Sequence[Any]:
        """References, one per rank, that `arrived` reads."""
        refs = self.learners.deliver(workers, self.version, delivery)
        self._sent |= dict.fromkeys(refs, self.version)
        return refs

    def arrived(self, ref: Any) -> Mapping[int, str | None]:
        """What became of each worker; {} from ranks that do not talk to them."""
        found: Arrived = self.learners.delivered(ref)
        version = self._sent.pop(ref)
        for number, difference in found.items():
            if isinstance(difference, str):
                continue
            if not difference <= self.tolerance:  # NaN is a mismatch too
                who = f"rollout worker {number}"
                raise WeightSyncMismatch(who, version, difference, self.tolerance)
            if version == self.version:  # not where a worker that came late had the one before
                self.difference = max(self.difference, difference)
        return {number: one if isinstance(one, str) else None for number, one in found.items()}

    def overdue(self, seconds: float) -> RlhfRayError | None:
        """The learners wait for a worker `timeout_s`; what lasts much longer is their own fault. A
        delivery that was sent while they save begins after that."""
        seconds = min(seconds, self.learners.free_for_s())
        if seconds < 1.5 * self.timeout_s:
            return None
        return LearnersLost(
            f"waited {seconds:.0f} s for the learners to deliver weights; see timeouts.sync_s"
        )
