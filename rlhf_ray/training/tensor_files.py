"""Named tensors in safetensors files of bounded size, which all ranks write in turn.

    learner.json               what the files hold, and whatever else the writer says
    learner-00000.safetensors  whole tensors; which rank wrote them does not show

No rank holds more than one file's tensors, or one tensor that is larger than a file should be.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_ray.durable.fsio import atomic_write, read_bytes
from rlhf_ray.errors import BadData, StorageFailed

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
FILE_BYTES = 256 << 20
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Whole:
    """A tensor that may be spread over the ranks."""

    name: str
    shape: Shape
    gather: "Callable[[int], Tensor | None]"
    """The tensor, on the CPU of the rank it is asked for; a collective."""


def write(
    folder: Path, stem: str, tensors: Sequence[Whole], told: Mapping[str, Any], *,
    file_bytes: int = FILE_BYTES,
) -> None:  # fmt: skip
    """Write `stem`.json and its files into a folder that all ranks see; a collective.

    Raises StorageFailed on every rank when one of them cannot write.
    """
    from safetensors.torch import save

    rank, world = _place()
    files: dict[str, list[str]] = {}
    for number, group in enumerate(_groups(tensors, file_bytes)):
        name, owner = f"{stem}-{number:05d}.safetensors", number % world
        files[name] = [one.name for one in group]
        found = {one.name: one.gather(owner) for one in group}
        held = {key: value.contiguous() for key, value in found.items() if value is not None}
        _together(lambda: atomic_write(folder / name, save(held)), rank == owner)  # noqa: B023
    body = {**told, "format": FORMAT, "files": files}
    text = json.dumps(body, indent=1, sort_keys=True, allow_nan=False)
    _together(lambda: atomic_write(folder / f"{stem}.json", text.encode() + b"\n"), rank == 0)


def read_index(folder: Path, stem: str) -> dict[str, Any]:
    """What `stem`.json tells. Raises BadData where it is missing, damaged, or of another format."""
    path = folder / f"{stem}.json"
    if not path.is_file():
        if any(folder.glob("*/*_states.pt")):
            raise BadData(
                f"{folder} was written by an earlier version of rlhf_ray, as DeepSpeed's pickles, "
                "which this version does not load; finish with the version that wrote it, or "
                "start over with another --run-dir"
            )
        raise BadData(f"{path} is missing; restore the folder from a copy")
    try:
        found: dict[str, Any] = json.loads(read_bytes(path))
        version, files = found["format"], found["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadData(f"{path} is damaged ({error!r}); restore it from a copy") from error
    if version != FORMAT or not isinstance(files, dict):
        raise BadData(
            f"{path} has format {version}, this version of rlhf_ray reads {FORMAT}; go on with "
            "the version that wrote it"
        )
    return found


class Files:
    """Open files of one `write`; a tensor is read when it is asked for."""

    def __init__(self, folder: Path, stem: str, stack: ExitStack) -> None:
        from safetensors import SafetensorError, safe_open

        self.index = folder / f"{stem}.json"
        self.told = read_index(folder, stem)
        self._places: dict[str, tuple[Path, Any]] = {}
        for file, names in self.told["files"].items():
            path = folder / file
            try:
                opened = stack.enter_context(safe_open(path, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise BadData(f"{path} cannot be read ({error}); restore it from a copy") from error
            if odd := set(opened.keys()) ^ set(names):
                raise BadData(
                    f"{path} and {self.index.name} differ about tensor '{min(odd)}'; restore the "
                    "folder from a copy"
                )
            self._places |= dict.fromkeys(names, (path, opened))

    def check(self, expected: Mapping[str, Shape]) -> None:
        """Raises BadData, naming file and tensor, unless these are the tensors and shapes."""
        for name in expected:
            if name not in self._places:
                raise BadData(
                    f"{self.index} has no tensor '{name}', which the model has; resume with the "
                    "model it was written for"
                )
        for name, (path, opened) in self._places.items():
            if name not in expected:
                raise BadData(
                    f"{path} holds tensor '{name}', which the model does not have; resume with "
                    "the model it was written for"
                )
            shape = tuple(opened.get_slice(name).get_shape())
            if shape != expected[name]:
                raise BadData(
                    f"{path}: tensor '{name}' has shape {shape}, {expected[name]} in the model; "
                    "resume with the model it was written for"
                )

    def tensor(self, name: str) -> "Tensor":
        """On the CPU; its bytes are read from the file where they are used."""
        found: Tensor = self._places[name][1].get_tensor(name)
        return found


@contextmanager
def opened(folder: Path, stem: str) -> Iterator[Files]:
    """The files of one `write`. Raises BadData where one is missing or damaged."""
    with ExitStack() as stack:
        yield Files(folder, stem, stack)


def _groups(tensors: Sequence[Whole], limit: int) -> Iterator[list[Whole]]:
    """One list per file, in order; the same whatever the number of ranks."""
    group: list[Whole] = []
    size = 0
    for one in tensors:
        more = 4 * prod(one.shape)
        if group and size + more > limit:
            yield group
            group, size = [], 0
        group.append(one)
        size += more
    if group:
        yield group


def _together(act: Callable[[], None], mine: bool) -> None:
    """Do it on one rank; when it fails there, it fails on all of them instead of hanging."""
    failed: StorageFailed | None = None
    if mine:
        try:
            act()
        except StorageFailed as error:
            failed = error
    _, world = _place()
    told = [str(failed) if failed else None] * world
    if world > 1:
        import torch.distributed as dist

        dist.all_gather_object(told, told[0])
    if why := [one for one in told if one]:
        raise StorageFailed(why[0]) from failed


def _place() -> tuple[int, int]:
    """Rank and number of ranks of this process."""
    import torch.distributed as dist

    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
