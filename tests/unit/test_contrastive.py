"""Contrastive terms of reward models: SimCSE, SwAV, and the views they compare."""

from math import exp, log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlhf_ray.losses.contrastive import simcse, sinkhorn, swav, views


def rows(*values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def test_pairs_are_all_responses_and_differences_go_both_ways() -> None:
    chosen, rejected = rows((1.0, 2.0), (3.0, 4.0)), rows((0.0, 5.0), (1.0, 1.0))
    assert views(chosen, rejected, "pairs").tolist() == [[1, 2], [3, 4], [0, 5], [1, 1]]
    assert views(chosen, rejected, "differences").tolist() == [[1, -3], [2, 3], [-1, 3], [-2, -3]]
    with pytest.raises(AssertionError):
        views(chosen, rejected[:1], "pairs")


def test_simcse_of_two_items_by_hand() -> None:
    first, second = rows((1.0, 0.0), (0.0, 1.0)), rows((1.0, 0.0), (0.6, 0.8))
    # cosines (1, .6) and (0, .8), over a temperature of .5
    expected = [log(1 + exp(-0.8)), log(1 + exp(-1.6))]
    assert simcse(first, second, 0.5).tolist() == pytest.approx(expected)
    # and the other way round (1, 0) and (.6, .8)
    expected = [log(1 + exp(-2.0)), log(1 + exp(-0.4))]
    assert simcse(second, first, 0.5).tolist() == pytest.approx(expected)


def test_simcse_reads_directions_not_lengths() -> None:
    first, second = drawn(5, 3), drawn(5, 3, seed=1)
    torch.testing.assert_close(simcse(7.0 * first, 0.1 * second, 0.3), simcse(first, second, 0.3))


def test_simcse_of_views_that_are_all_alike_is_the_log_of_their_number() -> None:
    same = rows((1.0, 2.0)).repeat(4, 1)
    assert simcse(same, same, 0.05).tolist() == pytest.approx([log(4.0)] * 4)


def test_simcse_pulls_an_item_to_its_other_view_and_away_from_other_items() -> None:
    first, second = rows((1.0, 1.0), (1.0, -3.0)), rows((1.0, 0.0), (0.0, 1.0))
    first.requires_grad_()
    (gradient,) = torch.autograd.grad(simcse(first, second, 0.5)[0], first)
    step = -gradient[0]
    assert step[0] > 0.0 > step[1]
    assert gradient[1].tolist() == [0.0, 0.0]


def test_simcse_has_the_gradient_of_its_own_values() -> None:
    inputs = (drawn(4, 3).requires_grad_(), drawn(4, 3, seed=1).requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: simcse(a, b, 0.2), inputs)


def test_one_item_alone_has_nothing_to_be_told_from() -> None:
    first = rows((1.0, 2.0)).requires_grad_()
    loss = simcse(first, rows((-3.0, 0.5)), 0.05)
    assert loss.tolist() == [0.0]
    (gradient,) = torch.autograd.grad(loss.sum(), first)
    assert gradient.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("size", [0.0, 1e-12, 1e-30])
def test_vectors_without_direction_leave_losses_and_gradients_finite(size: float) -> None:
    first = torch.tensor([[size, 0.0], [1.0, 2.0]], requires_grad=True)
    second = torch.tensor([[size, size], [0.0, size]], requires_grad=True)
    prototypes = torch.tensor([[1.0, 0.0], [0.0, size]], requires_grad=True)
    alone = simcse(first, second, 0.05)
    assert alone.tolist() == pytest.approx([log(2.0)] * 2)
    loss = alone.sum() + swav(first, second, prototypes, 0.1).sum()
    for gradient in torch.autograd.grad(loss, [first, second, prototypes]):
        assert gradient.isfinite().all()
        assert gradient.abs().max() < 100.0


def test_sinkhorn_of_a_symmetric_square_is_a_softmax() -> None:
    share = exp(1.0) / (exp(1.0) + 1.0)  # (1 - 0) / epsilon = 1
    expected = rows((share, 1.0 - share), (1.0 - share, share))
    torch.testing.assert_close(sinkhorn(rows((0.5, 0.0), (0.0, 0.5)), epsilon=0.5), expected)


def test_one_sinkhorn_iteration_by_hand() -> None:
    # exp: (2, 1), (1, 1); columns to one: (2/3, 1/2), (1/3, 1/2); rows to one
    scores = rows((log(2.0), 0.0), (0.0, 0.0))
    expected = rows((4 / 7, 3 / 7), (2 / 5, 3 / 5))
    torch.testing.assert_close(sinkhorn(scores, epsilon=1.0, iterations=1), expected)


@given(st.integers(1, 9), st.integers(1, 6), st.integers(0, 2**32))
def test_codes_sum_to_one_and_use_all_prototypes_alike(items: int, many: int, seed: int) -> None:
    scores = drawn(items, many, seed=seed)
    codes = sinkhorn(scores, epsilon=0.5, iterations=300)
    assert codes.sum(dim=1).tolist() == pytest.approx([1.0] * items)
    assert codes.sum(dim=0).tolist() == pytest.approx([items / many] * many, rel=1e-4)
    assert sinkhorn(scores).sum(dim=1).tolist() == pytest.approx([1.0] * items)


def test_a_prototype_that_everyone_likes_gets_no_more_than_its_share() -> None:
    scores = drawn(8, 2)
    liked = scores + rows((5.0, 0.0))
    assert (liked.argmax(dim=1) == 0).all()
    torch.testing.assert_close(sinkhorn(liked), sinkhorn(scores))
    assert sinkhorn(torch.ones(3, 4)).tolist() == [[0.25] * 4] * 3


def test_codes_of_huge_scores_are_finite_and_carry_no_gradient() -> None:
    scores = torch.tensor([[1e6, -1e6], [1e6, 1e6], [0.0, 3e4]], requires_grad=True)
    codes = sinkhorn(scores)
    assert not codes.requires_grad
    assert codes.dtype == torch.float32
    assert codes.sum(dim=1).tolist() == pytest.approx([1.0] * 3)


AXES = rows((1.0, 0.0), (0.0, 1.0))


def test_swav_of_two_items_on_two_prototypes_by_hand() -> None:
    near, far = 1 / (1 + exp(-1.0)), 1 / (1 + exp(1.0))  # codes, epsilon 1
    sure, unsure = log(1 + exp(-2.0)), log(1 + exp(2.0))  # -log p, temperature .5
    loss = swav(AXES, AXES, 3.0 * AXES, 0.5, sinkhorn_epsilon=1.0)
    assert loss.tolist() == pytest.approx([2 * (near * sure + far * unsure)] * 2)


def test_swav_predicts_the_code_of_the_other_view() -> None:
    near, far = 1 / (1 + exp(-1.0)), 1 / (1 + exp(1.0))
    sure, unsure = log(1 + exp(-2.0)), log(1 + exp(2.0))
    loss = swav(AXES, AXES.flip(0), AXES, 0.5, sinkhorn_epsilon=1.0)
    assert loss.tolist() == pytest.approx([2 * (near * unsure + far * sure)] * 2)


@given(st.permutations(range(5)), st.integers(0, 2**32))
def test_swav_does_not_care_how_prototypes_are_numbered(order: list[int], seed: int) -> None:
    first, second = drawn(6, 3, seed=seed), drawn(6, 3, seed=seed + 1)
    prototypes = drawn(5, 3, seed=seed + 2)
    loss = swav(first, second, prototypes, 0.1)
    torch.testing.assert_close(swav(first, second, prototypes[order], 0.1), loss)
    torch.testing.assert_close(swav(second, 4.0 * first, 9.0 * prototypes, 0.1), loss)


def test_swav_takes_codes_as_given_when_it_learns() -> None:
    first, second = drawn(4, 3).requires_grad_(), drawn(4, 3, seed=1)
    prototypes = drawn(2, 3, seed=2).requires_grad_()
    unit, other, centres = (v / v.norm(dim=1, keepdim=True) for v in (first, second, prototypes))
    codes, swapped = sinkhorn(unit @ centres.T), sinkhorn(other @ centres.T)
    fixed = -swapped * (unit @ centres.T / 0.1).log_softmax(dim=1)
    fixed = fixed - codes * (other @ centres.T / 0.1).log_softmax(dim=1)
    expected = torch.autograd.grad(fixed.sum(), [first, prototypes])

    found = torch.autograd.grad(swav(first, second, prototypes, 0.1).sum(), [first, prototypes])

    torch.testing.assert_close(found, expected)
    assert found[1].abs().max() > 0.0


def test_swav_of_one_item_asks_for_all_prototypes_alike() -> None:
    view = rows((1.0, 1.0))
    assert swav(view, view, AXES, 0.1).tolist() == pytest.approx([2 * log(2.0)])


def test_contrastive_losses_refuse_shapes_that_would_broadcast() -> None:
    with pytest.raises(AssertionError):
        simcse(AXES, AXES[:1], 0.1)
    with pytest.raises(AssertionError):
        swav(AXES, AXES, torch.ones(2, 3), 0.1)
    with pytest.raises(AssertionError):
        simcse(AXES, AXES, 0.0)
