"""Bandits, the selector in front of them, and how credit comes back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.bandit.build import build_selector
from rlhf_ray.bandit.ensembles import AllArms
from rlhf_ray.bandit.fixed import Fixed, Oracle, RoundRobin, Uniform
from rlhf_ray.bandit.linucb import LinUCB
from rlhf_ray.bandit.selector import Asked, Bandit, Selector, ask_one
from rlhf_ray.config.schema import Recipe
from rlhf_ray.errors import RecipeError
from rlhf_ray.keys import generator
from rlhf_ray.messages import Choices, Floats, Prompt, Step

NAN = float("nan")
ARMS = ("a", "b", "c")


def prompts_of(*sources: str) -> list[Prompt]:
    return [Prompt(f"p{i}", "ask", source) for i, source in enumerate(sources)]


def step_of(index: int) -> Step:
    return Step(round=1, wave=index, index=index)


def selector_of(bandit: Bandit, arms: tuple[str, ...] = ARMS, *, window: int = 100) -> Selector:
    return Selector(bandit, arms, seed=7, low=0.2, high=0.8, window=window)


class Notebook:
    """Asks arm 0 and keeps the rewards it is paid."""

    def __init__(self) -> None:
        self.rewards: list[list[float]] = []

    def choose(
        self, contexts: Floats, prompts: object, rng: np.random.Generator
    ) -> tuple[Asked, Floats]:
        return ask_one(np.zeros(len(contexts), np.int64), len(ARMS)), np.ones(len(contexts))

    def learn(self, contexts: Floats, asked: Asked, rewards: Floats) -> None:
        self.rewards.append(rewards.tolist())

    def discount(self, arm: int, keep: float) -> None:
        """Nothing: rewards are all it knows."""


def pay(selector: Selector, signals: list[float]) -> None:
    prompts = prompts_of(*["sort"] * len(signals))
    contexts = np.ones((len(signals), 2), np.float32)
    selector.learn(selector.choose(step_of(0), prompts, contexts), np.array(signals))


# Selector


def test_rewards_lie_between_the_quantiles_of_the_signals() -> None:
    bandit = Notebook()
    pay(selector_of(bandit), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0])  # q20 = 1, q80 = 4
    np.testing.assert_allclose(bandit.rewards[0], [0, 0, 1 / 3, 2 / 3, 1, 1], atol=1e-12)


def test_a_prompt_without_a_signal_is_not_paid_and_moves_no_quantile() -> None:
    bandit = Notebook()
    pay(selector_of(bandit), [0.0, NAN, 1.0, 2.0, 3.0, NAN, 4.0, 5.0])
    np.testing.assert_allclose(bandit.rewards[0], [0, NAN, 0, 1 / 3, 2 / 3, NAN, 1, 1], atol=1e-12)


def test_equal_quantiles_pay_one_half() -> None:
    bandit = Notebook()
    pay(selector_of(bandit), [-3.0, NAN])
    np.testing.assert_array_equal(bandit.rewards[0], [0.5, NAN])


def test_a_wave_without_any_signal_pays_nobody() -> None:
    bandit = Notebook()
    pay(selector_of(bandit), [NAN, NAN])
    np.testing.assert_array_equal(bandit.rewards[0], [NAN, NAN])


def test_signals_that_left_the_window_no_longer_count() -> None:
    bandit = Notebook()
    selector = selector_of(bandit, window=6)
    pay(selector, [-1000.0, 1000.0])
    pay(selector, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    np.testing.assert_allclose(bandit.rewards[1], [0, 0, 1 / 3, 2 / 3, 1, 1], atol=1e-12)


@given(st.lists(st.floats(-1e6, 1e6, width=32) | st.just(NAN), min_size=1, max_size=30))
def test_rewards_are_shares_in_the_order_of_their_signals(signals: list[float]) -> None:
    bandit = Notebook()
    pay(selector_of(bandit), signals)
    paid = ~np.isnan(signals)
    rewards = np.array(bandit.rewards[0])
    np.testing.assert_array_equal(np.isnan(rewards), ~paid)
    assert ((rewards[paid] >= 0) & (rewards[paid] <= 1)).all()
    assert (np.diff(rewards[paid][np.argsort(np.array(signals)[paid])]) >= 0).all()


def test_the_choice_is_a_function_of_the_step() -> None:
    prompts, contexts = prompts_of(*["sort"] * 40), np.ones((40, 2), np.float32)
    first, again = selector_of(Uniform(3)), selector_of(Uniform(3))
    first.choose(step_of(1), prompts, contexts)
    asked = [s.choose(step_of(2), prompts, contexts).asked for s in (first, again)]
    np.testing.assert_array_equal(asked[0], asked[1])
    assert (asked[0] != first.choose(step_of(3), prompts, contexts).asked).any()


def test_a_single_judge_is_combined_with_nobody() -> None:
    values = np.full((3, 2, 2), NAN)
    values[2, 0], values[0, 1] = [1.0, 2.0], [3.0, 4.0]
    asked = ask_one(np.array([2, 0]), 3)
    choices = Choices(np.ones((2, 2), np.float32), asked, ARMS, np.ones(2))
    combined = selector_of(Uniform(3)).combine(choices, values)
    assert combined.tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_where_the_chosen_judge_failed_there_is_no_score() -> None:
    values = np.array([[[1.0, NAN], [NAN, NAN]], [[7.0, 8.0], [7.0, 8.0]]])
    asked = ask_one(np.array([0, 0]), 2)
    choices = Choices(np.ones((2, 2), np.float32), asked, ("a", "b"), np.ones(2))
    combined = selector_of(Uniform(2), ("a", "b")).combine(choices, values)
    np.testing.assert_array_equal(combined, [[1.0, NAN], [NAN, NAN]])


def test_choices_of_other_arms_are_refused() -> None:
    choices = selector_of(Uniform(3), ("x", "y", "z")).choose(
        step_of(0), prompts_of("sort"), np.ones((1, 2), np.float32)
    )
    with pytest.raises(AssertionError):
        selector_of(Uniform(3)).learn(choices, np.zeros(1))


# LinUCB


def test_the_inverse_is_that_of_a_dense_solve_after_five_hundred_updates() -> None:
    rng = generator(0, "test")
    contexts, rewards = rng.normal(size=(500, 12)), rng.random(500)
    arms = rng.integers(3, size=500)
    bandit = LinUCB(3, 12, alpha=0.5, ridge=2.0)
    bandit.learn(contexts, ask_one(arms, 3), rewards)
    state = bandit.state()
    for arm in range(3):
        mine = contexts[arms == arm]
        gram = 2.0 * np.eye(12) + mine.T @ mine
        np.testing.assert_allclose(state["inverse"][arm], np.linalg.inv(gram), atol=1e-8)
        np.testing.assert_array_equal(state["inverse"][arm], state["inverse"][arm].T)
        np.testing.assert_allclose(state["target"][arm], rewards[arms == arm] @ mine)
        assert state["pulls"][arm] == len(mine)


def test_a_wave_is_paid_for_by_sums_whose_order_depends_on_no_number_of_cores() -> None:
    rng = generator(1, "test")
    contexts, bandit = rng.normal(size=(3000, 33)), LinUCB(1, 33, alpha=0.5, ridge=2.0)
    bandit.learn(contexts, ask_one(np.zeros(3000, np.int64), 1), np.ones(3000))
    gram = np.zeros((33, 33))
    for context in contexts:  # a matrix product has other last bits, and others on other machines
        gram += np.outer(context, context)
    np.testing.assert_array_equal(bandit.gram[0], 2.0 * np.eye(33) + gram)


def test_bounds_are_estimate_plus_width() -> None:
    bandit = LinUCB(2, 1, alpha=0.5, ridge=1.0)
    bandit.learn(np.array([[1.0], [1.0]]), ask_one(np.array([0, 0]), 2), np.array([1.0, 0.5]))
    # A = 1 + 1 + 1 = 3, b = 1.5, theta = 0.5; at c = 3: 1.5 + 0.5 sqrt(9 / 3)
    bounds = bandit.bounds(np.array([[3.0]]))
    np.testing.assert_allclose(bounds, [[1.5 + 0.5 * np.sqrt(3.0), np.inf]])


def test_an_arm_never_pulled_comes_first_and_ties_are_shared() -> None:
    bandit, contexts = LinUCB(3, 2, alpha=0.0, ridge=1.0), np.ones((200, 2))
    prompts = prompts_of(*["sort"] * 200)
    asked, propensities = bandit.choose(contexts, prompts, generator(0, "test"))
    assert asked.any(axis=0).all()
    np.testing.assert_allclose(propensities, 1 / 3)

    bandit.learn(contexts[:1], ask_one(np.array([0]), 3), np.array([1.0]))
    asked, propensities = bandit.choose(contexts, prompts, generator(1, "test"))
    assert asked.any(axis=0).tolist() == [False, True, True]
    np.testing.assert_allclose(propensities, 1 / 2)


def test_a_choice_without_reward_teaches_nothing() -> None:
    bandit = LinUCB(2, 2, alpha=0.5, ridge=1.0)
    bandit.learn(np.ones((2, 2)), ask_one(np.array([0, 1]), 2), np.array([NAN, 1.0]))
    state = bandit.state()
    np.testing.assert_array_equal(state["inverse"][0], np.eye(2))
    # It counts as a pull, or an arm that is never paid would come first for ever.
    assert state["pulls"].tolist() == [1, 1]


def test_an_arm_that_never_tells_responses_apart_loses_its_turn() -> None:
    selector = Selector(
        LinUCB(2, 2, alpha=0.5, ridge=1.0), ("flat", "good"), seed=0, low=0.2, high=0.8, window=99
    )
    contexts = np.tile(np.array([[1.0, 0.0]], np.float32), (20, 1))
    prompts = [Prompt(str(i), "x", "s") for i in range(20)]
    for index in range(6):
        choices = selector.choose(Step(0, index, index), prompts, contexts)
        signals = np.where(choices.asked[:, 0], -np.inf, -1.0 + 0.01 * np.arange(20))
        selector.learn(choices, signals)
    assert choices.asked[:, 1].all()


def toy_waves(selector: Selector, count: int) -> list[tuple[Choices, Floats]]:
    """Waves of two sources; arm a is right (signal near 1) for the first, arm b for the second."""
    waves = []
    for index in range(count):
        rng = generator(3, "toy", index)
        source = rng.integers(2, size=16)
        contexts = (np.eye(2)[source] + 0.05 * rng.normal(size=(16, 2))).astype(np.float32)
        choices = selector.choose(step_of(index), prompts_of(*["toy"] * 16), contexts)
        right = choices.asked.argmax(axis=1) == source
        signals = right + 0.3 * rng.normal(size=16)
        signals[rng.random(16) < 0.1] = NAN
        selector.learn(choices, signals)
        waves.append((choices, signals))
    return waves


def test_linucb_learns_the_right_arm_of_each_context() -> None:
    selector = selector_of(LinUCB(3, 2, alpha=0.5, ridge=1.0))
    toy_waves(selector, 40)
    contexts = np.repeat(np.eye(2, dtype=np.float32), 10, axis=0)
    choices = selector.choose(step_of(40), prompts_of(*["toy"] * 20), contexts)
    assert choices.names() == ["a"] * 10 + ["b"] * 10


def test_a_fold_of_the_same_choices_and_signals_restores_every_bit() -> None:
    bandit, restored = (LinUCB(3, 2, alpha=0.5, ridge=1.0) for _ in range(2))
    waves = toy_waves(selector_of(bandit), 20)
    resumed = selector_of(restored)
    for choices, signals in waves:
        resumed.learn(choices, signals)
    for name, value in bandit.state().items():
        assert value.tobytes() == restored.state()[name].tobytes(), name


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 30), st.integers(0, 2**32))
def test_linucb_asks_one_of_the_best_arms_and_keeps_a_positive_inverse(
    num_arms: int, width: int, updates: int, seed: int
) -> None:
    rng = generator(seed, "test")
    bandit = LinUCB(num_arms, width, alpha=1.0, ridge=0.5)
    arms = ask_one(rng.integers(num_arms, size=updates), num_arms)
    bandit.learn(rng.normal(size=(updates, width)), arms, rng.random(updates))
    contexts = rng.normal(size=(6, width))
    before = bandit.state()["inverse"]
    asked, propensities = bandit.choose(contexts, prompts_of(*["toy"] * 6), rng)
    bounds = bandit.bounds(contexts)
    assert asked.sum(axis=1).tolist() == [1] * 6
    np.testing.assert_array_equal(bounds[asked], bounds.max(axis=1))
    np.testing.assert_allclose(1 / propensities, (bounds == bounds[asked][:, None]).sum(axis=1))
    np.testing.assert_array_equal(bandit.state()["inverse"], before)
    assert (np.linalg.eigvalsh(before) > 0).all()


# Rules


def choose(bandit: Bandit, *sources: str) -> tuple[list[int], list[float]]:
    """The arm asked for each prompt, and the propensities."""
    asked, propensities = bandit.choose(
        np.ones((len(sources), 2)), prompts_of(*sources), generator(0, "test")
    )
    assert asked.sum(axis=1).tolist() == [1] * len(sources)
    return asked.argmax(axis=1).tolist(), propensities.tolist()


def test_a_fixed_arm_is_asked_for_every_prompt() -> None:
    assert choose(Fixed(3, 2), "sort", "swap") == ([2, 2], [1.0, 1.0])


def test_uniform_asks_every_arm_about_equally_often() -> None:
    arms, propensities = choose(Uniform(4), *["sort"] * 4000)
    assert np.abs(np.bincount(arms) - 1000).max() < 150
    assert set(propensities) == {0.25}


def test_round_robin_goes_on_where_the_last_wave_ended_even_without_pay() -> None:
    bandit = RoundRobin(3)
    assert choose(bandit, *["sort"] * 4)[0] == [0, 1, 2, 0]
    assert choose(bandit, *["sort"] * 4)[0] == [0, 1, 2, 0]
    bandit.learn(np.ones((4, 2)), np.ones((4, 3), bool), np.array([1.0, NAN, NAN, NAN]))
    assert choose(bandit, *["sort"] * 3)[0] == [1, 2, 0]


def test_the_oracle_goes_by_source() -> None:
    assert choose(Oracle(3, {"sort": 2, "swap": 0}), "swap", "sort") == ([0, 2], [1.0, 1.0])


def test_the_oracle_names_the_source_it_was_told_nothing_about() -> None:
    with pytest.raises(RecipeError, match=r"source 'rotate' of prompt 'p0' .*'sort', 'swap'"):
        choose(Oracle(3, {"sort": 2, "swap": 0}), "rotate")


# Recipe


def recipe_of(bandit: dict[str, object]) -> Recipe:
    judges = {name: {"kind": "rules"} for name in ("sorter", "swapper")}
    return Recipe.model_validate(
        {"name": "t", "data": {"kind": "gold"}, "policy": {}, "judges": judges, "bandit": bandit}
    )


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"kind": "linucb"}, LinUCB),
        ({"kind": "fixed", "arm": "swapper"}, Fixed),
        ({"kind": "uniform"}, Uniform),
        ({"kind": "round_robin"}, RoundRobin),
        ({"kind": "oracle", "arm_by_source": {"sort": "sorter"}}, Oracle),
        ({"kind": "score_ensemble"}, AllArms),
        ({"kind": "agreement_ensemble"}, AllArms),
    ],
)
def test_every_bandit_of_the_recipe_chooses_and_learns(
    settings: dict[str, object], kind: type
) -> None:
    recipe = recipe_of(settings)
    selector = build_selector(recipe, tuple(recipe.judges))
    assert isinstance(selector.bandit, kind)
    contexts = np.ones((2, recipe.context.width), np.float32)
    choices = selector.choose(step_of(0), prompts_of("sort", "sort"), contexts)
    selector.learn(choices, np.array([-1.0, NAN]))
    assert selector.combine(choices, np.arange(8.0).reshape(2, 2, 2)).shape == (2, 2)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"kind": "fixed", "arm": "sortr"}, "bandit.arm"),
        ({"kind": "oracle", "arm_by_source": {"sort": "sortr"}}, "bandit.arm_by_source.sort"),
    ],
)
def test_an_unknown_arm_is_named_with_its_key_and_a_suggestion(
    settings: dict[str, object], key: str
) -> None:
    recipe = recipe_of(settings)
    with pytest.raises(RecipeError, match=rf"{key} names 'sortr'.*did you mean 'sorter'\?"):
        build_selector(recipe, tuple(recipe.judges))
