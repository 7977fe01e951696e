"""What a driver has started on its machine ends with it, however it ends.

The parts of Ray watch each other, but its agents outlive a driver that was killed by a minute. So a
small process of ours holds the other end of a pipe: it closes when the driver is dead.
"""

import os
import select
import subprocess
import sys
import uuid
from collections.abc import Iterable

import psutil

LOOK_S = 2.0
"""Between two looks at who descends from the driver: orphans can no longer be found by it."""
MARK = "RLHF_RAY_FAMILY"
"""In the environment of all that a driver starts: by it those are found that came after the last
look. Not for good, since processes may write their titles over their environments."""


def descendants(pid: int) -> set[psutil.Process]:
    """All processes below this one."""
    try:
        return set(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


def end(processes: Iterable[psutil.Process]) -> None:
    """SIGKILL to those that still are who they were: numbers are used again."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def marked(name: str) -> set[psutil.Process]:
    """All processes of ours with this mark."""
    found = set()
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == name:
                found.add(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it has ended meanwhile, or is another user's
    return found


def watched() -> subprocess.Popen[bytes]:
    """Start who ends all that this process starts from now on, when it dies. Keep what is returned.

    The environment has a mark from now on.
    """
    os.environ[MARK] = name = uuid.uuid4().hex
    return subprocess.Popen(
        [sys.executable, "-m", "actors.family", str(os.getpid()), name],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,  # a signal to the driver's group is not for it
    )  # fmt: skip


def _watch(driver: int, name: str) -> None:
    known: set[psutil.Process] = set()
    while True:
        dead, _, _ = select.select([sys.stdin], [], [], LOOK_S)
        if dead:
            break
        known = {one for one in known | descendants(driver) if one.is_running()}
    known |= marked(name)
    # What has lost its mark since the last look descends from what was known then.
    born = {child for one in known for child in descendants(one.pid)}
    end((known | born) - {psutil.Process()})


if __name__ == "__main__":
    _watch(int(sys.argv[1]), sys.argv[2])
