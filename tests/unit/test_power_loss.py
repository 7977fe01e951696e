"""R5: after a kill or a power failure at any disk operation, is it the old state or the new?

Each test takes down what a disk may hold after each operation of a toy run, recovers from that,
looks for what was acknowledged, goes on, and compares the end with the unbroken run's.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import toy_runs
from power_loss import PowerLoss, Tree, Unsafe, in_place_of_the_disk, lay_out
from recipes import recipe_with
from trials import Trial

from rlhf_ray.durable import fsio
from rlhf_ray.durable.checkpoint import Checkpoints
from rlhf_ray.durable.claims import RESOLVED
from rlhf_ray.durable.folder import RunFolder
from rlhf_ray.durable.journal import Journal


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder, in memory where there is such a thing: these disks exist in the mind only."""
    place = Path("/dev/shm")
    with TemporaryDirectory(dir=place if os.access(place, os.W_OK) else None) as name:
        yield Path(name)


def test_a_power_failure_at_any_operation_leaves_the_old_state_or_the_new(memory: Path) -> None:
    trial = Trial(toy_runs.lean, memory)
    trial.lose_power()
    assert (trial.operations > 150, len(trial.states) > 250) == (True, True)
    assert next(trial.problems(), None) is None


def test_nor_does_it_harm_a_run_of_the_real_driver(memory: Path) -> None:
    trial = Trial(toy_runs.driven, memory, most=5)
    trial.lose_power()
    assert (trial.operations > 150, len(trial.states) > 150) == (True, True)
    assert next(trial.problems(), None) is None


SHORT = partial(toy_runs.lean, waves=2, keep=1)


def test_nor_does_one_soon_after_a_kill(memory: Path) -> None:
    trial = Trial(SHORT, memory, most=8)
    kills = next(at for at in count() if not trial.lose_power(killed_at=at, whole=False))
    assert (kills > 100, len(trial.states) > 500) == (True, True)
    assert next(trial.problems(), None) is None


def test_nor_does_one_at_any_operation_of_a_resumed_attempt(memory: Path) -> None:
    trial = Trial(SHORT, memory, most=12)
    assert sum(trial.lose_power(killed_at=at) for at in range(5, 150, 20)) > 5
    assert next(trial.problems(), None) is None


def test_nor_does_one_while_a_checkpoint_takes_the_place_of_another(memory: Path) -> None:
    trial = Trial(toy_runs.twice_the_same_step, memory)
    trial.lose_power()
    assert len(trial.states) > 100
    assert next(trial.problems(), None) is None


def opened(folder: Path) -> None:
    """A run that has begun, with its first record; then the process ends and its lock with it."""
    run = RunFolder(folder, recipe_with(), data="abc")
    journal = Journal(folder / "journal")
    try:
        if journal.find("evaluation", "0") is None:
            journal.append("evaluation", "0", {})
    finally:
        journal.close()
        os.close(run._lock)


def test_a_run_folder_opens_after_a_power_failure_at_any_operation_of_its_start(
    memory: Path,
) -> None:
    trees: dict[frozenset[tuple[str, bytes | None]], Tree] = {}
    disk = PowerLoss(memory / "first")
    disk.root.mkdir()
    disk.see = lambda: trees.update((frozenset(tree.items()), tree) for tree in disk.trees(64))
    with in_place_of_the_disk(disk):
        opened(disk.root / "run")
        resolved = (disk.root / "run" / RESOLVED).read_bytes()
    assert len(trees) > 25
    for number, tree in enumerate(trees.values()):
        place = memory / str(number)
        place.mkdir()
        lay_out(tree, place)
        with in_place_of_the_disk(Unsafe()):
            opened(place / "run")
        assert (place / "run" / RESOLVED).read_bytes() == resolved


# The other half: a fault that somebody may make has to be noticed by the tests above.


def _write(path: Path, data: bytes, *, flushed: bool) -> None:
    fd = fsio.disk.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        fsio.disk.write(fd, data)
        if flushed:
            fsio.disk.fsync(fd)
    finally:
        os.close(fd)


def renamed_before_it_is_flushed(patch: pytest.MonkeyPatch) -> None:
    def atomic_write(path: Path, data: bytes) -> None:
        temporary = path.with_name(f".{path.name}.tmp")
        _write(temporary, data, flushed=False)
        fsio.disk.rename(temporary, path)
        fsio.fsync_dir(path.parent)

    patch.setattr(fsio, "atomic_write", atomic_write)


def written_in_place(patch: pytest.MonkeyPatch) -> None:
    def atomic_write(path: Path, data: bytes) -> None:
        _write(path, data, flushed=True)
        fsio.fsync_dir(path.parent)

    patch.setattr(fsio, "atomic_write", atomic_write)


def lines_not_flushed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fsio.LineFile, "append", lambda file, line: fsio.disk.write(file._fd, line))


def folders_not_flushed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fsio, "fsync_dir", lambda path: None)


def engine_files_not_flushed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fsio, "fsync_tree", lambda folder: None)


def pruned_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    commit = Checkpoints.commit

    def commit_after(self: Checkpoints, step: int, *rest: object) -> Path:
        for path in self._committed()[-self.keep :]:
            self._delete(path, path)
        return commit(self, step, *rest)  # type: ignore[arg-type]

    patch.setattr(Checkpoints, "commit", commit_after)


def pruned_before_the_rename_is_flushed(patch: pytest.MonkeyPatch) -> None:
    def rename_dir(source: Path, target: Path) -> None:
        fsio.disk.rename(source, target)

    patch.setattr(fsio, "rename_dir", rename_dir)


def read_lines_not_flushed(patch: pytest.MonkeyPatch) -> None:
    flush = fsio.fsync_tree
    patch.setattr(
        fsio, "fsync_tree", lambda folder: None if folder.name == "journal" else flush(folder)
    )


def folders_that_are_there_taken_for_durable(patch: pytest.MonkeyPatch) -> None:
    make_dir = fsio.make_dir
    patch.setattr(fsio, "make_dir", lambda path: None if path.is_dir() else make_dir(path))


@pytest.mark.parametrize(
    "plant",
    [
        renamed_before_it_is_flushed,
        lines_not_flushed,
        folders_not_flushed,
        engine_files_not_flushed,
        pruned_before_the_commit,
        pruned_before_the_rename_is_flushed,
    ],
)
def test_a_planted_fault_is_noticed(
    memory: Path, monkeypatch: pytest.MonkeyPatch, plant: Callable[[Any], None]
) -> None:
    plant(monkeypatch)
    trial = Trial(toy_runs.lean, memory)
    trial.lose_power()
    assert next(trial.problems(), None) is not None


@pytest.mark.parametrize(
    ("plant", "kills"),
    [
        (written_in_place, range(36, 60, 4)),
        (read_lines_not_flushed, range(26, 60, 2)),
        (folders_that_are_there_taken_for_durable, range(20)),
    ],
)
def test_a_planted_fault_that_shows_after_a_kill_is_noticed(
    memory: Path, monkeypatch: pytest.MonkeyPatch, plant: Callable[[Any], None], kills: range
) -> None:
    plant(monkeypatch)
    trial = Trial(SHORT, memory, most=12)
    assert any(next(trial.problems(), None) for at in kills if trial.lose_power(killed_at=at))
