"""Which way do judges learn? Losses of single pairs by hand, with scores that are the tokens."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rlhf_ray.config.judges import FilePreferences, JudgeTraining, VerdictTraining
from rlhf_ray.data.batches import Mixture, PairTokens, VerdictTokens
from rlhf_ray.training.generative import VerdictPairs
from rlhf_ray.training.reward_model import ScalarPairs

FILES = FilePreferences(train="pairs")
EVEN = Mixture(np.arange(1), np.arange(0), 1.0)


def bt(delta: float, epsilon: float = 0.0) -> float:
    return -(1 - epsilon) * math.log(1 / (1 + math.exp(-delta))) - epsilon * math.log(
        1 / (1 + math.exp(delta))
    )


def first_token(ids: Tensor, lengths: Tensor) -> Tensor:
    """A scalar judge whose score is the first token."""
    return ids[:, 0].float()


def label_of_first_token(ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """A generative judge: the logit of `first is better` is the first token, of `second` zero."""
    logits = torch.stack([ids[:, 0].float(), torch.zeros(len(ids))], dim=1)
    return logits, torch.zeros(len(ids))


def verdicts(**settings: Any) -> VerdictPairs:
    training = VerdictTraining(preferences=FILES, **{"label_smoothing": 0.0} | settings)
    pair = VerdictTokens((3, 1), (2, 1))
    return VerdictPairs({0: pair}, EVEN, training, seed=0, pad_id=0)


def test_a_verdict_is_for_the_chosen_response_in_either_order() -> None:
    judge, pair = verdicts(), VerdictTokens((3, 1), (2, 1))
    first, _ = judge.loss(label_of_first_token, [(pair, True)])  # type: ignore[arg-type]
    second, _ = judge.loss(label_of_first_token, [(pair, False)])  # type: ignore[arg-type]
    assert first.item() == pytest.approx(bt(3))
    assert second.item() == pytest.approx(bt(-2)), "shown second, the chosen one wants label B"
    # Averaged over both orders: (3 - 2) / 2.
    assert judge.delta(label_of_first_token, [pair]).tolist() == [0.5]  # type: ignore[arg-type]


def test_both_orders_are_shown() -> None:
    batches = [verdicts(batch_size=8).batch(step) for step in range(4)]
    assert {first for batch in batches for _, first in batch} == {True, False}


def test_a_scalar_judge_pays_for_preferring_the_rejected_response() -> None:
    training = JudgeTraining(preferences=FILES, score_penalty=0.0, label_smoothing=0.1)
    pairs = [PairTokens((3,), (1,)), PairTokens((1,), (3,), epsilon=0.25, margin=1.0)]
    judge = ScalarPairs(dict(enumerate(pairs)), EVEN, training, seed=0, pad_id=0)
    total, shown = judge.loss(first_token, pairs)  # type: ignore[arg-type]
    assert total.item() == shown.item() == pytest.approx(bt(2, 0.1) + bt(-3, 0.25))
    assert judge.delta(first_token, pairs).tolist() == [2.0, -2.0]  # type: ignore[arg-type]


@pytest.mark.parametrize(("dropout", "seen"), [(0.0, {7}), (1.0, {5}), (0.5, {5, 7})])
def test_critiques_are_left_out_as_often_as_asked(dropout: float, seen: set[int]) -> None:
    training = JudgeTraining(preferences=FILES, batch_size=16)
    judge = ScalarPairs({0: PairTokens((7,), (1,))}, EVEN, training, seed=0, pad_id=0,
                        without={0: PairTokens((5,), (1,))}, dropout=dropout)  # fmt: skip
    assert {item.chosen[0] for item in judge.batch(0)} == seen
