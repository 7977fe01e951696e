"""Whose is a run folder, and which recipe may go on in it?"""

import os
from pathlib import Path

import pytest
import yaml
from recipes import judge_at, model_folder, recipe_with

from rlhf_ray.config.folders import fingerprints
from rlhf_ray.config.schema import Recipe
from rlhf_ray.console import View
from rlhf_ray.durable.claims import MODELS, RESOLVED, SEAL, refuse_another
from rlhf_ray.durable.folder import RunFolder
from rlhf_ray.errors import BadData, RecipeError
from rlhf_ray.launch import place


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
        (path / SEAL).unlink()
        (path / RESOLVED).write_text(yaml.safe_dump(written))
    RunFolder(same, recipe_with(), data="d")
    fleet = {"judge_fleet": {"precision": "bf16"}}
    with pytest.raises(RecipeError, match=r"judge_fleet\.precision: 'fp32' there, 'bf16' now"):
        RunFolder(other, recipe_with(**fleet), data="d")


def test_a_damaged_recipe_is_not_taken_for_another_one(tmp_path: Path) -> None:
    begun(tmp_path, recipe_with())
    (tmp_path / RESOLVED).write_text("seed: [1")
    (tmp_path / SEAL).unlink()  # as of an earlier version
    with pytest.raises(BadData, match="is damaged"):
        RunFolder(tmp_path, recipe_with(), data="d")


@pytest.mark.parametrize("damaged", [RESOLVED, SEAL])
def test_a_digit_that_changed_in_the_folder_is_no_other_wish(damaged: str, tmp_path: Path) -> None:
    begun(tmp_path, recipe_with(seed=1))
    text = (tmp_path / damaged).read_text()
    changed = text.replace("seed: 1", "seed: 3") if damaged == RESOLVED else f"0{text[1:-1]}f"
    assert changed != text
    (tmp_path / damaged).write_text(changed)
    for seed in (1, 3):
        with pytest.raises(BadData, match="is not what was written"):
            refuse_another(tmp_path, recipe_with(seed=seed), "d")


def test_a_model_that_changed_since_a_run_began_is_refused(tmp_path: Path) -> None:
    model = Path(model_folder(tmp_path / "model"))
    recipe, run = recipe_with(**judge_at(str(model))), tmp_path / "run"
    begun(run, recipe)
    (model / "README.md").write_text("a note")
    refuse_another(run, recipe, "d")
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[1234] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    with pytest.raises(BadData, match=r"the model of judges\.a\.path has changed"):
        refuse_another(run, recipe, "d")
    (run / MODELS).write_text("[1")
    with pytest.raises(BadData, match=r"models\.json is damaged"):
        refuse_another(run, recipe, "d")
    (run / MODELS).unlink()  # as of an earlier version
    refuse_another(run, recipe, "d")


@pytest.mark.parametrize("size", [3 * 2**20, 40 * 2**20])
def test_a_large_file_that_changed_all_over_has_another_fingerprint(
    size: int, tmp_path: Path
) -> None:
    model = Path(model_folder(tmp_path / "model"))
    recipe = recipe_with(**judge_at(str(model)))
    (model / "model.safetensors").write_bytes(bytes(size))
    before = fingerprints(recipe)
    (model / "model.safetensors").write_bytes(b"\1" * size)
    assert fingerprints(recipe) != before


def test_a_run_is_not_taken_over_for_another_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(tmp_path, recipe_with(seed=1))
    monkeypatch.setattr(place, "take_over", lambda run: pytest.fail("its driver is ended"))
    view = View()
    with (
        pytest.raises(RecipeError, match="seed: 1 there, 2 now"),
        place.opened(tmp_path, recipe_with(seed=2), "d", view, takeover=True),
    ):
        pass
    assert refuse_another(tmp_path / "none", recipe_with(), "d") == recipe_with()


def test_a_run_behind_a_url_is_not_taken_over_for_another_recipe(url: str, tmp_path: Path) -> None:
    view = View()
    with place.opened(url, recipe_with(seed=1), "d", view) as folder:
        (folder.path / "journal").mkdir()
        (folder.path / "journal/000001.jsonl").touch()
        folder.push()
        other = place.opened(url, recipe_with(seed=2), "d", view, takeover=True)
        with pytest.raises(RecipeError, match=rf"{url} holds a run of another .*seed: 1 there"):
            other.__enter__()
        folder.push()  # it still has the run


def test_other_data_and_a_live_driver_are_refused(tmp_path: Path) -> None:
    begun(tmp_path, recipe_with())
    with pytest.raises(BadData, match="data files have changed"):
        RunFolder(tmp_path, recipe_with(), data="e")
    live = RunFolder(tmp_path / "live", recipe_with(), data="d")
    with pytest.raises(RecipeError, match="another driver is running"):
        RunFolder(live.path, recipe_with(), data="d")
