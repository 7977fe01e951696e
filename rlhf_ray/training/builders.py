"""Recipes for trainers that travel to the learners: arguments here, models there.

Each takes the rank and the world size last, so that a gang can call one partial on all its members.
The heavy modules are imported on arrival.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_ray.config.schema import JudgeTraining, Learner, Scratch, Supervised
from rlhf_ray.data.batches import Tokens


def scratch_policy(folder: Path, settings: Scratch, texts: Sequence[str], seed: int) -> None:
    from rlhf_ray.training.scratch import make_policy

    make_policy(folder, settings, texts, seed)


def supervised_trainer(
    path: str,
    examples: Sequence[Tokens],
    settings: Supervised,
    learner: Learner,
    rank: int,
    world: int,
    **options: Any,
) -> Any:
    from rlhf_ray.training.policy import Rank
    from rlhf_ray.training.supervised import SupervisedTrainer

    return SupervisedTrainer(path, examples, settings, learner, Rank(rank, world), **options)


def judge_trainer(
    path: str,
    pairs: Sequence[Any],
    mixture: Any,
    settings: JudgeTraining,
    learner: Learner,
    rank: int,
    world: int,
    **options: Any,
) -> Any:
    from rlhf_ray.training.policy import Rank
    from rlhf_ray.training.reward_model import RewardModelTrainer

    place = Rank(rank, world)
    return RewardModelTrainer(path, pairs, mixture, settings, learner, place, **options)


def policy_trainer(path: str, learner: Learner, rank: int, world: int, **options: Any) -> Any:
    from rlhf_ray.training.policy import PolicyTrainer, Rank

    return PolicyTrainer(path, learner, Rank(rank, world), **options)
