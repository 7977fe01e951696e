"""How many workers shall there be: by order, by the recipe, or by what the cluster holds?"""

from pathlib import Path

import pytest
from recipes import recipe_with

from rlhf_ray.config.load import load_recipe
from rlhf_ray.config.schema import Elastic
from rlhf_ray.errors import BadData, RecipeError
from rlhf_ray.scale import order, ordered, parsed, wanted

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "config.resolved.yaml").write_text("name: a\n")
    return tmp_path


def never() -> int:
    raise AssertionError("the cluster is not asked")


def test_an_order_holds_until_the_recipe_is_asked_for_again(run: Path) -> None:
    now = wanted(run, "rollouts", 3, never)
    assert now() == 3
    assert order(run, {"rollouts": 8, "judges": 2}) == {"judges": 2, "rollouts": 8}
    assert now() == 8
    assert order(run, {"rollouts": None}) == {"judges": 2}
    assert now() == 3
    assert order(run, {}) == {"judges": 2}, "no order changes nothing"


@pytest.mark.parametrize(("room", "count"), [(0, 2), (2, 2), (5, 5), (9, 6)])
def test_elastic_workers_are_as_many_as_there_is_room_for_within_bounds(
    room: int, count: int, run: Path
) -> None:
    assert wanted(run, "rollouts", Elastic(min=2, max=6), lambda: room)() == count


def test_an_order_goes_before_the_room_there_is(run: Path) -> None:
    order(run, {"rollouts": 9})
    assert wanted(run, "rollouts", Elastic(min=2, max=6), never)() == 9


def test_workers_that_are_to_be_asked_for_are_wanted_whatever_room_there_is(run: Path) -> None:
    assert wanted(run, "rollouts", Elastic(max=6, ask=True), lambda: 1)() == 6


@pytest.mark.parametrize(
    "text", ["rollouts", "rollouts=", "rollouts=0", "rollouts=-1", "learners=2", "judges=1.5", "=1"]
)
def test_what_is_no_number_of_workers_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="is no number of workers; say rollouts or judges=N"):
        parsed([text])


def test_orders_are_read_as_they_are_written() -> None:
    assert parsed(["rollouts=08", "judges=recipe"]) == {"rollouts": 8, "judges": None}


def test_only_a_run_can_be_scaled(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="is no run folder; give the --run-dir of a run"):
        order(tmp_path, {"rollouts": 2})


@pytest.mark.parametrize("text", ["", "{", "[]", '{"rollouts": 0}', '{"learners": 1}',
                                  '{"rollouts": true}'])  # fmt: skip
def test_a_damaged_order_is_named(text: str, run: Path) -> None:
    (run / "scale.json").write_text(text)
    with pytest.raises(BadData, match=r"scale\.json is damaged; remove it"):
        ordered(run)


def test_a_new_order_replaces_a_damaged_one(run: Path) -> None:
    (run / "scale.json").write_text("{")
    with pytest.raises(BadData, match=r"scale\.json is damaged"):
        order(run, {})
    assert (run / "scale.json").read_text() == "{"
    assert order(run, {"rollouts": 2}) == ordered(run) == {"rollouts": 2}


def test_a_recipe_may_leave_the_number_of_rollout_workers_to_the_cluster() -> None:
    recipe = recipe_with(rollouts={"workers": {"min": 2, "max": 64}, "chunk_prompts": 8})
    assert recipe.rollouts.workers == Elastic(min=2, max=64)
    assert recipe.rollouts.fewest == 2


def test_bounds_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"rollouts\.workers: max must be >= min, got 2 < 3"):
        load_recipe(DEMO, ["rollouts.workers={min: 3, max: 2}"])


@pytest.mark.parametrize("workers", ["0", "many", "1.5"])
def test_what_is_no_number_of_workers_in_a_recipe_is_named(workers: str) -> None:
    with pytest.raises(RecipeError, match=r"rollouts\.workers should be "):
        load_recipe(DEMO, [f"rollouts.workers={workers}"])
