"""Are sequences grouped within the budget, and is every pair trained on equally often?"""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.data.batches import Mixture, epoch_order, length_buckets, pad, rank_share

LENGTHS = st.lists(st.integers(1, 60), max_size=40)


def test_groups_follow_length_within_the_budget() -> None:
    # 9 is more than the budget and alone; 3 and 2 together would pad one token, which is more
    # than a pass of 8 / 32.
    assert length_buckets([9, 3, 4, 2, 4], budget=8) == [[3], [1], [2, 4], [0]]


def test_nothing_to_pad_is_no_error() -> None:
    assert length_buckets([], 8) == []
    assert length_buckets([0, 3], 8) == [[0], [1]]


def test_a_pass_is_worth_a_thirty_second_of_the_budget() -> None:
    # Together 4 x 10 tokens, apart 3 x 2 + 10: 24 saved are worth a pass of 640 / 32 = 20,
    # and not one of 960 / 32 = 30.
    assert length_buckets([2, 2, 2, 10], budget=640) == [[0, 1, 2], [3]]
    assert length_buckets([2, 2, 2, 10], budget=960) == [[0, 1, 2, 3]]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=7), st.integers(1, 400))
def test_no_other_cut_is_cheaper(lengths: list[int], budget: int) -> None:
    ascending = sorted(lengths)

    def cost(groups: list[list[int]]) -> float:
        return sum(len(one) * max(one) + budget / 32 for one in groups)

    found = cost([[lengths[i] for i in group] for group in length_buckets(lengths, budget)])
    for cuts in product((False, True), repeat=len(lengths) - 1):
        groups = [[ascending[0]]]
        for size, cut in zip(ascending[1:], cuts, strict=True):
            groups = [*groups, [size]] if cut else [*groups[:-1], [*groups[-1], size]]
        if all(len(one) == 1 or len(one) * max(one) <= budget for one in groups):
            assert found <= cost(groups) + 1e-9


@given(LENGTHS, st.integers(1, 100))
def test_every_sequence_is_in_one_group_and_groups_keep_the_budget(
    lengths: list[int], budget: int
) -> None:
    groups = length_buckets(lengths, budget)
    order = [index for group in groups for index in group]
    assert sorted(order) == list(range(len(lengths)))
    assert order == sorted(order, key=lambda index: (lengths[index], index))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= budget


def test_the_last_rank_gets_an_empty_group_where_groups_do_not_divide() -> None:
    groups = [[0], [1], [2]]
    assert [rank_share(groups, rank, 2) for rank in (0, 1)] == [[[0], [2]], [[1], []]]


@given(LENGTHS, st.integers(1, 5))
def test_ranks_step_together_and_share_everything(lengths: list[int], world: int) -> None:
    groups = length_buckets(lengths, 50)
    shares = [rank_share(groups, rank, world) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    assert sorted(group for share in shares for group in share if group) == sorted(groups)


def test_padding_stands_on_the_right() -> None:
    ids, lengths = pad([(5, 6, 7), (8,)], pad_id=0)
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert lengths.tolist() == [3, 1]


@given(size=st.integers(1, 12), batch=st.integers(1, 30))
def test_every_epoch_is_a_shuffle_of_everything(size: int, batch: int) -> None:
    steps = range(-(-3 * size // batch))
    order = np.concatenate(
        [epoch_order(size, batch, step, seed=1, purpose="train") for step in steps]
    )
    for epoch in range(3):
        assert sorted(order[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_a_step_knows_its_rows_without_the_steps_before_it() -> None:
    def rows(seed: int, purpose: str) -> bytes:
        return epoch_order(50, 10, 7, seed=seed, purpose=purpose).tobytes()

    assert rows(1, "train") == rows(1, "train")
    assert rows(1, "train") != rows(2, "train")
    assert rows(1, "train") != rows(1, "judge")


@pytest.mark.parametrize("step", [0, 1, 17])
def test_three_quarters_of_a_batch_are_the_experts_own_pairs(step: int) -> None:
    mixture = Mixture(expert=np.arange(10), others=np.arange(10, 100), share=0.75)
    rows = mixture.rows(step, 32, seed=0)
    assert len(rows) == 32
    assert int((rows < 10).sum()) == 24


def test_without_others_all_rows_are_the_experts() -> None:
    mixture = Mixture(expert=np.arange(8), others=np.arange(0), share=0.5)
    assert sorted(mixture.rows(0, 8, seed=0)) == list(range(8))


@pytest.mark.parametrize("steps", [1, 3, 40])
def test_the_pairs_drawn_at_all_are_those_of_all_steps(steps: int) -> None:
    numbers = np.arange(100)
    mixture = Mixture(numbers[:10], numbers[10:90], 0.75, numbers[90:], 0.25)
    batches = [mixture.rows(step, 16, seed=5) for step in range(steps)]
    assert mixture.drawn(steps, 16, seed=5).tolist() == sorted(set(np.concatenate(batches)))
