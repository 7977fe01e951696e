"""What does a call that failed say about its worker?"""

import numpy as np
import pytest
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    OutOfMemoryError,
    OwnerDiedError,
    RayTaskError,
)

from actors.faults import told
from actors.rollout import Chunk, RolloutWorkers
from rlhf_ray.config.schema import Rollouts
from rlhf_ray.errors import BadData, JudgeFailed
from rlhf_ray.messages import Prompt, Response, Rollout
from rlhf_ray.scheduling.events import Death, Died, Failed, Fault


def died(*, preempted: bool = False, init_failed: bool = False) -> ActorDiedError:
    error = ActorDiedError()
    error._preempted, error._actor_init_failed = preempted, init_failed
    return error


def task(cause: Exception) -> Exception:
    error: Exception = RayTaskError("generate", "the trace", cause, "title", 1, "ip").as_instanceof_cause()  # noqa: E501  # fmt: skip
    return error


@pytest.mark.parametrize(
    ("error", "death"),
    [
        (died(), Death.INFRA),
        (died(preempted=True), Death.PREEMPTED),
        (died(init_failed=True), Death.INIT_FAILED),
        (OutOfMemoryError("no memory"), Death.OUT_OF_MEMORY),
    ],
)
def test_a_process_that_is_gone_died(error: Exception, death: Death) -> None:
    found = told(3, error, "a chunk")
    assert isinstance(found, Died)
    assert (found.worker, found.death) == (3, death)


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (ActorUnavailableError("away", None), Fault.INFRA),
        (GetTimeoutError("late"), Fault.INFRA),
        (OwnerDiedError("0" * 56, "owner", ""), Fault.INFRA),
        (task(ValueError("no such token")), Fault.DATA),
    ],
)
def test_a_call_that_failed_tells_whose_fault_it_was(error: Exception, fault: Fault) -> None:
    found = told(3, error, "a chunk")
    assert isinstance(found, Failed)
    assert (found.worker, found.fault, found.key) == (3, fault, "a chunk")


@pytest.mark.parametrize("error", [BadData("too long"), JudgeFailed("a", "no score")])
def test_an_error_of_ours_is_raised_at_once(error: Exception) -> None:
    with pytest.raises(type(error)):
        told(3, task(error), "a chunk")


def rollout(id: str, responses: int, *logprobs: float) -> Rollout:
    response = Response("a", (1,), np.array(logprobs or [-0.5], np.float32), True)
    return Rollout(Prompt(id, "ask", "s"), (1,), (response,) * responses, 0)


def test_rollouts_of_other_prompts_or_too_few_are_no_answer() -> None:
    workers = RolloutWorkers("rollout", "path", Rollouts(), {}, None)
    prompts = [Prompt(name, "ask", "s") for name in "ab"]
    job = Chunk("wave", prompts, [(1,), (1,)], {"samples": 2})
    assert workers.check(job, [rollout("a", 2), rollout("b", 2)]) is None
    assert workers.check(job, [rollout("b", 2), rollout("a", 2)]) == "rollouts of other prompts"
    assert workers.check(job, [rollout("a", 2)]) == "rollouts of other prompts"
    wrong = workers.check(job, [rollout("a", 2), rollout("b", 1)])
    assert wrong == "not 2 responses to each prompt"
    assert workers.check(job, None) == "NoneType where a list of rollouts was asked"
    for logprobs in ((float("nan"),), (-0.5, -0.5)):
        wrong = workers.check(job, [rollout("a", 2), rollout("b", 2, *logprobs)])
        assert wrong == "a response whose tokens have no log-probabilities"
