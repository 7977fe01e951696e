"""What is reported of a delivery of weights when workers come while others are served?"""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from actors.delivery import Delivery
from rlhf_ray.config.schema import Weights
from rlhf_ray.errors import WeightSyncMismatch


class Learners:
    """Each delivery has a reference of its own; `differences`: what its worker answers."""

    def __init__(self, differences: Mapping[str, float | str]) -> None:
        self.differences, self.sent = differences, 0

    def open_sender(self, *_: Any, **options: Any) -> None: ...

    def deliver(self, workers: Mapping[int, Any], version: int, delivery: int) -> list[str]:
        self.sent += 1
        return [f"delivery {self.sent}"]

    def delivered(self, ref: str) -> dict[int, Any]:
        return {0: self.differences[ref]}


def delivery(
    differences: Mapping[str, float | str], publish: Callable[[Delivery], None]
) -> Delivery:
    learners: Any = Learners(differences)
    rollouts: Any = SimpleNamespace(publish=publish)
    return Delivery(
        learners, rollouts, Weights(), [], backend="host", tensor_parallel=1, tolerance=1e-4,
        timeout_s=1.0,
    )  # fmt: skip


def test_a_worker_that_came_late_with_the_version_before_is_no_part_of_the_report() -> None:
    def publish(ours: Delivery) -> None:
        ref = ours.send({0: None}, 1)[0]
        if ours.version == 5:
            assert ours.arrived("delivery 2") == {0: None}  # sent after 4 was reported
        ours.arrived(ref)

    ours = delivery({"delivery 1": 1e-6, "delivery 2": 3e-6, "delivery 3": 2e-6}, publish)
    assert ours.deliver(4).difference == 1e-6
    ours.send({1: None}, 2)
    assert ours.deliver(5).difference == 2e-6


def test_a_mismatch_is_told_with_the_version_that_was_sent() -> None:
    ours = delivery({"delivery 1": 1.0}, lambda ours: None)
    ours.deliver(4)
    (ref,) = ours.send({0: None}, 1)
    ours.version = 5
    with pytest.raises(WeightSyncMismatch, match="policy version 4, rollout worker 0 differs"):
        ours.arrived(ref)


def test_a_worker_that_could_not_be_served_has_no_part_in_the_report() -> None:
    def publish(ours: Delivery) -> None:
        assert ours.arrived(ours.send({0: None}, 1)[0]) == {0: "it died"}

    assert delivery({"delivery 1": "it died"}, publish).deliver(1).difference == 0.0
