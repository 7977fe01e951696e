"""Label smoothing of the reward-model loss: its convention, its optimum, one epsilon per pair."""

from math import log

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlhf_ray.losses.reward_model import binary_epsilon, smoothed_bt

DELTAS = st.floats(-30.0, 30.0)
EPSILONS = st.floats(0.0, 0.5)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def slope(delta: float, epsilon: float, margin: float = 0.0) -> float:
    """Derivative of the loss of one pair by its delta."""
    at = column(delta).requires_grad_()
    (found,) = torch.autograd.grad(smoothed_bt(at, column(epsilon), column(margin)).sum(), at)
    return found.item()


@given(DELTAS, EPSILONS, st.floats(-5.0, 5.0))
def test_each_pair_pays_a_linear_price_of_its_own(
    delta: float, epsilon: float, margin: float
) -> None:
    lead = delta - margin
    loss = smoothed_bt(column(delta), column(epsilon), column(margin)).item()
    assert loss == pytest.approx(-F.logsigmoid(column(lead)).item() + epsilon * lead, abs=1e-9)


def test_descent_ends_at_the_log_odds_of_a_right_label_from_wherever_it_starts() -> None:
    epsilon = column(0.05, 0.1, 0.3, 0.5).repeat(3)
    delta = column(-5.0, 0.0, 20.0).repeat_interleave(4).requires_grad_()
    for _ in range(500):
        (gradient,) = torch.autograd.grad(smoothed_bt(delta, epsilon).sum(), delta)
        delta = (delta - 4.0 * gradient).detach().requires_grad_()
    optimum = [2.944438979, 2.197224577, 0.847297860, 0.0]  # log(19), log(9), log(7 / 3), log(1)
    assert delta.tolist() == pytest.approx(optimum * 3, abs=1e-6)


def test_without_smoothing_no_difference_is_enough() -> None:
    assert slope(20.0, 0.0) < 0.0
    assert slope(20.0, 0.05) == pytest.approx(0.05, abs=1e-8)


@given(st.lists(st.tuples(DELTAS, st.floats(0.0, 0.499)), min_size=1, max_size=6))
def test_one_epsilon_per_pair_is_the_one_for_all_row_by_row(
    pairs: list[tuple[float, float]],
) -> None:
    delta, epsilon = torch.tensor(pairs, dtype=torch.float64).T
    alone = [smoothed_bt(column(lead), doubt).item() for lead, doubt in pairs]
    assert smoothed_bt(delta, epsilon, 0.0).tolist() == pytest.approx(alone, abs=1e-12)


def test_a_pair_without_information_pulls_both_ways_alike() -> None:
    assert slope(0.0, 0.5) == 0.0
    assert slope(3.0, 0.5) == pytest.approx(-slope(-3.0, 0.5))
    assert slope(3.0, 0.5) > 0.0
    assert slope(2.0, 0.5, margin=2.0) == 0.0


@pytest.mark.parametrize("epsilon", [0.5, -0.01, float("nan")])
def test_one_epsilon_for_all_knows_more_than_a_coin(epsilon: float) -> None:
    with pytest.raises(AssertionError):
        smoothed_bt(column(1.0), epsilon)


@pytest.mark.parametrize(
    "epsilon", [column(0.1, 0.51), column(0.1, -0.01), column(0.1, float("nan")), column(0.1)]
)
def test_epsilons_of_pairs_are_refused_out_of_range_and_out_of_shape(epsilon: Tensor) -> None:
    with pytest.raises(AssertionError):
        smoothed_bt(column(1.0, 1.0), epsilon)


@given(DELTAS, EPSILONS)
def test_a_flipped_pair_has_the_loss_of_the_opposite_difference(
    delta: float, epsilon: float
) -> None:
    chosen, rejected, doubt = column(delta), column(0.0), column(epsilon)
    flipped = smoothed_bt(rejected - chosen, doubt).item()
    assert flipped == pytest.approx(smoothed_bt(-column(delta), doubt).item())
    # The label was right with probability 1 - epsilon: now the linear price is 1 - epsilon.
    right_way = -F.logsigmoid(column(delta)).item()
    assert flipped == pytest.approx(right_way + (1.0 - epsilon) * delta, abs=1e-9)


def test_a_flipped_pair_asks_for_its_strength_in_the_new_direction() -> None:
    # strength -2: flipped, with margin 2; scores 1 and 4 the old way round are 1 beyond it
    loss = smoothed_bt(column(4.0 - 1.0), column(0.0), column(2.0))
    assert loss.tolist() == pytest.approx([0.3132616875])  # log(1 + exp(-1))
    assert slope(3.0, 0.0, margin=2.0) < 0.0


def test_a_margin_stands_inside_the_sigmoid_and_has_a_gradient() -> None:
    assert slope(1.0, 0.0) == pytest.approx(-0.2689414214)  # -sigmoid(-1)
    assert slope(1.0, 0.0, margin=1.0) == pytest.approx(-0.5)
    assert slope(1.0, 0.1, margin=2.0) == pytest.approx(-0.7310585786 + 0.1)  # -sigmoid(1) + eps
    margin = column(1.0).requires_grad_()
    (gradient,) = torch.autograd.grad(smoothed_bt(column(1.0), margin=margin).sum(), margin)
    assert gradient.item() == pytest.approx(0.5)


@given(st.floats(-15.0, 15.0), st.floats(-15.0, 15.0), st.floats(0.0, 0.99))
def test_smoothing_of_two_classes_is_half_the_doubt(
    right: float, other: float, smoothing: float
) -> None:
    logits = column(right, other)[None]
    theirs = F.cross_entropy(logits, torch.tensor([0]), label_smoothing=smoothing).item()
    ours = smoothed_bt(column(right - other), binary_epsilon(smoothing)).item()
    assert ours == pytest.approx(theirs, abs=1e-9)


def test_smoothing_of_more_classes_is_one_against_the_rest() -> None:
    # Five classes, s = .2: the four others get .16 together, each with a logit of zero.
    logits = column(3.0, 0.0, 0.0, 0.0, 0.0)[None]
    theirs = F.cross_entropy(logits, torch.tensor([0]), label_smoothing=0.2).item()
    epsilon = binary_epsilon(0.2, classes=5)
    assert epsilon == pytest.approx(0.16)
    ours = smoothed_bt(column(3.0 - log(4.0)), epsilon).item()
    assert theirs == pytest.approx(ours + 0.16 * log(4.0))


def test_binary_epsilon_halves_and_refuses_what_is_no_smoothing() -> None:
    assert [binary_epsilon(s) for s in (0.0, 0.1, 0.15)] == pytest.approx([0.0, 0.05, 0.075])
    for smoothing, classes in ((1.0, 2), (-0.1, 2), (0.1, 1)):
        with pytest.raises(AssertionError):
            binary_epsilon(smoothing, classes)
