"""Preference and reward-model losses, and the log-probabilities they are made of."""

from math import exp, log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlhf_ray.losses.logprobs import k3_kl, masked_mean, masked_sum, token_logprobs
from rlhf_ray.losses.preference import dpo_loss, ipo_loss
from rlhf_ray.losses.reward_model import smoothed_bt


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + exp(-x))


def test_dpo_is_log_two_when_the_policy_is_the_reference() -> None:
    chosen, rejected = column(-3.0, -1.0), column(-2.0, -5.0)
    loss = dpo_loss(chosen, rejected, chosen, rejected, beta=0.1)
    assert loss.tolist() == pytest.approx([log(2.0)] * 2)


def test_dpo_counts_only_what_changed_against_the_reference() -> None:
    # chosen rose by 2, rejected fell by 1: h = 3
    loss = dpo_loss(column(-3.0), column(-6.0), column(-5.0), column(-5.0), beta=0.5)
    assert loss.tolist() == pytest.approx([-log(sigmoid(1.5))])


def test_conservative_dpo_weighs_both_directions() -> None:
    loss = dpo_loss(
        column(2.0), column(0.0), column(0.0), column(0.0), beta=0.5, label_smoothing=0.1
    )
    assert loss.tolist() == pytest.approx([-0.9 * log(sigmoid(1.0)) - 0.1 * log(sigmoid(-1.0))])


def test_dpo_lifts_the_chosen_and_lowers_the_rejected_response() -> None:
    chosen, rejected = column(0.0).requires_grad_(), column(0.0).requires_grad_()
    dpo_loss(chosen, rejected, column(0.0), column(0.0), beta=0.2).sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert (chosen.grad.item(), rejected.grad.item()) == pytest.approx((-0.1, 0.1))


def test_ipo_is_zero_at_half_over_beta_and_quadratic_around_it() -> None:
    zero = column(0.0, 0.0, 0.0)
    loss = ipo_loss(column(5.0, 6.0, 4.0), zero, zero, zero, beta=0.1)
    assert loss.tolist() == pytest.approx([0.0, 1.0, 1.0])


def test_preference_losses_refuse_shapes_that_would_broadcast() -> None:
    two, one = column(0.0, 0.0), column(0.0)
    with pytest.raises(AssertionError):
        dpo_loss(two, two, two, one, beta=0.1)
    with pytest.raises(AssertionError):
        ipo_loss(two, one, two, two, beta=0.1)


@given(st.floats(-30.0, 30.0), st.floats(0.0, 0.49))
def test_smoothing_is_a_linear_price_on_the_difference(delta: float, epsilon: float) -> None:
    loss = smoothed_bt(column(delta), epsilon).item()
    assert loss == pytest.approx(smoothed_bt(column(delta)).item() + epsilon * delta, abs=1e-9)


def test_smoothed_loss_is_least_at_the_log_odds_of_a_right_label() -> None:
    delta = column(log(0.95 / 0.05)).requires_grad_()
    loss = smoothed_bt(delta, 0.05).sum()
    loss.backward()
    assert delta.grad is not None
    assert delta.grad.item() == pytest.approx(0.0, abs=1e-12)
    assert loss.item() == pytest.approx(-0.95 * log(0.95) - 0.05 * log(0.05))


def test_margin_may_be_one_for_all_or_one_per_pair() -> None:
    assert smoothed_bt(column(1.0, 3.0), margin=1.0).tolist() == pytest.approx(
        [log(2.0), -log(sigmoid(2.0))]
    )
    each = smoothed_bt(column(1.0, 3.0), margin=column(1.0, 3.0))
    assert each.tolist() == pytest.approx([log(2.0)] * 2)
    with pytest.raises(AssertionError):
        smoothed_bt(column(1.0, 3.0), margin=column(1.0))


def test_token_logprobs_and_their_gradients_are_those_of_log_softmax() -> None:
    seed = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 5, generator=seed, requires_grad=True)
    weight = torch.randn(11, 5, generator=seed, requires_grad=True)
    targets = torch.randint(11, (7,), generator=seed)
    upstream = torch.randn(7, generator=seed)
    dense = torch.log_softmax(hidden @ weight.T, dim=-1)[torch.arange(7), targets]
    expected = torch.autograd.grad(dense @ upstream, [hidden, weight])

    found = token_logprobs(hidden, weight, targets)

    assert found.dtype == torch.float32
    torch.testing.assert_close(found, dense)
    gradients = torch.autograd.grad(found @ upstream, [hidden, weight])
    torch.testing.assert_close(gradients, expected)


def test_masked_sum_and_mean_see_only_unmasked_values() -> None:
    values = torch.tensor([[1.0, 2.0, float("nan")], [float("-inf"), 5.0, 7.0]])
    mask = torch.tensor([[True, True, False], [False, False, True]])
    assert masked_sum(values, mask).tolist() == [3.0, 7.0]
    assert masked_mean(values, mask).tolist() == [1.5, 7.0]


def test_the_mean_of_nothing_is_refused() -> None:
    with pytest.raises(AssertionError):
        masked_mean(torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.bool))


def test_k3_is_the_mean_over_unmasked_tokens() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -9.0]])
    reference = torch.tensor([[-1.0, -1.0, float("nan")]])
    mask = torch.tensor([[True, True, False]])
    assert k3_kl(logprobs, reference, mask).item() == pytest.approx((0.0 + exp(1.0) - 2.0) / 2)


@given(st.lists(st.tuples(st.floats(-20.0, 0.0), st.floats(-20.0, 0.0)), min_size=1))
def test_k3_is_never_negative(tokens: list[tuple[float, float]]) -> None:
    logprobs, reference = torch.tensor(tokens, dtype=torch.float64).T[:, None]
    assert k3_kl(logprobs, reference, torch.ones_like(logprobs, dtype=torch.bool)).item() >= 0.0
