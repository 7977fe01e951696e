import numpy as np
import pytest

from rlhf_ray.data.baselines import HashedNgrams, longer_response_accuracy
from rlhf_ray.messages import Preference


def pair(chosen: str, rejected: str, source: str = "a") -> Preference:
    return Preference("id", "?", chosen, rejected, source)


def test_the_longer_response_is_right_per_source_and_a_tie_counts_half() -> None:
    pairs = [pair("long", "b"), pair("a", "long"), pair("a", "b"), pair("ab", "a", "b")]
    assert longer_response_accuracy(pairs) == {"a": 0.5, "b": 1.0}


def test_without_training_every_pair_is_a_tie() -> None:
    assert HashedNgrams(seed=0).accuracy([pair("x", "y")]) == {"a": 0.5}


def test_a_word_that_decides_is_learnt_and_found_in_new_pairs() -> None:
    train = [pair(f"w{i} good", f"w{i} bad") for i in range(50)]
    model = HashedNgrams(seed=0)
    model.fit(train)
    unseen = [pair("a good thing", "a bad thing"), pair("bad", "good", "b")]
    assert model.accuracy(unseen) == {"a": 1.0, "b": 0.0}


def test_word_order_counts() -> None:
    model = HashedNgrams(seed=0)
    model.fit([pair("dog bites man", "man bites dog")] * 10)
    assert model.accuracy([pair("dog bites man", "man bites dog")]) == {"a": 1.0}


def test_one_step_moves_the_two_differing_words_by_half_the_rate_over_root_two() -> None:
    model = HashedNgrams(seed=0, epochs=1, rate=0.4)
    model.fit([pair("x", "y")])
    moved = np.sort(model.weights[model.weights != 0])
    assert moved == pytest.approx([-0.2 / 2**0.5, 0.2 / 2**0.5])


def test_equal_seeds_give_equal_weights_and_responses_without_words_are_a_tie() -> None:
    pairs = [pair(f"w{i} u", f"v{i}") for i in range(9)]
    first, second = HashedNgrams(seed=4), HashedNgrams(seed=4)
    first.fit(pairs)
    second.fit(pairs)
    assert (first.weights == second.weights).all()
    assert first.accuracy([pair(" ", "\n")]) == {"a": 0.5}
