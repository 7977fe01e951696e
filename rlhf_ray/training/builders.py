"""Recipes for trainers that travel to the learners: arguments here, models there.

Pairs travel by their index in the mixture that batches are drawn from: those that are drawn at all.

Each takes the rank and the world size last, so that a gang can call one partial on all its members.
The heavy modules are imported on arrival.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_ray.config.judges import JudgeTraining, PairGeneration, Refresh, VerdictTraining
from rlhf_ray.config.schema import Learner, Scratch
from rlhf_ray.config.section import Supervised
from rlhf_ray.data.batches import Mixture, PairTokens, Tokens, VerdictTokens

Meta = tuple[Sequence[Sequence[Sequence[int]]], Refresh]
"""MetaRM's meta-set, token ids [M][K] of prompts with their responses, and its settings."""


def scratch_policy(folder: Path, settings: Scratch, texts: Sequence[str], seed: int) -> None:
    from rlhf_ray.training.scratch import make_policy

    make_policy(folder, settings, texts, seed)


def supervised_trainer(
    path: str,
    examples: Sequence[Sequence[Tokens]],
    settings: Supervised | PairGeneration,
    learner: Learner,
    rank: int,
    world: int,
    *,
    pad_id: int,
    seed: int,
    trust_remote_code: bool = False,
    purpose: str = "supervised",
) -> Any:
    """A causal language model on demonstrations, each in its variants."""
    from rlhf_ray.training.loading import load_causal_lm
    from rlhf_ray.training.modules import ResponseLogprobs
    from rlhf_ray.training.supervised import Demonstrations
    from rlhf_ray.training.trainer import BatchTrainer, Rank

    objective = Demonstrations(
        examples, batch_size=settings.batch_size, seed=seed, purpose=purpose, pad_id=pad_id
    )
    module = ResponseLogprobs(load_causal_lm(path, trust_remote_code=trust_remote_code))
    return BatchTrainer(
        module, objective, learner, Rank(rank, world),
        steps=settings.steps, optimizer=settings.optimizer,
    )  # fmt: skip


def scalar_trainer(
    path: str,
    pairs: Mapping[int, PairTokens],
    mixture: Mixture,
    settings: JudgeTraining,
    learner: Learner,
    rank: int,
    world: int,
    *,
    pad_id: int,
    seed: int,
    trust_remote_code: bool = False,
    without: Mapping[int, PairTokens] | None = None,
    dropout: float = 0.0,
    meta: Meta | None = None,
) -> Any:
    """A Bradley-Terry or critiqued judge; with `meta` one that MetaRM refreshes."""
    from rlhf_ray.keys import seed_of
    from rlhf_ray.training.contrastive import ScoreWithFeatures
    from rlhf_ray.training.meta import MetaTrainer
    from rlhf_ray.training.modules import ScalarScore
    from rlhf_ray.training.reward_model import ScalarPairs, load_classifier
    from rlhf_ray.training.trainer import BatchTrainer, Rank

    model = load_classifier(path, pad_id, new_head=True, trust_remote_code=trust_remote_code)
    module, place = ScalarScore(model), Rank(rank, world)
    if settings.contrastive:
        prototypes = settings.contrastive.prototypes
        module = ScoreWithFeatures(model, prototypes, seed_of(seed, "prototypes"))
    objective = ScalarPairs(
        pairs, mixture, settings, seed=seed, pad_id=pad_id, without=without, dropout=dropout
    )
    if meta is not None:
        groups, refresh = meta
        return MetaTrainer(module, objective, groups, refresh, learner, place, seed=seed)
    return BatchTrainer(
        module, objective, learner, place, steps=settings.steps, optimizer=settings.optimizer
    )


def verdict_trainer(
    path: str,
    pairs: Mapping[int, VerdictTokens],
    mixture: Mixture,
    settings: VerdictTraining,
    label_ids: tuple[int, int],
    learner: Learner,
    rank: int,
    world: int,
    *,
    pad_id: int,
    seed: int,
    trust_remote_code: bool = False,
) -> Any:
    """A generative judge, stage 2."""
    from rlhf_ray.training.generative import VerdictPairs
    from rlhf_ray.training.loading import load_causal_lm
    from rlhf_ray.training.trainer import BatchTrainer, Rank
    from rlhf_ray.training.verdicts import LabelLogits

    module = LabelLogits(load_causal_lm(path, trust_remote_code=trust_remote_code), label_ids)
    objective = VerdictPairs(pairs, mixture, settings, seed=seed, pad_id=pad_id)
    return BatchTrainer(
        module, objective, learner, Rank(rank, world),
        steps=settings.steps, optimizer=settings.optimizer,
    )  # fmt: skip


def policy_trainer(path: str, learner: Learner, rank: int, world: int, **options: Any) -> Any:
    from rlhf_ray.training.policy import PolicyTrainer
    from rlhf_ray.training.trainer import Rank

    return PolicyTrainer(path, learner, Rank(rank, world), **options)
