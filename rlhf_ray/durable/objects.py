"""Objects behind a URL: what can a run be kept in that is no disk? The sole importer of fsspec.

Only stores that can make an object *exclusively*, so that of two drivers one is refused, are used.
Every call ends by a deadline; whatever goes wrong is `StorageFailed`.
"""

import queue
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rlhf_ray.errors import RecipeError, StorageFailed

CALL_S = 60.0
"""Longest wait for an answer about one small object; requests are repeated meanwhile."""
BULK_S = 3600.0
"""Longest wait for all files of one push or pull."""
_EXCLUSIVE = {"s3": "s3fs", "gs": "gcsfs", "memory": "fsspec"}
"""Protocols that refuse to make what is there already, and the package that speaks them."""

T = TypeVar("T")


class Objects:
    """Everything below one URL, by keys relative to it."""

    def __init__(self, url: str) -> None:
        """Raises RecipeError for a URL that runs cannot be kept behind."""
        check_url(url)
        import fsspec

        try:
            # Listings are never remembered: another driver may have written since.
            options = {"use_listings_cache": False, "skip_instance_cache": True}
            self._fs, self._top = fsspec.core.url_to_fs(url, **options)
        except ImportError as error:
            package = _EXCLUSIVE[url.partition("://")[0]]
            raise RecipeError(f"'{url}' needs {package}: pip install {package}") from error
        self.url = url.rstrip("/")

    def check_exclusive(self) -> None:
        """Raises RecipeError where the store makes an object that is there already once more, as
        some do that otherwise speak the language of one that does not."""
        key = f"probes/{uuid.uuid4().hex}"
        refused = self.create(key, b"first") and not self.create(key, b"second")
        self.delete([key])
        if not refused:
            raise RecipeError(
                f"{self.url} does not refuse to create what is there already, so two drivers could "
                "write there at once; use a store with conditional writes, or a folder"
            )

    def create(self, key: str, data: bytes, *, timeout_s: float = CALL_S) -> bool:
        """Make an object that is not there; False where it is, with other content than `data`."""

        def make() -> bool:
            try:
                self._fs.pipe_file(self._at(key), data, mode="create")
            except Exception:
                # A request that was repeated may have met itself, and stores differ in what they
                # call an object that is there.
                found = self._found(key)
                if found is None:
                    raise
                return bool(found == data)
            return True

        return self._within(timeout_s, f"create {key} in", make)

    def read(self, key: str) -> bytes | None:
        """None where there is no such object."""
        return self._within(CALL_S, f"read {key} of", lambda: self._found(key))

    def write(self, pieces: Mapping[str, bytes]) -> None:
        """Make or replace objects."""
        content = {self._at(key): data for key, data in pieces.items()}
        if content:
            self._within(BULK_S, f"write {len(content)} objects to", lambda: self._fs.pipe(content))

    def upload(self, files: Mapping[str, Path]) -> None:
        """Make or replace objects from files."""
        local, remote = [str(path) for path in files.values()], [self._at(key) for key in files]
        if local:
            self._within(
                BULK_S, f"upload {len(local)} files to", lambda: self._fs.put(local, remote)
            )

    def download(self, files: Mapping[str, Path]) -> None:
        """Objects into files, whose folders are there."""
        local, remote = [str(path) for path in files.values()], [self._at(key) for key in files]
        if remote:
            self._within(
                BULK_S, f"download {len(local)} files of", lambda: self._fs.get(remote, local)
            )

    def names(self, folder: str) -> list[str]:
        """Keys of all objects below a folder, sorted."""
        found = self._within(CALL_S, f"list {folder} of", lambda: self._fs.find(self._at(folder)))
        return sorted(name.removeprefix(f"{self._top}/") for name in found)

    def delete(self, keys: Iterable[str]) -> None:
        gone = [self._at(key) for key in keys]
        if gone:
            self._within(BULK_S, f"delete {len(gone)} objects of", lambda: self._fs.rm(gone))

    def _at(self, key: str) -> str:
        return f"{self._top}/{key}"

    def _found(self, key: str) -> bytes | None:
        try:
            found: bytes = self._fs.cat_file(self._at(key))
        except FileNotFoundError:
            return None
        return found

    def _within(self, seconds: float, what: str, call: Callable[[], T]) -> T:
        """What `call` returns. It runs beside us: libraries of stores have no end of their own."""
        told: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

        def work() -> None:
            try:
                told.put((call(), None))
            except Exception as error:
                told.put((None, error))

        threading.Thread(target=work, daemon=True, name="objects").start()
        try:
            found, error = told.get(timeout=seconds)
        except queue.Empty:
            raise StorageFailed(
                f"cannot {what} {self.url}: no answer within {seconds:g} s; see whether it can be "
                "reached, then start the same command again"
            ) from None
        if error is not None:
            raise StorageFailed(
                f"cannot {what} {self.url}: {type(error).__name__}: {error}; see whether it is "
                "there and open to this user, then start the same command again"
            ) from error
        result: T = found
        return result


def check_url(url: str) -> None:
    """Raises RecipeError for a URL that runs cannot be kept behind."""
    protocol, _, place = url.partition("://")
    if protocol not in _EXCLUSIVE or not place.strip("/"):
        known = ", ".join(f"{one}://BUCKET/PATH" for one in _EXCLUSIVE if one != "memory")
        raise RecipeError(
            f"a run cannot be kept in '{url}', where two drivers might write at once; give "
            f"{known}, or a folder"
        )
