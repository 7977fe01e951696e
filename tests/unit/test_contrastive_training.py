"""Does training with the contrastive term move features the way its equation says?"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForSequenceClassification

from rlhf_ray.config.judges import Contrastive, FilePreferences, JudgeTraining
from rlhf_ray.data.batches import Mixture, PairTokens, pad
from rlhf_ray.training.contrastive import ScoreWithFeatures
from rlhf_ray.training.reward_model import ScalarPairs

ITEMS = [PairTokens((1, n, 5 + n), (1, n, 10 - n)) for n in range(2, 6)]
ROWS = np.arange(len(ITEMS))
Kind = Literal["simcse", "swav"]


@dataclass
class Engine:
    """A module as an objective sees it."""

    module: ScoreWithFeatures
    steps: int = 0

    def __call__(self, *inputs: Tensor) -> Any:
        return self.module(*inputs)


def tiny() -> Engine:
    """The same weights every time; the head starts at zero, as that of a new judge."""
    settings = LlamaConfig(
        vocab_size=11, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, num_labels=1, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForSequenceClassification(settings)
    torch.nn.init.zeros_(model.score.weight)
    return Engine(ScoreWithFeatures(model, prototypes=4, seed=0))


def judging(**contrastive: Any) -> ScalarPairs:
    training = JudgeTraining(
        preferences=FilePreferences(train="pairs"), score_penalty=0.0,
        contrastive=Contrastive(**{"dropout": 0.3, "temperature": 0.2} | contrastive),
    )  # fmt: skip
    everything = Mixture(ROWS, ROWS[:0], 1.0)
    return ScalarPairs(dict(enumerate(ITEMS)), everything, training, seed=0, pad_id=0)


@torch.no_grad()
def closeness(judge: ScalarPairs, engine: Engine) -> float:
    """Mean cosine of two views of one text, beyond that of views of different texts."""
    assert judge.contrast is not None
    texts = [item.chosen for item in ITEMS] + [item.rejected for item in ITEMS]
    found = []
    for step in range(1000, 1010):  # drawn for no step of the training
        with judge.contrast.dropped(engine.module, step, ITEMS):
            _, features, _ = engine(*pad(texts * 2, 0))
        first, second = torch.nn.functional.normalize(features, dim=1).chunk(2)
        cosines = first @ second.T
        others = cosines[~torch.eye(len(texts), dtype=torch.bool)]
        found.append(float(cosines.diagonal().mean() - others.mean()))
    return float(np.mean(found))


@pytest.mark.parametrize("kind", ["simcse", "swav"])
def test_views_of_one_text_come_closer_than_views_of_different_texts(kind: Kind) -> None:
    judge, engine = judging(kind=kind, weight=10.0), tiny()
    before = closeness(judge, engine)
    adam = torch.optim.Adam(engine.module.parameters(), lr=3e-3)
    for engine.steps in range(40):
        adam.zero_grad()
        total, _ = judge.loss(engine, ITEMS)  # type: ignore[arg-type]
        total.backward()
        adam.step()
    assert closeness(judge, engine) > before + 0.1


def test_the_term_counts_as_often_as_its_weight_says_and_is_not_shown() -> None:
    engine = tiny()
    found = {w: judging(weight=w).loss(engine, ITEMS) for w in (0.0, 1.0, 3.0)}  # type: ignore[arg-type]
    (plain, fit), (once, shown), (thrice, _) = found.values()
    assert plain.item() == fit.item() == shown.item() == pytest.approx(4 * np.log(2))
    assert once > plain, "no contrastive loss is negative"
    assert (thrice - plain).item() == pytest.approx(3 * (once - plain).item())
