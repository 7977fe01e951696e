"""Sampling and weight delivery on a real vLLM engine, beside a real learner."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.delivery import Delivery
from actors.learners import Learners
from actors.rollout import Rollouts
from rlhf_ray.config.schema import GoldData, Learner, Scratch, Timeouts, Weights
from rlhf_ray.config.schema import Rollouts as Settings
from rlhf_ray.config.section import Optimizer
from rlhf_ray.data.batches import Tokens
from rlhf_ray.data.chat import Chat
from rlhf_ray.data.tokens import example_tokens, texts
from rlhf_ray.errors import WeightSyncMismatch
from rlhf_ray.gold.families import demonstrations, draw_prompts
from rlhf_ray.messages import Pair, Rollout, Step
from rlhf_ray.scheduling.events import Scale
from rlhf_ray.training.builders import policy_trainer
from rlhf_ray.training.policy import load_causal_lm
from rlhf_ray.training.scratch import make_policy

EXAMPLES = demonstrations(GoldData(), 64, seed=0)
PROMPTS = draw_prompts(GoldData().families, 6, seed=0, purpose="test", evaluation=False)
TIMEOUTS = Timeouts(engine_s=300, sync_s=120, update_s=120, generate_s=120)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy") / "tiny"
    make_policy(folder, Scratch(max_positions=32), texts(EXAMPLES), seed=0)
    return folder


@pytest.fixture(scope="module")
def rollouts(policy: Path, local_ray: None) -> Iterator[Rollouts]:
    """Two workers, so that chunks travel; 24 prompts in chunks of 5."""
    found = Rollouts(
        str(policy), Chat.load(str(policy)), Settings(workers=2, chunk_prompts=5, threads=1),
        TIMEOUTS, max_model_len=32, precision="fp32", backend="host", seed=0,
    )  # fmt: skip
    yield found
    found.stop()


@pytest.fixture(scope="module")
def learners(policy: Path, local_ray: None) -> Iterator[Learners]:
    settings = Learner(optimizer=Optimizer(lr=1e-2), threads=1, zero_stage=3)
    found = Learners(settings, TIMEOUTS, seed=0)
    found.begin(partial(policy_trainer, str(policy), settings, pad_id=0, total_steps=5))
    found.begin_round()
    yield found
    found.stop()


def told(rollouts: list[Rollout]) -> list[Any]:
    return [
        (one.token_ids, one.logprobs.tobytes(), rollout.policy_version)
        for rollout in rollouts
        for one in rollout.responses
    ]


def probes(policy: Path) -> list[Tokens]:
    return example_tokens(EXAMPLES[:4], Chat.load(str(policy)), limit=32)


def delivery(learners: Learners, rollouts: Rollouts, policy: Path, tolerance: float) -> Delivery:
    return Delivery(
        learners, rollouts, Weights(chunk_mib=1), probes(policy), backend="host",
        tensor_parallel=1, tolerance=tolerance, timeout_s=120,
    )  # fmt: skip


def test_the_same_prompts_give_the_same_bytes_whichever_worker_runs_them(
    rollouts: Rollouts,
) -> None:
    first = rollouts.generate("a", PROMPTS, samples=4)
    rollouts.pool.say(Scale(1))
    assert told(first) == told(rollouts.generate("a", PROMPTS, samples=4))
    rollouts.pool.say(Scale(2))
    assert told(first) == told(rollouts.generate("a", PROMPTS, samples=4))
    assert [one.prompt for one in first] == PROMPTS
    assert told(first) != told(rollouts.generate("b", PROMPTS, samples=4))


def test_samples_of_one_prompt_differ_and_greedy_ones_do_not(rollouts: Rollouts) -> None:
    sampled = rollouts.generate("a", PROMPTS[:1], samples=8)[0]
    assert len({one.token_ids for one in sampled.responses}) > 1
    greedy = [rollouts.generate(purpose, PROMPTS, samples=1, greedy=True) for purpose in "ab"]
    assert [r.responses[0].token_ids for r in greedy[0]] == [
        r.responses[0].token_ids for r in greedy[1]
    ]


def test_sampled_log_probabilities_are_those_of_the_policy(
    rollouts: Rollouts, policy: Path
) -> None:
    rollout = rollouts.generate("a", PROMPTS[:1], samples=1)[0]
    response = rollout.responses[0]
    ids = torch.tensor([rollout.prompt_ids + response.token_ids])
    with torch.no_grad():
        logprobs = torch.log_softmax(load_causal_lm(str(policy))(ids).logits[0], dim=-1)
    start = len(rollout.prompt_ids)
    expected = [
        float(logprobs[start + place - 1, token]) for place, token in enumerate(response.token_ids)
    ]
    assert response.logprobs == pytest.approx(np.array(expected), abs=1e-4)


def test_after_a_delivery_the_workers_sample_from_the_learners_weights(
    rollouts: Rollouts, learners: Learners, policy: Path
) -> None:
    before = rollouts.generate("a", PROMPTS, samples=2)
    sender = delivery(learners, rollouts, policy, tolerance=1e-4)
    assert sender.deliver(0).difference < 1e-4
    assert told(rollouts.generate("a", PROMPTS, samples=2)) == told(before)
    tokens = probes(policy)
    pairs = [
        Pair(0, one.ids[: one.start], one.ids[one.start :], one.ids[one.start : -2], 1.0, "judge")
        for one in tokens
    ]
    version = learners.update(Step(0, 0, 0), pairs).policy_version
    report = sender.deliver(version)
    assert (report.policy_version, report.difference < 1e-4) == (1, True)
    after = rollouts.generate("a", PROMPTS, samples=2)
    assert {one.policy_version for one in after} == {1}
    assert told(after) != told(before)


def test_a_worker_with_other_weights_is_named(
    rollouts: Rollouts, learners: Learners, policy: Path
) -> None:
    with pytest.raises(WeightSyncMismatch, match=r"version 7, rollout worker . differs"):
        delivery(learners, rollouts, policy, tolerance=-1.0).deliver(7)
