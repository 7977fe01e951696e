"""May anybody but its owner read a run? Not unless its owner opens its folder."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import toy_runs
from recipes import recipe_with

from rlhf_ray.durable.folder import RunFolder


@pytest.fixture
def open_handed() -> Iterator[None]:
    """A user whose files are everybody's, as on many clusters."""
    before = os.umask(0)
    yield
    os.umask(before)


def test_a_run_belongs_to_its_owner_alone(tmp_path: Path, open_handed: None) -> None:
    run = tmp_path / "runs" / "mine"
    RunFolder(run, recipe_with())
    toy_runs.driven(run)
    found = [run.parent, run, *sorted(run.rglob("*"))]
    assert len(found) > 20
    modes = {str(one): stat.S_IMODE(one.stat().st_mode) for one in found}
    wrong = {
        name: oct(mode)
        for name, mode in modes.items()
        if mode != (0o700 if Path(name).is_dir() else 0o600)
    }
    assert wrong == {}


def test_a_folder_that_was_opened_stays_open(tmp_path: Path, open_handed: None) -> None:
    run = tmp_path / "shared"
    run.mkdir(mode=0o755)
    RunFolder(run, recipe_with())
    assert stat.S_IMODE(run.stat().st_mode) == 0o755
