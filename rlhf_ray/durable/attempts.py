"""Who may write in a run folder, where a lock cannot tell?

A lock ends with its process, but not every shared disk knows the locks of other hosts, and a
driver that hangs keeps its own. So each attempt makes `attempts/000007.json`, which only one can,
and looks for a newer one before it writes: one that finds it has been taken over, and ends.
"""

import json
import os
import re
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_ray.durable import fsio
from rlhf_ray.errors import STOPPED, RecipeError, RlhfRayError

GONE_S = 30.0
"""A process that was killed has ended after this."""
_NAME = re.compile(r"([0-9]{6,})\.json")


class TakenOver(RlhfRayError):
    """Another driver goes on with this run; whoever started it need not start it again."""

    exit_code = STOPPED


@dataclass(frozen=True, slots=True)
class Owner:
    """A process, told apart from any other that has had its number."""

    host: str
    pid: int
    born: str
    """Start of the machine and of the process; empty where /proc does not tell."""

    @classmethod
    def here(cls) -> "Owner":
        return cls(socket.gethostname(), os.getpid(), _born(os.getpid()))

    def lives_here(self) -> bool:
        """Whether it is a process of this host that has not ended."""
        known = bool(self.born) and self.host == socket.gethostname()
        return known and _born(self.pid) == self.born

    def ended_here(self) -> bool:
        """Whether it surely was a process of this host, and has ended. A name proves nothing:
        containers share it with others, and machines have it in turn."""
        place, _, began = self.born.rpartition(" ")
        return bool(began) and place == _place() and _born(self.pid) != self.born

    def end(self) -> None:
        """Kill it where it is another process of this host, and wait until it is gone.

        Raises RecipeError where it cannot be killed.
        """
        ends = time.monotonic() + GONE_S
        while self.lives_here() and self.pid != os.getpid():
            try:
                os.kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                return
            except PermissionError as error:
                raise RecipeError(
                    f"{self} belongs to another user and cannot be ended; ask them to end it"
                ) from error
            if time.monotonic() > ends:
                raise RecipeError(f"{self} was killed and does not end; see what holds it")
            time.sleep(0.05)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Attempt:
    """One driver's turn in a run folder; the newest is the only one that may write."""

    def __init__(self, run: Path, *, waits: bool = False) -> None:
        """Begin an attempt: from now on all earlier ones are over, whether they know or not.

        `waits`: it only makes way for the next one, of the same process.

        Raises StorageFailed where another has begun one at the same moment.
        """
        folder = run / "attempts"
        fsio.make_dir(folder)
        self.number = newest(run) + 1
        self.path = _path(run, self.number)
        file = fsio.LineFile(self.path)
        owner = Owner.here()
        told = {"host": owner.host, "pid": owner.pid, "born": owner.born, "waits": waits}
        self._line = json.dumps(told).encode() + b"\n"
        file.append(self._line)
        file.close()

    def check(self) -> None:
        """Raises TakenOver once there is a newer attempt, or this one has lost its file: where
        `attempts/` was deleted, the next driver has its number again."""
        run = self.path.parent.parent
        if (last := newest(run)) > self.number:
            raise TakenOver(
                f"attempt {last} ({owner_of(run) or 'a driver that did not say who it is'}) "
                f"has taken over {run}; this was attempt {self.number}, and it writes no more"
            )
        if not self.path.is_file() or fsio.read_bytes(self.path) != self._line:
            raise TakenOver(
                f"{self.path} is gone, or another driver's ({owner_of(run) or 'whose, is not said'}"
                f"): without it, {run} is not this driver's, and it writes no more; start it again "
                "where no other one is running, and leave attempts/ alone"
            )


def newest(run: Path) -> int:
    """Number of the newest attempt, 0 before the first."""
    return max(_numbers(run), default=0)


def begun(run: Path) -> int:
    """How many attempts there were, without those that only made way for the next one."""
    return sum(_told(run, number).get("waits") is not True for number in _numbers(run))


def owner_of(run: Path) -> Owner | None:
    """Who made the newest attempt; None where there is none, or it died before it could say."""
    told = _told(run, newest(run))
    return Owner(told["host"], told["pid"], told["born"]) if told else None


def made_way(run: Path) -> bool:
    """Whether this process has taken the run over, and has not begun its attempt yet."""
    return owner_of(run) == Owner.here() and _told(run, newest(run))["waits"] is True


def take_over(run: Path) -> Owner | None:
    """End the attempt that owns a run, so that another may begin; who it was, None for nobody.

    On this host its process is killed; elsewhere it finds out before it writes the next time.
    """
    before = owner_of(run)
    if not newest(run):
        return None
    Attempt(run, waits=True)
    if before is not None:
        before.end()
    return before


def _numbers(run: Path) -> list[int]:
    """Of all attempts; other files are not ours."""
    folder = run / "attempts"
    names = [path.name for path in fsio.entries(folder)] if folder.is_dir() else []
    return [int(match[1]) for name in names if (match := _NAME.fullmatch(name))]


def _told(run: Path, number: int) -> dict[str, Any]:
    """What an attempt says of itself; nothing for number 0."""
    try:
        told = json.loads(fsio.read_bytes(_path(run, number))) if number else {}
    except ValueError:
        return {}  # half written when its driver died; that it is there is what counts
    return (
        told if isinstance(told, dict) and {"host", "pid", "born", "waits"} <= told.keys() else {}
    )


def _path(run: Path, number: int) -> Path:
    return run / "attempts" / f"{number:06d}.json"


def _born(pid: int) -> str:
    """Start of the machine, and of the process in clock ticks since; "" for one that is gone."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    place = _place()
    return "" if state in "ZX" or not place else f"{place} {rest[18]}"


def _place() -> str:
    """This start of this machine, and the space its process numbers are of; "" where /proc does
    not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
