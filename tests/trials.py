"""Whatever becomes of a disk: is nothing lost that was acknowledged, and is the end the same?"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from power_loss import Killed, PowerLoss, Tree, Unsafe, in_place_of_the_disk, lay_out
from toy_runs import Run, leavings

from rlhf_ray.durable import fsio
from rlhf_ray.durable.audit import check_shards
from rlhf_ray.durable.checkpoint import Checkpoints
from rlhf_ray.durable.journal import Journal


class Acks(NamedTuple):
    """What a run has been told is on disk."""

    position: tuple[int, str] = (-1, "0" * 16)
    checkpoint: int = -1


class Trial:
    """A run, all that power failures may leave of it, and what has to be true of each."""

    def __init__(self, run: Run, scratch: Path, most: int = 64) -> None:
        """`most`: states to take down after one operation, a seeded choice where there are more."""
        self.run, self.scratch, self.most, self._number = run, scratch, most, count()
        self.acks, self.operations, self.seen = Acks(), 0, 0
        self.states: dict[frozenset[tuple[str, bytes | None]], tuple[Tree, Acks]] = {}
        self._ends: dict[frozenset[tuple[Path, bytes]], str] = {}
        with self.place() as folder, in_place_of_the_disk(Unsafe()):
            run(folder)
            self.end = leavings(folder)

    def lose_power(self, killed_at: int = -1, *, whole: bool = True) -> bool:
        """Take down what a power failure at each operation of a run may leave.

        With `killed_at`: of the attempt after one that was killed before that operation; without
        `whole`, for as long only as something that one wrote is not on disk. False when there is
        no such operation.
        """
        with self.place() as folder, self.acknowledged():
            disk = PowerLoss(folder.parent, dies_at=killed_at)
            with in_place_of_the_disk(disk):
                if killed_at >= 0:
                    if not killed(partial(self.run, folder)):
                        return False
                    disk.dies_at, old = -1, disk.unsynced()

                def see() -> None:
                    if not whole and not old.items() & disk.unsynced().items():
                        raise Killed  # the rest is not asked for
                    self._take(disk)

                disk.see = see
                killed(lambda: (self.run(folder), see()))
        self.operations += disk.operations
        return True

    def problems(self) -> Iterator[str]:
        """What is wrong with the states taken down; each is looked at once."""
        while self.states:
            tree, acks = self.states.pop(next(iter(self.states)))
            if why := self.problem(tree, acks):
                yield f"{why}\nin {sorted(tree)}\nafter {acks}"

    def problem(self, tree: Tree, acks: Acks) -> str:
        """Why this is not the old state or the new, or does not lead to the same end; or ""."""
        with self.place() as folder, in_place_of_the_disk(Unsafe()):
            lay_out(tree, folder.parent)
            try:
                return lost(folder, acks) or self._end_of(folder)
            except Exception as error:
                return f"{type(error).__name__}: {error}"

    def end_of(self, folder: Path) -> str:
        """Go on in a folder: how the end differs from that of an unbroken run."""
        self.run(folder)
        found = leavings(folder)
        names = sorted(found.keys() ^ self.end.keys())
        names += [name for name in found.keys() & self.end.keys() if found[name] != self.end[name]]
        return f"another end: {', '.join(names)}" if names else ""

    def _end_of(self, folder: Path) -> str:
        """The same, asked once of equal folders: most disks recover to one of a few."""
        files = [path for path in fsio.below(folder) if path.is_file()]
        key = frozenset((path.relative_to(folder), path.read_bytes()) for path in files)
        if key not in self._ends:
            self._ends[key] = self.end_of(folder)
        return self._ends[key]

    def _take(self, disk: PowerLoss) -> None:
        for tree in disk.trees(self.most):
            self.seen += 1
            # Of equal states the last counts: more is known to be on disk by then.
            self.states[frozenset(tree.items())] = tree, self.acks

    @contextmanager
    def place(self) -> Iterator[Path]:
        """A run folder that is not there yet, alone in another, which is gone afterwards."""
        folder = self.scratch / str(next(self._number))
        folder.mkdir()
        try:
            yield folder / "run"
        finally:
            shutil.rmtree(folder)

    @contextmanager
    def acknowledged(self) -> Iterator[None]:
        """Keep `acks` up to what the journal and the checkpoints say they have done."""
        append, commit, self.acks = Journal.append, Checkpoints.commit, Acks()

        def appended(journal: Journal, *record: Any) -> None:
            append(journal, *record)
            self.acks = self.acks._replace(position=journal.position)

        def committed(checkpoints: Checkpoints, step: int, *rest: Any) -> Path:
            path = commit(checkpoints, step, *rest)
            self.acks = self.acks._replace(checkpoint=step)
            return path

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Journal, "append", appended)
            patch.setattr(Checkpoints, "commit", committed)
            yield


def killed(act: Callable[[], object]) -> bool:
    """Whether the process died of it."""
    try:
        act()
    except Killed:
        return True
    return False


def lost(folder: Path, acks: Acks) -> str:
    """What was acknowledged and is not there, or is there without having been; or ""."""
    with closing(Journal(folder / "journal")) as journal:
        if not journal.holds(*acks.position):
            return f"record {acks.position[0]} is lost"
        if journal.position[0] > acks.position[0] + 1:
            return f"record {journal.position[0]} is there too early"
        check_shards(journal, folder, done=99)
    found = Checkpoints(folder / "checkpoints", keep=99).newest()
    step = found[1]["done"] - 1 if found else -1
    if not acks.checkpoint <= step <= acks.checkpoint + 1:
        return f"the newest checkpoint is {step} instead of {acks.checkpoint}"
    return ""
