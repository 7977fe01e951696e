"""Whose is a run folder, and which recipe may go on in it?"""

import os
from pathlib import Path

import pytest
import yaml
from recipes import recipe_with

from rlhf_ray.config.schema import Recipe
from rlhf_ray.durable.folder import RESOLVED, RunFolder
from rlhf_ray.errors import BadData, RecipeError


def begun(path: Path, recipe: Recipe) -> None:
    """A run that has sampled something, and whose driver is gone."""
    folder = RunFolder(path, recipe, data="d")
    (path / "journal").mkdir()
    (path / "journal/000001.jsonl").touch()
    os.close(folder._lock)


def test_a_run_goes_on_with_its_recipe_and_more_workers(tmp_path: Path) -> None:
    recipe = recipe_with()
    begun(tmp_path, recipe)
    more = recipe.rollouts.model_copy(update={"workers": 3})
    RunFolder(tmp_path, recipe.model_copy(update={"rollouts": more}), data="d")


def test_another_recipe_is_refused_with_the_key_that_differs(tmp_path: Path) -> None:
    begun(tmp_path, recipe_with(seed=1))
    with pytest.raises(RecipeError, match=r"another recipe .seed: 1 there, 2 now"):
        RunFolder(tmp_path, recipe_with(seed=2), data="d")


def test_a_setting_that_is_new_since_the_run_began_had_its_default(tmp_path: Path) -> None:
    same, other = tmp_path / "same", tmp_path / "other"
    for path in (same, other):
        begun(path, recipe_with())
        written = yaml.safe_load((path / RESOLVED).read_text())
        assert written["judge_fleet"].pop("precision") == "fp32"
        (path / RESOLVED).write_text(yaml.safe_dump(written))
    RunFolder(same, recipe_with(), data="d")
    fleet = {"judge_fleet": {"precision": "bf16"}}
    with pytest.raises(RecipeError, match=r"judge_fleet\.precision: 'fp32' there, 'bf16' now"):
        RunFolder(other, recipe_with(**fleet), data="d")


def test_a_damaged_recipe_is_not_taken_for_another_one(tmp_path: Path) -> None:
    begun(tmp_path, recipe_with())
    (tmp_path / RESOLVED).write_text("seed: [1")
    with pytest.raises(BadData, match="is damaged"):
        RunFolder(tmp_path, recipe_with(), data="d")


def test_other_data_and_a_live_driver_are_refused(tmp_path: Path) -> None:
    begun(tmp_path, recipe_with())
    with pytest.raises(BadData, match="data files have changed"):
        RunFolder(tmp_path, recipe_with(), data="e")
    live = RunFolder(tmp_path / "live", recipe_with(), data="d")
    with pytest.raises(RecipeError, match="another driver is running"):
        RunFolder(live.path, recipe_with(), data="d")
