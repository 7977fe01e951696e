"""How do bytes reach the disk so that a power cut leaves the old or the new, never a mixture?

The only module that opens files for writing run state. Every `OSError` becomes `StorageFailed`.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf_ray.errors import StorageFailed

_REMEDIES = {
    errno.ENOSPC: "free some space there, then resume the run",
    errno.EDQUOT: "raise the quota or delete files, then resume the run",
    errno.EACCES: "give this user the right to read and write there, or choose another run folder",
    errno.EPERM: "give this user the right to read and write there, or choose another run folder",
    errno.EROFS: "mount it writable, or choose another run folder",
    errno.EEXIST: "end the other attempt that writes this run, or move away what is in the way",
    errno.ENOENT: "do not move or delete the run folder while it is in use",
}
_CHUNK = 1 << 20  # bytes hashed at a time


@contextmanager
def _explained(act: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "check the storage, then resume the run")
        reason = error.strerror or str(error)
        raise StorageFailed(f"cannot {act} {path}: {reason}; {remedy}") from error


def make_dir(path: Path) -> None:
    """Create a folder and those above it, durably; nothing happens where it exists."""
    if path.is_dir():
        return
    make_dir(path.parent)
    with _explained("create the folder", path):
        path.mkdir(exist_ok=True)
    fsync_dir(path.parent)


def read_bytes(path: Path) -> bytes:
    with _explained("read", path):
        return path.read_bytes()


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with _explained("read", path), path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def atomic_write(path: Path, data: bytes) -> None:
    """Put `data` at `path`: after any crash a reader sees the file before or the file after."""
    temporary = path.with_name(f".{path.name}.tmp")
    with _explained("write", path):
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    fsync_dir(path.parent)


class LineFile:
    """A file that is new, and grows by whole lines that are on disk when `append` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._in_doubt = False
        # Exclusive: a second attempt on the same run ends here instead of mixing its lines in.
        with _explained("create", path):
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
        fsync_dir(path.parent)

    def append(self, line: bytes) -> None:
        if self._in_doubt:
            raise StorageFailed(
                f"cannot append a line to {self.path}: an earlier append failed, so what its last "
                "line holds is unknown; end this run and resume it"
            )
        self._in_doubt = True
        with _explained("append a line to", self.path):
            while line:
                line = line[os.write(self._fd, line) :]
            os.fsync(self._fd)
        self._in_doubt = False

    def close(self) -> None:
        os.close(self._fd)


def truncate(path: Path, size: int) -> None:
    """Cut a file to its first `size` bytes, durably."""
    with _explained(f"cut to {size} bytes", path), path.open("r+b") as file:
        file.truncate(size)
        os.fsync(file.fileno())


def rename_dir(source: Path, target: Path) -> None:
    """Rename within one folder, durably; `target` must not exist or be empty."""
    with _explained(f"rename {source.name} to", target):
        source.rename(target)
    fsync_dir(target.parent)


def remove_dir(path: Path) -> None:
    """Delete a folder with all it holds."""
    with _explained("delete", path):
        shutil.rmtree(path)


def fsync_dir(path: Path) -> None:
    """Make the names in a folder durable: a rename is not until its folder is."""
    _fsync(path)


def fsync_tree(folder: Path) -> None:
    """Make every file and every name below a folder durable, whoever wrote them."""
    for path in [*folder.rglob("*"), folder]:
        _fsync(path)


def _fsync(path: Path) -> None:
    with _explained("flush to disk", path):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
