"""Are the numbers of a run right by hand, and is every row JSON?"""

import json
from dataclasses import replace

import numpy as np
import pytest

from rlhf_ray.messages import (
    Accuracy,
    Choices,
    Evaluation,
    Pair,
    Prompt,
    Response,
    Rollout,
    Scores,
    Step,
    SyncReport,
    UpdateReport,
    WaveReport,
)
from rlhf_ray.metrics import Clock, evaluation_row, gold_scores, summary, timing_row, wave_row


def rollout_of(source: str, answer: str | None, *texts: str) -> Rollout:
    """Responses as long as their texts, of which those that end on `.` were cut."""
    prompt = Prompt(source, f"ask {source}", source, answer, "exact" if answer else None)
    responses = [
        Response(t, tuple(map(ord, t)), np.zeros(len(t), np.float32), not t.endswith("."))
        for t in texts
    ]
    return Rollout(prompt, (1,), tuple(responses), policy_version=4)


WAVE = WaveReport(
    step=Step(1, 0, 8),
    choices=Choices(
        np.ones((3, 2), np.float32),
        np.array([[True, False], [False, True], [True, False]]),
        ("left", "right"),
        np.ones(3),
    ),
    rollouts=[
        rollout_of("sort", "abc", "abc", "cba"),
        rollout_of("sort", "abc", "abc", "abc"),
        rollout_of("chat", None, "hello", "bye."),
    ],
    scores=Scores(np.zeros((2, 3, 2)), {"left": 4, "right": 2}, 0.5),
    combined=np.array([[1.0, 0.0], [2.0, 2.0], [4.0, 3.0]]),
    pairs=[
        Pair(0, (1,), (2,), (3,), 1.0, "left"),
        Pair(2, (1,), (2,), (3,), 2.0, "left"),
    ],
    ties=1,
    update=UpdateReport(5, np.array([0.5, 1.5]), {"loss": 1.0, "grad_norm": float("nan")}),
    signals=np.array([-0.5, np.nan, -1.5]),
    sync=SyncReport(5, 0.25, 1e-6),
)
SECONDS = {"generate": 2.0, "score": 0.5, "update": 1.0}


def test_a_response_without_an_answer_to_compare_has_no_gold_score() -> None:
    expected = np.array([[1, 0], [1, 1], [np.nan, np.nan]])
    np.testing.assert_equal(gold_scores(WAVE.rollouts), expected)


def test_an_answer_without_a_type_is_not_compared() -> None:
    odd = replace(WAVE.rollouts[0], prompt=replace(WAVE.rollouts[0].prompt, answer_type=None))
    assert np.isnan(gold_scores([odd])).all()


def test_a_waves_row_is_right_by_hand() -> None:
    row = wave_row(WAVE)
    assert row["gold"] == 0.75  # 3 of the 4 that can be compared
    assert row["gold_by_source"] == {"sort": 0.75, "chat": None}
    assert row["reward"] == 2.0
    assert row["arms"] == {"left": 2, "right": 1}
    assert row["arms_by_source"] == {"sort": {"left": 1, "right": 1}, "chat": {"left": 1}}
    assert (row["pairs"], row["ties"], row["margin"], row["signal"]) == (2, 1, 1.5, -1.0)
    assert row["tokens"] == 4 * 3 + 5 + 4
    assert row["finished"] == pytest.approx(5 / 6)
    assert (row["step"], row["index"], row["policy_version"]) == ("r001-w000", 8, 5)


def test_the_row_of_a_wave_does_not_depend_on_the_clock() -> None:
    slow = replace(WAVE, scores=replace(WAVE.scores, seconds=9.0), sync=SyncReport(5, 9.0, 1e-6))
    assert wave_row(slow) == wave_row(WAVE)


def test_what_no_stage_accounts_for_is_overhead() -> None:
    row = timing_row(WAVE, SECONDS, wall_s=4.0)
    assert row["overhead_s"] == 0.5
    assert row["tokens_per_s"] == 21 / 2.0
    assert row["sync_s"] == 0.25


def test_a_replayed_wave_has_no_speed() -> None:
    assert timing_row(WAVE, {}, wall_s=1.0)["tokens_per_s"] is None


def test_nan_never_reaches_json() -> None:
    barren = replace(WAVE, pairs=[], signals=np.full(3, np.nan), rollouts=WAVE.rollouts[2:])
    barren = replace(barren, choices=replace(WAVE.choices, asked=WAVE.choices.asked[2:]))
    for row in (wave_row(WAVE), wave_row(barren), timing_row(WAVE, SECONDS, 4.0)):
        json.dumps(row, allow_nan=False)
    assert wave_row(WAVE)["grad_norm"] is None
    assert [wave_row(barren)[name] for name in ("gold", "margin", "signal")] == [None] * 3


def test_the_summary_adds_up_waves_and_sets_before_against_after() -> None:
    accuracies = [
        Evaluation(round, Accuracy(found, {"sort": found}), Accuracy(found + 0.1))
        for round, found in enumerate([0.4, 0.5, 0.6])
    ]
    waves = [wave_row(WAVE) | timing_row(WAVE, SECONDS, wall_s=4.0)] * 2
    judge = {"kind": "judge", "name": "left", "accuracy": {"sort": 0.9}}
    rows = [judge, evaluation_row(accuracies[0]), *waves, *map(evaluation_row, accuracies[1:])]
    found = summary(rows, status="completed", wall_s=10.0)
    assert (found["rounds"], found["waves"], found["wall_s"]) == (2, 2, 10.0)
    sampled = found["gold_accuracy"]["sampled"]
    assert [sampled[when]["overall"] for when in ("before", "after")] == [0.4, 0.6]
    assert found["arm_share"] == {"chat": {"left": 1.0}, "sort": {"left": 0.5, "right": 0.5}}
    assert found["forwards"] == {"left": 8, "right": 4}
    assert found["tokens_per_s"] == 2 * 21 / 4.0
    assert found["overhead_share"] == 1.0 / 8.0
    assert found["judges"] == {"left": judge}
    json.dumps(found, allow_nan=False)


def test_a_run_that_did_nothing_has_a_summary_too() -> None:
    found = summary([], status="completed", wall_s=0.0)
    assert (found["rounds"], found["waves"], found["gold_accuracy"]) == (0, 0, None)
    json.dumps(found, allow_nan=False)


def test_a_clock_counts_each_stage_until_it_is_read_even_when_a_call_fails() -> None:
    clock = Clock()
    numbers = clock.timed([3, 1, 2], "sort")
    numbers.sort()
    with pytest.raises(ValueError, match="not in list"):
        numbers.remove(9)
    assert list(clock.seconds) == ["sort"]
    assert clock.take()["sort"] > 0.0
    assert clock.take() == {}
