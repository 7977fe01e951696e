"""Are contexts centred, white, of length one, and found again by prompt?"""

import numpy as np
import pytest
from numpy.typing import NDArray

from rlhf_ray.keys import generator
from rlhf_ray.messages import Prompt
from rlhf_ray.rollouts.context import Contexts, Whitener


def hidden_states(count: int = 400) -> NDArray[np.float32]:
    """[count, 6] correlated values far from zero, as hidden states are."""
    rng = generator(0, "hidden states")
    mix = rng.normal(size=(6, 6))
    return (rng.normal(size=(count, 6)) @ mix + 50.0).astype(np.float32)


def ask(*ids: str) -> list[Prompt]:
    return [Prompt(id_, f"ask {id_}", "sort") for id_ in ids]


def test_axes_are_uncorrelated_and_of_variance_one() -> None:
    hidden = hidden_states()
    whitener = Whitener.fit(hidden, width=4)
    white = (hidden - whitener.centre) @ whitener.axes
    assert np.cov(white, rowvar=False) == pytest.approx(np.eye(4), abs=1e-5)
    assert white.mean(axis=0) == pytest.approx(np.zeros(4), abs=1e-5)


def test_the_first_axis_is_that_of_largest_variance() -> None:
    # Variances 8 and 2 along the two coordinates; the axis divides by the deviation.
    hidden = np.array([[2, 0], [-2, 0], [0, 1], [0, -1], [2, 0], [-2, 0]], np.float32)
    variance = 16 / 5
    assert Whitener.fit(hidden, width=1).axes == pytest.approx(
        np.array([[1 / np.sqrt(variance)], [0]])
    )


def test_contexts_have_length_one() -> None:
    contexts = Whitener.fit(hidden_states(), width=3)(hidden_states(10))
    assert contexts.dtype == np.float32
    assert np.linalg.norm(contexts, axis=1) == pytest.approx(np.ones(10), abs=1e-6)


def test_the_largest_entry_of_every_axis_is_positive() -> None:
    axes = Whitener.fit(hidden_states(), width=6).axes
    assert (axes[np.abs(axes).argmax(axis=0), range(6)] > 0).all()


def test_equal_states_give_equal_bits() -> None:
    first, second = (Whitener.fit(hidden_states(), width=4)(hidden_states()) for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_fewer_prompts_than_directions_still_give_finite_contexts() -> None:
    hidden = hidden_states(4)
    assert np.isfinite(Whitener.fit(hidden, width=6)(hidden)).all()


@pytest.mark.filterwarnings("ignore:.*encountered in divide")
def test_prompts_that_are_all_alike_still_give_finite_contexts() -> None:
    hidden = np.ones((5, 4), np.float32)
    assert np.isfinite(Whitener.fit(hidden, width=2)(hidden)).all()


def test_contexts_are_looked_up_by_prompt_in_the_order_asked() -> None:
    contexts = Contexts(["a", "b"], np.array([[1, 0], [0, 1]], np.float32))
    assert contexts(ask("b", "a", "b")).tolist() == [[0, 1], [1, 0], [0, 1]]


def test_a_prompt_asked_twice_is_embedded_once_and_axes_come_from_the_sample() -> None:
    seen: list[str] = []
    rows = {f"p{number}": row for number, row in enumerate(hidden_states(30))}

    def embed(prompts: object) -> NDArray[np.float32]:
        assert isinstance(prompts, list)
        seen.extend(prompt.id for prompt in prompts)
        return np.stack([rows[prompt.id] for prompt in prompts])

    prompts = ask(*rows, *rows)
    contexts = Contexts.of(prompts, embed, width=2, sample=20)
    assert seen == list(rows)
    expected = Whitener.fit(hidden_states(30)[:20], 2)(hidden_states(30))
    assert contexts(prompts[:30]).tobytes() == expected.tobytes()
