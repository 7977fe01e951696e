"""Policy updates on real DeepSpeed gangs: every ZeRO stage and world size learns the same."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from actors.learner import Learners
from rlhf_ray.config.schema import GoldData, Learner, Optimizer, Scratch, Timeouts
from rlhf_ray.data.chat import Chat
from rlhf_ray.data.tokens import example_tokens, texts
from rlhf_ray.errors import BadData
from rlhf_ray.gold.families import demonstrations
from rlhf_ray.messages import Pair, Step
from rlhf_ray.training.builders import policy_trainer
from rlhf_ray.training.scratch import make_policy

EXAMPLES = demonstrations(GoldData(), 64, seed=0)
STEPS = 3


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy") / "tiny"
    make_policy(folder, Scratch(max_positions=32), texts(EXAMPLES), seed=0)
    return folder


@pytest.fixture(scope="module")
def pairs(policy: Path) -> list[Pair]:
    """Demonstrations against each other; lengths differ, so that padding matters."""
    tokens = example_tokens(EXAMPLES, Chat.load(str(policy)), limit=32)
    return [
        Pair(
            row, one.ids[: one.start], one.ids[one.start :], other.ids[other.start + row % 4 :],
            1.0, "judge",
        )
        for row, (one, other) in enumerate(zip(tokens, reversed(tokens), strict=True))
        if one != other
    ]  # fmt: skip


def gang(policy: Path, killed: Callable[[Any], Any], **settings: Any) -> Learners:
    learner = Learner(
        beta=0.3, tokens_per_batch=512, optimizer=Optimizer(lr=1e-3), threads=1, num_cpus=0.5,
        **settings,
    )  # fmt: skip
    learners = Learners(learner, Timeouts(engine_s=120, update_s=120), seed=0)
    for rank in learners.ranks:
        killed(rank)
    learners.begin(partial(policy_trainer, str(policy), learner, pad_id=0, total_steps=STEPS))
    return learners


def losses(learners: Learners, pairs: list[Pair]) -> list[float]:
    """Mean loss of each of a few updates."""
    learners.begin_round()
    return [
        float(learners.update(Step(0, index, index), pairs).losses.mean()) for index in range(STEPS)
    ]


@pytest.fixture(scope="module")
def reference(policy: Path, pairs: list[Pair], local_ray: None) -> list[float]:
    actors: list[Any] = []
    found = losses(gang(policy, lambda actor: actors.append(actor), workers=1, zero_stage=0), pairs)
    for actor in actors:
        ray.kill(actor)
    return found


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_zero_stage_and_world_size_takes_the_same_steps(
    stage: int, workers: int, policy: Path, pairs: list[Pair], reference: list[float],
    killed_at_end: Callable[[Any], Any],
) -> None:  # fmt: skip
    learners = gang(policy, killed_at_end, workers=workers, zero_stage=stage)
    assert losses(learners, pairs) == pytest.approx(reference, abs=1e-5)
    assert reference[-1] < reference[0]


@pytest.mark.parametrize("stage", [1, 3])
def test_a_restored_checkpoint_goes_on_bit_for_bit(
    stage: int, policy: Path, pairs: list[Pair], tmp_path: Path, local_ray: None,
    killed_at_end: Callable[[Any], Any],
) -> None:  # fmt: skip
    learners = gang(policy, killed_at_end, workers=2, zero_stage=stage)
    learners.begin_round()
    learners.update(Step(0, 0, 0), pairs)
    learners.save(tmp_path)
    unbroken = [learners.update(Step(0, index, index), pairs).losses for index in (1, 2)]
    again = gang(policy, killed_at_end, workers=2, zero_stage=stage)
    again.restore(tmp_path, version=1)
    resumed = [again.update(Step(0, index, index), pairs).losses for index in (1, 2)]
    assert np.array_equal(unbroken, resumed)
    assert again.version == 3


def test_more_epochs_and_smaller_minibatches_take_more_steps(
    policy: Path, pairs: list[Pair], local_ray: None, killed_at_end: Callable[[Any], Any]
) -> None:
    one = gang(policy, killed_at_end, workers=1, zero_stage=1, epochs=2, minibatch_pairs=16)
    one.begin_round()
    one.update(Step(0, 0, 0), pairs)
    after = one.update(Step(0, 1, 1), pairs)
    plain = gang(policy, killed_at_end, workers=1, zero_stage=1)
    plain.begin_round()
    plain.update(Step(0, 0, 0), pairs)
    assert after.losses.mean() < plain.update(Step(0, 1, 1), pairs).losses.mean()


def test_bf16_learns_too(
    policy: Path, pairs: list[Pair], local_ray: None, killed_at_end: Callable[[Any], Any]
) -> None:
    found = losses(gang(policy, killed_at_end, workers=1, zero_stage=1, precision="bf16"), pairs)
    assert found[-1] < found[0]


def test_a_wave_without_pairs_leaves_the_policy_as_it_is(
    policy: Path, local_ray: None, killed_at_end: Callable[[Any], Any]
) -> None:
    learners = gang(policy, killed_at_end, workers=1, zero_stage=1)
    report = learners.update(Step(0, 0, 0), [])
    assert (report.policy_version, len(report.losses)) == (0, 0)


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(
    policy: Path, pairs: list[Pair], local_ray: None, killed_at_end: Callable[[Any], Any]
) -> None:
    learners = gang(policy, killed_at_end, workers=1, zero_stage=1, nll_weight=1e39)
    learners.begin_round()
    with pytest.raises(BadData, match="loss is inf"):
        learners.update(Step(0, 0, 0), pairs)
