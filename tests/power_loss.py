"""What may a disk hold after the power has failed?

`PowerLoss` takes the place of `fsio.disk`. It does every operation for real, but remembers besides
what the kernel had only in memory, and so knows every state a power failure may leave:

- what was written to a file since its last fsync: kept, lost, torn at any byte, or replaced by
  zeros, as a whole or up to its end (blocks reach a disk in any order);
- what was done to the names in a folder since its fsync: kept up to some operation, or, which
  POSIX allows though ext4 and XFS do not do it, any of them without the others.

Folders and files are independent of each other: ext4 would keep an order that POSIX does not ask
for. A rename is one operation: there is never neither name.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations, product
from math import prod
from pathlib import Path

import numpy as np

from rlhf_ray.durable import fsio

Tree = dict[str, bytes | None]
"""Relative path -> content; None: a folder."""


class Killed(BaseException):
    """Nothing handles it, as nothing handles a kill."""


class File:
    """Contents, oldest first: the first is on disk, the last is what a reader sees."""

    def __init__(self) -> None:
        self.versions = [b""]
        self.flushes = 0

    @property
    def pending(self) -> bool:
        return len(self.versions) > 1

    def flush(self) -> None:
        del self.versions[:-1]
        self.flushes += 1

    def outcomes(self, rng: np.random.Generator) -> list[bytes]:
        found = list(self.versions)
        for old, new in zip(self.versions, self.versions[1:], strict=False):
            if (grown := len(new) - len(old)) > 0:
                cut = len(old) + int(rng.integers(grown))
                late = b"\0" * (cut - len(old)) + new[cut:]
                found += [new[:cut], new[:-1], new[:cut] + b"\0" * (len(new) - cut), old + late]
        return list(dict.fromkeys(found))


class Folder:
    """Names on disk, and what was done to them since."""

    def __init__(self) -> None:
        self.synced: dict[str, File | Folder] = {}
        self.now: dict[str, File | Folder] = {}
        self.changes: list[dict[str, File | Folder | None]] = []
        self.flushes = 0

    @property
    def pending(self) -> bool:
        return bool(self.changes)

    def change(self, names: dict[str, "File | Folder | None"]) -> None:
        self.changes.append(names)
        self.now = _after(self.now, [names])

    def flush(self) -> None:
        self.synced, self.changes = dict(self.now), []
        self.flushes += 1

    def outcomes(self, rng: np.random.Generator) -> "list[dict[str, File | Folder]]":
        count = len(self.changes)
        kept = [self.changes[:length] for length in range(count + 1)]
        if count <= 3:
            kept += [
                list(some)
                for length in range(1, count)
                for some in combinations(self.changes, length)
                if list(some) != self.changes[:length]
            ]
        return [_after(self.synced, changes) for changes in kept]


def _after(
    names: dict[str, File | Folder], changes: list[dict[str, File | Folder | None]]
) -> dict[str, File | Folder]:
    found = dict(names)
    for change in changes:
        for name, node in change.items():
            found.pop(name, None)
            if node is not None:
                found[name] = node
    return found


class PowerLoss(fsio.Disk):
    """The disk below `root`. `see` is told of each change; `dies_at` ends the process before the
    operation of that number."""

    def __init__(self, root: Path, dies_at: int = -1) -> None:
        self.root, self.dies_at, self.operations = root, dies_at, 0
        self.see: Callable[[], object] = lambda: None
        self.top = Folder()
        self._open: dict[int, File | Folder] = {}

    def open(self, path: Path, flags: int, mode: int = 0o666) -> int:
        self._begin()
        new, fd = not path.exists(), super().open(path, flags, mode)
        if new:
            self._folder(path).change({path.name: File()})
        node = self._node(path)
        if isinstance(node, File) and flags & os.O_TRUNC and node.versions[-1]:
            node.versions.append(b"")
        self._open[fd] = node
        if new or flags & os.O_TRUNC:
            self.see()
        return fd

    def write(self, fd: int, data: bytes) -> int:
        self._begin()
        count, file = super().write(fd, data), self._open[fd]
        assert isinstance(file, File)
        file.versions.append(file.versions[-1] + data[:count])  # nothing here writes elsewhere
        self.see()
        return count

    def truncate(self, fd: int, size: int) -> None:
        self._begin()
        super().truncate(fd, size)
        file = self._open[fd]
        assert isinstance(file, File)
        file.versions.append(file.versions[-1][:size])
        self.see()

    def fsync(self, fd: int) -> None:
        self._begin()
        self._open[fd].flush()  # and no real one: this is about what it promises

    def mkdir(self, path: Path) -> None:
        self._begin()
        super().mkdir(path)
        self._folder(path).change({path.name: Folder()})
        self.see()

    def rename(self, source: Path, target: Path) -> None:
        self._begin()
        super().rename(source, target)
        assert source.parent == target.parent
        node = self._node(source)
        self._folder(source).change({source.name: None, target.name: node})
        self.see()

    def unlink(self, path: Path) -> None:
        self._begin()
        super().unlink(path)
        self._folder(path).change({path.name: None})
        self.see()

    def rmdir(self, path: Path) -> None:
        self._begin()
        super().rmdir(path)
        self._folder(path).change({path.name: None})
        self.see()

    def trees(self, most: int) -> Iterator[Tree]:
        """What may be on disk if the power fails now: all of it, or a seeded choice of `most`."""
        rng = np.random.Generator(np.random.Philox(key=self.operations))
        waiting = [node for node in self._nodes() if node.pending]
        outcomes = [node.outcomes(rng) for node in waiting]
        if prod(map(len, outcomes)) <= most:
            chosen = list(product(*outcomes))
        else:
            ends = [tuple(one[0] for one in outcomes), tuple(node_now(one) for one in waiting)]
            drawn = [tuple(one[rng.integers(len(one))] for one in outcomes) for _ in range(most)]
            chosen = ends + drawn
        for choice in chosen:
            yield _tree(self.top, dict(zip(map(id, waiting), choice, strict=True)))

    def unsynced(self) -> "dict[File | Folder, int]":
        """What is in memory only, and how often it has been flushed before."""
        return {node: node.flushes for node in self._nodes() if node.pending}

    def _begin(self) -> None:
        if self.operations == self.dies_at:
            raise Killed
        self.operations += 1

    def _node(self, path: Path) -> File | Folder:
        node: File | Folder = self.top
        if path == self.root.parent:  # what lies there is durable
            return Folder()
        for name in path.relative_to(self.root).parts:
            assert isinstance(node, Folder)
            node = node.now[name]
        return node

    def _folder(self, path: Path) -> Folder:
        node = self._node(path.parent)
        assert isinstance(node, Folder)
        return node

    def _nodes(self) -> list[File | Folder]:
        """All that can be reached, on disk or in memory."""
        found: dict[int, File | Folder] = {}
        waiting: list[File | Folder] = [self.top]
        while waiting:
            node = waiting.pop()
            if id(node) not in found:
                found[id(node)] = node
                if isinstance(node, Folder):
                    versions = [node.synced, node.now, *node.changes]
                    waiting += [one for names in versions for one in names.values() if one]
        return list(found.values())


def node_now(node: File | Folder) -> "bytes | dict[str, File | Folder]":
    return node.versions[-1] if isinstance(node, File) else node.now


def _tree(top: Folder, chosen: "dict[int, bytes | dict[str, File | Folder]]") -> Tree:
    found: Tree = {}

    def walk(folder: Folder, prefix: str) -> None:
        names = chosen.get(id(folder), folder.now)
        assert isinstance(names, dict)
        for name, node in names.items():
            if isinstance(node, Folder):
                found[prefix + name] = None
                walk(node, f"{prefix}{name}/")
            else:
                data = chosen.get(id(node), node.versions[-1])
                assert isinstance(data, bytes)
                found[prefix + name] = data

    walk(top, "")
    return found


def lay_out(tree: Tree, root: Path) -> None:
    """Make an empty folder what a disk holds."""
    for name, data in tree.items():  # a folder comes before what it holds
        if data is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(data)


@contextmanager
def in_place_of_the_disk(disk: fsio.Disk) -> Iterator[None]:
    before, fsio.disk = fsio.disk, disk
    try:
        yield
    finally:
        fsio.disk = before


class Unsafe(fsio.Disk):
    """A real disk without real fsyncs: for tests that do not lose power, in less time."""

    def fsync(self, fd: int) -> None:
        pass
