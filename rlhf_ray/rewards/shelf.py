"""The judges of one worker: loaded when they are asked, dropped when memory is short."""

import json
import math
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from rlhf_ray.errors import BadData


class Sized(Protocol):
    """Something that takes memory."""

    @property
    def size_bytes(self) -> int: ...


T = TypeVar("T", bound=Sized)


class Shelf(Generic[T]):
    """At most `limit_bytes` of judges, the one not used for longest dropped first.

    Room is made before a judge is loaded, so that it and those that leave are never held together.
    The one that is asked is always held, even alone above the limit: without it nothing works.
    """

    def __init__(self, limit_bytes: int | None) -> None:
        self.limit = limit_bytes
        self.makers: dict[str, Callable[[], T]] = {}
        self.sizes: dict[str, int] = {}
        """Bytes of each judge: as it was registered, or as it was when it was last loaded."""
        self.held: OrderedDict[str, T] = OrderedDict()
        self.loads = 0
        """How often a judge was loaded; more than once each means that memory is short."""

    def register(self, name: str, make: Callable[[], T], size_bytes: int) -> None:
        """Name a judge, how it is made when it is asked and not held, and how large it will be."""
        self.makers[name], self.sizes[name] = make, size_bytes

    def get(self, name: str) -> T:
        """The judge, loaded if it has to be."""
        if name not in self.held:
            self._make_room(self.sizes[name])
            judge = self.makers[name]()
            self.loads += 1
            self.sizes[name] = judge.size_bytes
            self._make_room(judge.size_bytes)
            self.held[name] = judge
        self.held.move_to_end(name)
        return self.held[name]

    def remove(self, name: str) -> None:
        """Forget a judge."""
        self._drop(name)
        del self.makers[name], self.sizes[name]

    def _make_room(self, wanted: int) -> None:
        if self.limit is None:
            return
        used = sum(judge.size_bytes for judge in self.held.values())
        while self.held and used + wanted > self.limit:
            name = next(iter(self.held))
            used -= self.held[name].size_bytes
            self._drop(name)

    def _drop(self, name: str) -> None:
        """Let go of a judge; engines and connections say goodbye."""
        judge = self.held.pop(name, None)
        if (close := getattr(judge, "close", None)) is not None:
            close()


def weights_bytes(path: str | None) -> int:
    """Bytes of a model folder's weights once they are held in fp32, from its files alone.

    Zero for judges without weights, and for hub names, whose size shows when they are loaded.
    Files other than safetensors count twice: they hold half precision as a rule. Raises BadData
    for a file that is damaged.
    """
    folder = Path(path) if path is not None else None
    if folder is None or not folder.is_dir():
        return 0
    if files := sorted(folder.glob("*.safetensors")):
        return sum(map(_fp32_bytes, files))
    return 2 * sum(file.stat().st_size for file in folder.glob("pytorch_model*.bin"))


def _fp32_bytes(file: Path) -> int:
    """A safetensors file begins with the length of its header, and that is JSON."""
    try:
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        shapes = [one["shape"] for name, one in header.items() if name != "__metadata__"]
    except (OSError, ValueError, OverflowError, KeyError, AttributeError) as error:
        raise BadData(f"{file} cannot be read: {error!r}; copy it again") from error
    return sum(4 * math.prod(shape) for shape in shapes)
