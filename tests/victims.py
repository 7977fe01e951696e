"""Processes of a run by what they do now: Ray names a worker after its running method."""

import os
import signal
import time

import psutil

POLL_S = 0.002


def workers(driver: int) -> dict[int, str]:
    """Pid -> title (`RolloutActor.generate`, `JudgeActor` while idle) of a driver's Ray workers."""
    found = {}
    for process in descendants(driver):
        try:
            title = process.cmdline()[0]
        except (psutil.NoSuchProcess, psutil.ZombieProcess, IndexError):
            continue
        if title.startswith("ray::"):
            found[process.pid] = title.removeprefix("ray::").strip()
    return found


def descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def strike(driver: int, phase: str, *, timeout_s: float, kind: int = signal.SIGKILL) -> int:
    """Wait until a worker of the driver has this title, or, for `after ...`, has it no more and
    hands its result over; send it a signal then, and return its pid. Raises psutil.NoSuchProcess
    when the driver ends before.

    Listing all processes takes longer than some phases last: titles are read by pid between two
    lists.
    """
    title, seen = phase.removeprefix("after "), set[int]()
    ends = time.monotonic() + timeout_s
    while time.monotonic() < ends:
        if not psutil.pid_exists(driver) or psutil.Process(driver).status() == "zombie":
            raise psutil.NoSuchProcess(driver)
        known = list(workers(driver))
        again = time.monotonic() + 1.0
        while time.monotonic() < again:
            for pid in known:
                now = _title(pid)
                if now == title:
                    seen.add(pid)
                if now == phase or (now not in ("", title) and pid in seen):
                    os.kill(pid, kind)
                    return pid
            time.sleep(POLL_S)
    raise AssertionError(f"no worker of {driver} was seen as {title}: {workers(driver)}")


def _title(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().split(b"\0")[0].decode().removeprefix("ray::").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""
