"""Is what is not finite, or will not be, seen before the weights move?"""

import pytest
import torch

from rlhf_ray.errors import BadData
from rlhf_ray.training.soundness import MOST, Soundness


def watched() -> tuple[torch.nn.Linear, Soundness]:
    module = torch.nn.Linear(3, 1)
    return module, Soundness(module)


def backward(module: torch.nn.Linear, soundness: Soundness, factor: float) -> None:
    loss = module(torch.ones(1, 3)).sum()
    loss = loss - loss.detach() + 1.0
    soundness.note(loss)
    (loss * factor).backward()


@pytest.mark.parametrize(
    ("factor", "said"),
    [(float("nan"), "nan"), (float("inf"), "inf"), (-float("inf"), "inf"), (2 * MOST, r"2e\+12")],
)
def test_a_gradient_of_any_batch_is_seen_at_the_end_of_its_step(factor: float, said: str) -> None:
    module, soundness = watched()
    for one in (1.0, factor, 1.0):
        backward(module, soundness, one)
    with pytest.raises(BadData, match=rf"largest gradient is {said} at optimizer step 7; the wei"):
        soundness.check(7)
    backward(module, soundness, 1.0)
    soundness.check(8)  # the next step is judged by itself


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_the_first_loss_that_is_not_finite_is_told(value: str) -> None:
    _, soundness = watched()
    for one in (1.0, float(value), 2.0):
        soundness.note(torch.tensor(one))
    with pytest.raises(BadData, match=rf"^loss is {value} at optimizer step 0"):
        soundness.check(0)
    soundness.note(torch.tensor(1.0))
    soundness.check(1)


def test_frozen_weights_and_empty_shards_are_no_matter() -> None:
    module = torch.nn.Linear(0, 2)
    module.bias.requires_grad_(False)
    soundness = Soundness(module)
    module(torch.ones(1, 0)).sum().backward()
    soundness.check(0)
