"""Drivers of runs behind URLs, and what they work in."""

from pathlib import Path
from typing import Any

from rlhf_ray.durable.head import Head
from rlhf_ray.durable.mirror import Mirror, Say
from rlhf_ray.durable.objects import Objects
from rlhf_ray.durable.pull import tree


def silent(text: str) -> None:
    raise AssertionError(f"nothing was to be said, but: {text}")


def content(folder: Path) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in tree(folder).items()}


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def begin(url: str, folder: Path, *, takeover: bool = True, say: Say = silent) -> Mirror:
    """A driver that never lets go, and that gives no sign of life any more."""
    made = Mirror(Objects(url, say), folder, say)
    made.take(takeover=takeover)
    made.close()
    return made


def head_of(driver: Mirror) -> Head:
    assert driver.head is not None
    return driver.head


class Away:
    """A store that is away for some requests."""

    def __init__(self, inner: Any, calls: int, error: Exception) -> None:
        self.inner, self.calls, self.error = inner, calls, error

    def __getattr__(self, name: str) -> Any:
        def call(*asked: Any, **options: Any) -> Any:
            self.calls -= 1
            if self.calls >= 0:
                raise self.error
            return getattr(self.inner, name)(*asked, **options)

        return call
