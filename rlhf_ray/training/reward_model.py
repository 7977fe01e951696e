"""Bradley-Terry training of a scalar reward model on preference pairs.

    L = smoothed_bt(r(x, y_chosen) - r(x, y_rejected), epsilon, margin) + penalty * mean(r^2)

The head starts at zero, so the first loss is log 2. Letters: B pairs of a batch.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rlhf_ray.config.schema import JudgeTraining, Learner
from rlhf_ray.data.batches import Mixture, PairTokens, length_buckets, pad, rank_share
from rlhf_ray.errors import BadData
from rlhf_ray.losses.reward_model import smoothed_bt
from rlhf_ray.training.engine import ZeroEngine
from rlhf_ray.training.modules import ScalarScore
from rlhf_ray.training.policy import Rank, loaded


def load_classifier(
    path: str, pad_id: int, *, new_head: bool, trust_remote_code: bool = False
) -> Any:
    """A one-label sequence classifier, in fp32 and without dropout.

    With `new_head`, a plain language model gets a head that starts at zero. Raises BadData for
    other numbers of labels, and for a plain language model where a trained head is needed.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    fresh = not any("SequenceClassification" in name for name in config.architectures or [])
    if fresh and not new_head:
        raise BadData(
            f"'{path}' is a language model without a reward head; give the judge `train`, or the "
            "path of a sequence classifier with one label"
        )
    if not fresh and config.num_labels != 1:
        raise BadData(f"'{path}' has {config.num_labels} labels; a reward model has one")
    model = loaded(
        AutoModelForSequenceClassification, path, num_labels=1, trust_remote_code=trust_remote_code
    )
    if fresh and hasattr(model, "score"):
        torch.nn.init.zeros_(model.score.weight)
    # Without it vLLM applies a sigmoid to the score.
    model.config.problem_type = "regression"
    model.config.pad_token_id = pad_id
    return model


class RewardModelTrainer:
    """Trains one Bradley-Terry judge, on one learner rank."""

    def __init__(
        self,
        path: str,
        pairs: Sequence[PairTokens],
        mixture: Mixture,
        settings: JudgeTraining,
        learner: Learner,
        rank: Rank,
        *,
        pad_id: int,
        seed: int,
        trust_remote_code: bool = False,
    ) -> None:
        self.pairs, self.mixture, self.settings, self.rank = pairs, mixture, settings, rank
        self.pad_id, self.seed, self.budget = pad_id, seed, learner.tokens_per_batch
        self.zero_stage = learner.zero_stage
        self.engine = ZeroEngine(
            ScalarScore(
                load_classifier(path, pad_id, new_head=True, trust_remote_code=trust_remote_code)
            ),
            settings.optimizer,
            zero_stage=learner.zero_stage,
            precision=learner.precision,
            total_steps=settings.steps,
            overrides=learner.deepspeed,
        )

    @property
    def model(self) -> Any:
        return self.engine.module.model

    def advance(self, steps: int) -> dict[str, float]:
        """Take up to `steps` steps; mean loss of the last one on this rank's share."""
        loss = 0.0
        for _ in range(min(steps, self.settings.steps - self.engine.steps)):
            loss = self._step()
        return {"steps": self.engine.steps, "loss": loss}

    def _step(self) -> float:
        rows = self.mixture.rows(self.engine.steps, self.settings.batch_size, self.seed)
        batch = [self.pairs[row] for row in rows]
        lengths = [max(len(pair.chosen), len(pair.rejected)) for pair in batch]
        groups = length_buckets(lengths, max(1, self.budget // 2))
        parts: list[float] = []
        self.engine.update(
            partial(self._loss, [batch[row] for row in group], batch[0], len(batch), parts)
            for group in rank_share(groups, self.rank.rank, self.rank.world)
        )
        return sum(parts)

    def _loss(
        self, group: Sequence[PairTokens], idle: PairTokens, total: int, parts: list[float]
    ) -> Tensor:
        rows = group or [idle]
        texts = [pair.chosen for pair in rows] + [pair.rejected for pair in rows]
        scores = self.engine(*pad(texts, self.pad_id))  # [2B]
        chosen, rejected = scores.chunk(2)
        fit = smoothed_bt(chosen - rejected, self.settings.label_smoothing, self.settings.margin)
        loss: Tensor = fit + self.settings.score_penalty * (chosen.square() + rejected.square()) / 2
        if not group:
            return loss.sum() * 0.0
        parts.append(float(fit.detach().sum()) / total)
        return loss.sum() * (self.rank.world / total)
