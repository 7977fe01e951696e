"""A run goes on elsewhere, on other ranks and another ZeRO stage, and after an upgrade."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from commandline import killed_when, metrics, rlhf_ray
from conftest import ROOT, TINY

from rlhf_ray.same_end import end_of, timeless

TWO = ("learner.workers=2", "learner.zero_stage=3")
MADE = ("contexts", "judges", "start policy")
"""What is there before the first wave, and is not made again."""
RELEASED = sorted(one for one in (ROOT / "tests/data/released").iterdir() if one.is_dir())


DEMO = ["-c", "configs/demo.yaml", *TINY]
"""Begins the small demo, or goes on with it."""


def written(folder: Path) -> dict[str, int]:
    """When each file of the models made for a run was written, to the nanosecond."""
    paths = [*(folder / "start").rglob("*"), *(folder / "judges").rglob("*")]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in paths}


def waves(folder: Path) -> dict[str, dict[str, Any]]:
    rows = [timeless(row) for row in metrics(folder) if row["kind"] == "wave"]
    return {row["step"]: row for row in rows}


def near(row: dict[str, Any]) -> dict[str, Any]:
    """What updates come to, up to rounding; whatever else stands in the row, exactly."""
    names = {"loss", "preference_loss", "nll", "reward_margin", "grad_norm", "signal"}
    free = {"kl", "sync_difference"}  # both next to nothing, and made of rounding
    near_ones = {key: pytest.approx(row[key], rel=1e-5, abs=1e-6) for key in names & row.keys()}
    return {key: value for key, value in row.items() if key not in free} | near_ones


@pytest.fixture(scope="module")
def moved(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The run killed on one rank, then on two, and ended on one; each time at another place."""
    first, second, third = (tmp_path_factory.mktemp("moved") / "run" for _ in range(3))
    killed_when('"key":"r001-w000","kind":"rollouts"', first, *DEMO)
    shutil.move(first, second)
    before = written(second)
    said = killed_when('"key":"r001-w001","kind":"rollouts"', second, *DEMO, *TWO)
    shutil.move(second, third)
    ended = rlhf_ray("run", "--run-dir", str(third), *DEMO)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return {"run": third, "two": said, "one": ended.stdout, "made": before}


def test_a_run_that_goes_on_in_another_shape_says_so(moved: dict[str, Any]) -> None:
    told = "learner.workers is {} and learner.zero_stage {} now, {} and {} when this was written"
    assert told.format(2, 3, 1, 1) in moved["two"]
    assert "resuming after wave 2 from" in moved["two"]
    assert told.format(1, 1, 2, 3) in moved["one"]
    assert "resuming after wave 3 from" in moved["one"]


def test_no_model_is_made_again_for_another_shape(moved: dict[str, Any], tiny_run: Path) -> None:
    assert moved["made"] == written(moved["run"])
    assert not [line for line in (moved["two"] + moved["one"]).splitlines() if ": step " in line]
    ends = end_of(tiny_run), end_of(moved["run"])
    for what in MADE:
        assert ends[0][what] == ends[1][what], what


def test_what_was_before_the_move_is_that_of_an_unbroken_run(
    moved: dict[str, Any], tiny_run: Path
) -> None:
    ends, rows = (end_of(tiny_run), end_of(moved["run"])), (waves(tiny_run), waves(moved["run"]))
    for step in ("r000-w000", "r000-w001"):
        assert rows[0][step] == rows[1][step]
    for step in ("r000-w000", "r000-w001", "r001-w000"):  # the last was sampled before the move
        for what in ("samples", "pairs"):
            name = f"{what}/{step}.parquet"
            assert ends[0][what][name] == ends[1][what][name]


@pytest.mark.parametrize("step", ["r001-w000", "r001-w001"])
def test_losses_after_the_move_agree(step: str, moved: dict[str, Any], tiny_run: Path) -> None:
    there, here = waves(tiny_run)[step], waves(moved["run"])[step]
    assert here["loss"] is not None
    exactly = near(there)
    assert {key: here[key] for key in exactly} == exactly


def test_the_policy_at_the_end_is_that_of_an_unbroken_run_up_to_rounding(
    moved: dict[str, Any], tiny_run: Path
) -> None:
    from safetensors.numpy import load_file

    one, other = (
        load_file(run / "final" / "model.safetensors") for run in (tiny_run, moved["run"])
    )
    for name, weight in one.items():
        assert other[name] == pytest.approx(weight, abs=1e-6), name


@pytest.mark.parametrize("released", RELEASED, ids=lambda path: str(path.name))
def test_a_run_that_a_released_version_began_is_ended_by_this_one(
    released: Path, tmp_path: Path
) -> None:
    """The folders are made by `tests/data/released/make.py`, killed in the third of four waves."""
    run = tmp_path / "run"
    shutil.copytree(released, run)
    before = waves(run)
    kept = {path: path.read_bytes() for path in (run / "start").iterdir()}
    assert rlhf_ray("verify", str(run)).returncode == 0
    ended = rlhf_ray("run", "-c", str(run / "config.resolved.yaml"), "--run-dir", str(run))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "resuming after wave 2 from" in ended.stdout
    assert {path: path.read_bytes() for path in (run / "start").iterdir()} == kept
    rows = waves(run)
    assert [row["index"] for row in rows.values()] == [0, 1, 2, 3]
    assert {step: rows[step] for step in before} == before
    assert rows["r001-w001"]["policy_version"] == 4
    assert json.loads((run / "summary.json").read_text())["status"] == "completed"
    checked = rlhf_ray("verify", str(run))
    assert checked.returncode == 0, checked.stdout
