"""Does `rlhf-ray verify` find what is damaged, and leave everything as it is?"""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import toy_runs
from recipes import recipe_with
from typer.testing import CliRunner

from rlhf_ray.cli import app
from rlhf_ray.config.schema import Loop
from rlhf_ray.durable.folder import RunFolder
from rlhf_ray.durable.fsio import below
from rlhf_ray.durable.manifest import write_manifest
from rlhf_ray.durable.recorded import recorded_contexts
from rlhf_ray.errors import BadData, RecipeError
from rlhf_ray.rollouts.context import Contexts
from rlhf_ray.verify import verify

LOOP = Loop(rounds=2, waves=2, prompts=2)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished toy run of the real driver, with a judge in it."""
    (tmp_path / "config.resolved.yaml").touch()
    toy_runs.driven(tmp_path, loop=LOOP, keep=2)
    for name in ("judges/a", "start", "judges/.training-a-1/step-000002", "judges/.tmp-b"):
        made = tmp_path / name
        made.mkdir(parents=True)
        (made / "weights").write_bytes(b"w")
        write_manifest(made, {})
    flip(tmp_path / "judges/.tmp-b/weights")
    vectors = Contexts(["p"], np.ones((1, 2), np.float32))
    recorded_contexts(tmp_path / "contexts.npy", lambda _: vectors)
    return tmp_path


def bytes_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in below(folder) if path.is_file()}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_whole_run_is_whole_and_stays_as_it_is(run: Path) -> None:
    before = bytes_of(run)
    found = {one.name: one for one in verify(run)}
    assert all(one.ok for one in found.values()), found
    assert list(found) == [
        "journal", "checkpoints/step-000002", "checkpoints/step-000003", "samples, pairs",
        "contexts.npy", "rollouts", "metrics.jsonl", "judges/.training-a-1/step-000002", "judges/a",
        "start",
    ]  # fmt: skip
    assert "those of 4 waves" in found["samples, pairs"].says
    assert bytes_of(run) == before


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (lambda run: flip(run / "checkpoints/step-000003/state"), "checkpoints/step-000003"),
        (lambda run: flip(run / "journal/000001.jsonl"), "journal"),
        (lambda run: flip(next((run / "samples").glob("*.parquet"))), "samples, pairs"),
        (lambda run: next((run / "pairs").glob("*.parquet")).unlink(), "samples, pairs"),
        (lambda run: flip(run / "judges/a/weights"), "judges/a"),
        (lambda run: flip(run / "start/weights"), "start"),
        (lambda run: flip(run / "contexts.npy"), "contexts.npy"),
        (lambda run: (run / "metrics.jsonl").write_text("{\n{}\n"), "metrics.jsonl"),
    ],
)
def test_what_is_damaged_is_named_and_not_touched(
    run: Path, damage: Callable[[Path], object], name: str
) -> None:
    damage(run)
    before = bytes_of(run)
    bad = [one for one in verify(run) if not one.ok]
    assert [one.name for one in bad] == [name]
    assert str(run) in bad[0].says
    assert bytes_of(run) == before
    told = CliRunner().invoke(app, ["verify", str(run)])
    assert (told.exit_code, f"BAD {name}: " in told.output) == (BadData.exit_code, True)


def test_a_journal_that_lost_its_end_is_found_by_what_was_built_on_it(run: Path) -> None:
    path = run / "journal/000001.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: len(lines) // 2]))
    bad = {one.name for one in verify(run) if not one.ok}
    assert {"checkpoints/step-000003", "samples, pairs", "metrics.jsonl"} <= bad


def test_a_half_written_line_is_no_damage_and_is_left_to_the_resume(run: Path) -> None:
    path = run / "journal/000001.jsonl"
    path.write_bytes(path.read_bytes() + b'{"body":{"a')
    before = bytes_of(run)
    journal = next(iter(verify(run)))
    assert journal.ok
    assert "half written when the driver died" in journal.says
    assert bytes_of(run) == before


def test_a_run_that_is_going_on_and_a_folder_of_something_else_are_refused(tmp_path: Path) -> None:
    RunFolder(tmp_path / "live", recipe_with(), data="d")
    with pytest.raises(RecipeError, match="a driver is running in"):
        list(verify(tmp_path / "live"))
    with pytest.raises(BadData, match="is no run folder"):
        list(verify(tmp_path))


def test_rollouts_that_a_resume_needs_are_read_too(run: Path) -> None:
    shutil.rmtree(run / "checkpoints/step-000003")
    whole = {one.name: one for one in verify(run)}
    assert (whole["rollouts"].ok, "those of 1 waves" in whole["rollouts"].says) == (True, True)
    for name in ("r001-w001-critiques.json", "r001-w001.parquet"):
        kept = (run / "rollouts" / name).read_bytes()
        flip(run / "rollouts" / name)
        bad = [one for one in verify(run) if not one.ok]
        assert [one.name for one in bad] == ["rollouts"]
        assert name in bad[0].says
        (run / "rollouts" / name).write_bytes(kept)
