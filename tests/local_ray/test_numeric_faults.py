"""A loss or gradient that is not finite, on any rank, moves no weight, and every rank says so."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import ray
import torch

from actors.learners import Learners
from rlhf_ray.bootstrap.reading import Reading
from rlhf_ray.config.judges import BradleyTerryJudge, FilePreferences, JudgeTraining
from rlhf_ray.config.schema import GoldData, Learner, Scratch, Timeouts
from rlhf_ray.config.section import Optimizer
from rlhf_ray.data.chat import Chat
from rlhf_ray.data.tokens import example_tokens, mixture, texts
from rlhf_ray.errors import BadData
from rlhf_ray.gold.families import demonstrations
from rlhf_ray.messages import Pair, Preference, Step
from rlhf_ray.training.builders import policy_trainer
from rlhf_ray.training.scratch import make_policy

EXAMPLES = demonstrations(GoldData(), 32, seed=0)
FAULTS = ("nan loss", "inf loss", "nan gradient", "huge gradient")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("policy") / "tiny"
    make_policy(folder, Scratch(max_positions=32), texts(EXAMPLES), seed=0)
    return str(folder)


@pytest.fixture(scope="module")
def gang(local_ray: None) -> Iterator[Learners]:
    settings = Learner(threads=1, num_cpus=0.5, workers=2)
    gang = Learners(settings, Timeouts(engine_s=300, update_s=60), seed=0)
    yield gang
    for rank in gang.ranks:
        ray.kill(rank)


def broken(build: Callable[[int, int], Any], fault: str, rank: int, world: int) -> Any:
    """A trainer whose last batch on rank 1 goes wrong."""
    trainer = build(rank, world)
    whole = trainer._loss

    def loss(*asked: Any) -> torch.Tensor:
        found: torch.Tensor = whole(*asked)
        match fault:
            case "nan loss":
                return found * float("nan")
            case "inf loss":
                return found + float("inf")
            case "huge gradient":
                return found + 1e15 * (found - found.detach())
        return found + torch.sqrt(found - found.detach())  # finite, and its slope is not

    if rank == 1:
        trainer._loss = loss
    return trainer


def policy_build(policy: str, stage: int, precision: str) -> Callable[[int, int], Any]:
    learner = Learner(
        beta=0.3, tokens_per_batch=256, optimizer=Optimizer(lr=1e-3), zero_stage=stage,
        precision=precision,
    )  # fmt: skip
    return partial(policy_trainer, policy, learner, pad_id=0, total_steps=3)


def pairs_of(policy: str) -> list[Pair]:
    tokens = example_tokens(EXAMPLES, Chat.load(policy), limit=32)
    return [
        Pair(
            row, one.ids[: one.start], one.ids[one.start :], other.ids[other.start :], 1.0, "judge"
        )
        for row, (one, other) in enumerate(zip(tokens, reversed(tokens), strict=True))
        if one != other
    ]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_no_fault_of_one_rank_moves_the_policy_and_all_ranks_say_so(
    fault: str, stage: int, gang: Learners, policy: str
) -> None:
    refused(gang, policy_build(policy, stage, "fp32"), fault, "update", pairs_of(policy))


@pytest.mark.parametrize("fault", FAULTS)
def test_no_fault_moves_the_policy_in_bf16(fault: str, gang: Learners, policy: str) -> None:
    refused(gang, policy_build(policy, 2, "bf16"), fault, "update", pairs_of(policy))


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("stage", [0, 3])
def test_no_fault_of_one_rank_moves_a_judge(
    fault: str, stage: int, gang: Learners, policy: str
) -> None:
    training = JudgeTraining(
        preferences=FilePreferences(train="pairs"), steps=3, batch_size=16,
        optimizer=Optimizer(lr=1e-3),
    )  # fmt: skip
    preferences = [
        Preference(f"p{row}", one.prompt, one.response, other.response, one.source)
        for row, (one, other) in enumerate(zip(EXAMPLES, reversed(EXAMPLES), strict=True))
        if one.response != other.response
    ]
    reading = Reading.of(BradleyTerryJudge(path=policy), policy, None)
    learner = Learner(tokens_per_batch=256, zero_stage=stage)
    draw = partial(mixture, expert=None)
    build, _ = reading.build(preferences, training, learner, seed=3, draw=draw)
    refused(gang, build, fault, "advance")


def refused(gang: Learners, build: Any, fault: str, call: str, pairs: Any = None) -> None:
    gang.begin(partial(broken, build, fault))
    before = gang.fingerprint()
    arguments = (pairs, np.arange(len(pairs)), True) if call == "update" else (1,)
    for rank in gang.ranks:  # each is asked for its own outcome: none may hang
        rank.asked = getattr(rank, call).remote(*arguments)
    for rank in gang.ranks:
        with pytest.raises(BadData, match=fault.split()[1]) as failed:
            ray.get(rank.asked, timeout=60)
        assert "at optimizer step 0; the weights are unchanged" in str(failed.value.cause)
    assert gang.fingerprint() == before
    gang.end()


def test_the_wave_is_named(gang: Learners, policy: str) -> None:
    gang.begin(partial(broken, policy_build(policy, 1, "fp32"), "nan gradient"))
    with pytest.raises(BadData, match=r"wave r001-w002: largest gradient is "):
        gang.update(Step(1, 2, 5), pairs_of(policy))
    gang.end()


def test_a_loss_that_only_pays_the_bandit_is_finite_too(
    gang: Learners, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warm wave is measured without a step, and its loss would be what the bandit learns."""
    learner = Learner(nll_weight=1e39, zero_stage=1)
    gang.begin(partial(policy_trainer, policy, learner, pad_id=0, total_steps=3))
    monkeypatch.setattr(gang, "warm_waves", 9)
    with pytest.raises(BadData, match=r"wave r000-w000: the loss of \d+ of \d+ pairs is not"):
        gang.update(Step(0, 0, 0), pairs_of(policy))
    gang.end()
