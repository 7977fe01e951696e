"""Supervised fine-tuning: the mean negative log-likelihood of response tokens."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rlhf_ray.config.schema import Learner, Supervised
from rlhf_ray.data.batches import Tokens, epoch_order, length_buckets, pad, rank_share
from rlhf_ray.training.engine import ZeroEngine
from rlhf_ray.training.modules import ResponseLogprobs
from rlhf_ray.training.policy import Rank, load_causal_lm


class SupervisedTrainer:
    """Trains a causal language model on demonstrations, on one learner rank."""

    def __init__(
        self,
        path: str,
        examples: Sequence[Tokens],
        settings: Supervised,
        learner: Learner,
        rank: Rank,
        *,
        pad_id: int,
        seed: int,
        trust_remote_code: bool = False,
    ) -> None:
        self.examples, self.settings, self.rank, self.pad_id = examples, settings, rank, pad_id
        self.budget, self.seed = learner.tokens_per_batch, seed
        self.zero_stage = learner.zero_stage
        self.engine = ZeroEngine(
            ResponseLogprobs(load_causal_lm(path, trust_remote_code=trust_remote_code)),
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
        order = epoch_order(
            len(self.examples),
            self.settings.batch_size,
            self.engine.steps,
            seed=self.seed,
            purpose="supervised",
        )
        batch = [self.examples[i] for i in order]
        targets = sum(len(example.ids) - example.start for example in batch)
        groups = length_buckets([len(example.ids) for example in batch], self.budget)
        parts: list[float] = []
        self.engine.update(
            partial(self._loss, [batch[row] for row in group], batch[0], targets, parts)
            for group in rank_share(groups, self.rank.rank, self.rank.world)
        )
        return sum(parts)

    def _loss(
        self, group: Sequence[Tokens], idle: Tokens, targets: int, parts: list[float]
    ) -> Tensor:
        rows = group or [idle]
        ids, lengths = pad([example.ids for example in rows], self.pad_id)
        starts = torch.tensor([example.start for example in rows])
        values, mask = self.engine(ids, lengths, starts)
        total: Tensor = -(values * mask).sum()
        if not group:
            return total * 0.0
        parts.append(float(total.detach()) / targets)
        return total * (self.rank.world / targets)
