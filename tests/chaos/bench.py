"""Where trials run: one unbroken run that all of them are measured by, and processes that carry a
mark, so that whatever a driver leaves behind is found and ended."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from rlhf_ray.same_end import compare
from rlhf_ray.verify import verify

ROOT = Path(__file__).parents[2]
MARK = "RLHF_RAY_CHAOS"
RUN_S = 900.0
"""No attempt takes longer on a busy machine."""
GONE_S = 30.0
"""A driver that is dead leaves no process of ours after this."""

Process = subprocess.Popen[bytes]


@dataclass(frozen=True)
class Check:
    """One promise, tried once."""

    promise: str
    ok: bool
    says: str = ""
    seconds: float | None = None
    """How long it took, where the promise names a time."""
    times: int = 1
    """How many trials it stands for: one end may follow several kills."""


@dataclass(frozen=True)
class Bench:
    """A folder for trials of one state of the code, and the recipe they run."""

    folder: Path
    recipe: Path
    overrides: tuple[str, ...] = ()
    blows: int = 3
    """Per trial: what comes after the last costs as much as one more."""

    def start(
        self,
        run: Path,
        *,
        fresh: bool = False,
        more: Sequence[str] = (),
        within: Sequence[str] = (),
    ) -> Process:
        """The command a person would give; `fresh`: with models of its own to make first.

        `more`: options; `within`: a command that this one is an argument of.
        """
        words = ["run", "-c", str(self.recipe), "--run-dir", str(run), *self.overrides, *more]
        models = run.with_name(f"{run.name}-models") if fresh else self.folder / "models"
        # Without SPT_NOENV, Ray's workers write their titles over the mark.
        mark = {MARK: str(run), "SPT_NOENV": "1", "RLHF_RAY_CACHE": str(models)}
        with log_of(run).open("ab") as log:
            return subprocess.Popen(
                [*within, sys.executable, "-m", "rlhf_ray", *words],
                cwd=ROOT, stdout=log, stderr=log, env=os.environ | mark, start_new_session=True,
            )  # fmt: skip

    @contextmanager
    def driver(self, run: Path, **how: Any) -> Iterator[Process]:
        """A driver that has ended when this block has; see `start`."""
        process = self.start(run, **how)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(timeout=60)

    def straight(self, *, fresh: bool = False) -> tuple[Path, float]:
        """The unbroken run, and its seconds, from the first import on.

        Both are made once; `fresh`: the seconds where no models had been made before.
        """
        run, told = self.folder / "straight", self.folder / "straight.json"
        if not told.is_file():
            took = {}
            for name in ("first", "straight"):  # the first makes the models
                began = time.monotonic()
                self.finish(self.folder / name)
                took[name] = time.monotonic() - began
            told.write_text(json.dumps(took))
        return run, float(json.loads(told.read_text())["first" if fresh else "straight"])

    def finish(self, run: Path, *, fresh: bool = False) -> None:
        """Start or resume, and wait for a good end."""
        with self.driver(run, fresh=fresh) as driver:
            code = driver.wait(timeout=RUN_S)
        assert code == 0, f"ended with {code}:\n{tail(run)}"

    def same_end(self, run: Path, promise: str, *, times: int = 1) -> Check:
        """Whether a finished run is whole and came to what the unbroken one came to, after it was
        broken so many times."""
        damaged = [f"{one.name}: {one.says}" for one in verify(run) if not one.ok]
        found = compare(self.straight()[0], run)
        differs = [f"{one.what}: {', '.join(one.differs[:3])}" for one in found if not one.equal]
        return Check(promise, not damaged + differs, "; ".join(damaged + differs), times=times)


def log_of(run: Path) -> Path:
    return run.with_name(f"{run.name}.log")


def tail(run: Path, lines: int = 15) -> str:
    return "\n".join(log_of(run).read_text(errors="replace").splitlines()[-lines:])


def journal_bytes(run: Path) -> dict[str, bytes]:
    """Segments as they stand; a line that is being written may be half there."""
    return {path.name: path.read_bytes() for path in sorted((run / "journal").glob("*.jsonl"))}


def wait_for(process: Process, seconds: float) -> bool:
    """Let a driver go on; whether it still does after that."""
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def marked(run: Path) -> list[psutil.Process]:
    """All living processes that a driver of this run has started, and itself."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(run) and process.status() != "zombie":
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it has ended meanwhile, or is another user's
    return found


def gone(run: Path, family: Sequence[psutil.Process], promise: str) -> Check:
    """Whether all that a dead driver has started ends by itself; what does not is ended here.

    `family`: its descendants while it lived, in case one has lost its mark.
    """
    began = time.monotonic()
    while left := {*marked(run), *(one for one in family if _lives(one))}:
        if time.monotonic() - began > GONE_S:
            break
        time.sleep(0.1)
    seconds = time.monotonic() - began
    names = [_end(one) for one in left]
    return Check(promise, not left, f"left: {', '.join(names)}" if names else "", seconds)


def family_of(process: Process) -> list[psutil.Process]:
    """Everything that descends from a living process."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != "zombie"


def _end(process: psutil.Process) -> str:
    try:
        told = f"{process.pid} {process.name()}"
        process.kill()  # psutil asks first whether this number is still the same process
    except psutil.NoSuchProcess:
        return f"{process.pid} (ended just now)"
    return told


def stop_whole_group(process: Process) -> None:
    """SIGKILL to a driver and what is in its process group."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=60)


def draws(seed: int, kind: str) -> Any:
    """Random numbers of one trial."""
    from rlhf_ray.keys import generator

    return generator(seed, "chaos", kind)
