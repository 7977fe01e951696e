"""Do messages and errors arrive in another process as they were sent?"""

import dataclasses
import inspect
import pickle
from typing import Any

import numpy as np
import pytest

from rlhf_ray import errors, messages
from rlhf_ray.messages import (
    Accuracy,
    Choices,
    Critiques,
    Evaluation,
    Example,
    Judgement,
    Pair,
    Preference,
    Prompt,
    Refreshed,
    Response,
    Rollout,
    Scores,
    Step,
    SyncReport,
    UpdateReport,
    WaveReport,
)

STEP = Step(1, 2, 10)
PROMPT = Prompt("rev-abc", "rev abc=", "reverse", "cba", "exact", ("a", "b"))
RESPONSE = Response("cba", (5, 4, 2), np.array([-0.5, -0.1, 0.0], np.float32), finished=True)
ROLLOUT = Rollout(PROMPT, (1, 7), (RESPONSE, RESPONSE), policy_version=3)
CHOICES = Choices(
    np.ones((3, 2), np.float32),
    np.array([[True, False], [False, True], [True, True]]),
    ("left", "right"),
    np.array([1.0, 0.5, 1.0]),
)
CRITIQUES = Critiques([["good", ""]], {"ok": 1, "empty": 1}, tokens=3, seconds=0.5)
COST = Judgement(np.zeros((0, 0)), {"timeout": 1}, 2, 24, 0.2, {"swap_consistency": 0.5})
SCORES = Scores(np.array([[[1.0, np.nan]]]), {"left": COST}, 0.25)
REFRESHED = Refreshed(
    "left", 1, True, "no worse", "new", "old", (0.5, 0.6), (0.5, 0.7), {"J_first": 0.4}
)
PAIR = Pair(0, (1, 7), (5, 2), (4, 2), 1.5, "left", "rev abc=", "cba", "abc")
UPDATE = UpdateReport(4, np.array([0.7]), {"loss": 0.7})
SYNC = SyncReport(4, 0.1, 2e-6)
EVALUATION = Evaluation(1, Accuracy(0.5, {"sort": 0.5}), Accuracy(1.0))
SENT = [
    STEP,
    PROMPT,
    RESPONSE,
    ROLLOUT,
    CHOICES,
    CRITIQUES,
    COST,
    SCORES,
    REFRESHED,
    PAIR,
    UPDATE,
    SYNC,
    EVALUATION.sampled,
    EVALUATION,
    Preference("p1", "rev abc=", "cba", "abc", "reverse"),
    Example("rev abc=", "cba", "reverse"),
    WaveReport(
        STEP,
        CHOICES,
        [ROLLOUT],
        CRITIQUES,
        SCORES,
        combined=np.ones((1, 2)),
        pairs=[PAIR],
        ties=0,
        update=UPDATE,
        signals=np.array([np.nan]),
        sync=SYNC,
    ),
]
RAISED = [
    errors.RlhfRayError("something"),
    errors.RecipeError("learner.lr must be > 0, got 0"),
    errors.BadData("prompts.jsonl:3: not JSON"),
    errors.JudgeFailed("left", "score nan"),
    errors.WeightSyncMismatch("rollout worker 1", 7, 0.25, 1e-4),
    errors.ClusterUnavailable("waited 30 s for judge 'left' to load"),
    errors.LearnersLost("waited 60 s for the learners to update"),
    errors.StorageFailed("cannot write samples"),
]


def test_every_message_is_tried_here() -> None:
    assert {type(one) for one in SENT} == {
        found for _, found in inspect.getmembers(messages, inspect.isclass)
        if dataclasses.is_dataclass(found)
    }  # fmt: skip


@pytest.mark.parametrize("message", SENT, ids=lambda one: type(one).__name__)
def test_a_message_arrives_as_it_was_sent(message: Any) -> None:
    arrived = pickle.loads(pickle.dumps(message))
    assert type(arrived) is type(message)
    np.testing.assert_equal(dataclasses.asdict(arrived), dataclasses.asdict(message))


@pytest.mark.parametrize("message", SENT, ids=lambda one: type(one).__name__)
def test_a_message_cannot_be_changed(message: Any) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(message, dataclasses.fields(message)[0].name, None)


def test_every_error_is_tried_here() -> None:
    assert {type(one) for one in RAISED} == {
        found
        for _, found in inspect.getmembers(errors, inspect.isclass)
        if issubclass(found, errors.RlhfRayError)
    }


@pytest.mark.parametrize("error", RAISED, ids=lambda one: type(one).__name__)
def test_an_error_keeps_its_text_and_its_exit_code(error: errors.RlhfRayError) -> None:
    arrived = pickle.loads(pickle.dumps(error))
    assert type(arrived) is type(error)
    assert (str(arrived), arrived.exit_code) == (str(error), error.exit_code)


def test_a_failed_judge_is_named_and_counts_as_bad_data() -> None:
    error = errors.JudgeFailed("left", "score nan")
    assert str(error) == "judge 'left' failed: score nan"
    assert (isinstance(error, errors.BadData), error.exit_code) == (True, 65)


def test_a_mismatch_says_worker_version_and_both_numbers() -> None:
    text = str(errors.WeightSyncMismatch("rollout worker 1", 7, 0.25, 1e-4))
    assert "version 7, rollout worker 1 differs" in text
    assert "2.50e-01 in log-probability (allowed: 1e-04)" in text


def test_a_prompt_belongs_to_its_one_judge_or_to_the_ensemble() -> None:
    assert CHOICES.names() == ["left", "right", "ensemble"]


def test_a_step_is_written_so_that_names_sort_in_order() -> None:
    assert [str(Step(0, 9, 9)), str(Step(0, 10, 10)), str(Step(1, 0, 11))] == [
        "r000-w009",
        "r000-w010",
        "r001-w000",
    ]
