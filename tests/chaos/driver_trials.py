"""What is done to drivers: killed, stopped, and doubled."""

import os
import signal
import time
from pathlib import Path

from bench import (
    RUN_S,
    Bench,
    Check,
    Process,
    draws,
    family_of,
    gone,
    journal_bytes,
    stop_whole_group,
    tail,
    wait_for,
)

KILLED = "R1 driver killed at a random moment: the same command ends alike"
GONE = "R13 no process of ours 30 s after a kill or a stop"
STOPPED = "R14 SIGTERM at a random moment: exit 75 within 2.5 s"
KEPT = "R14 what was on disk before SIGTERM is there after it"
STOPPED_ALIKE = "R14 stopped, the same command ends alike"
REFUSED = "R15 a second driver is refused, and told why"
EVICTED = "R15 --takeover ends the first, which says who took over"
ONE_WRITER = "R15 two drivers were started: one wrote, and it ends alike"

GONE_EARLY = "R13 no process of ours 30 s after a kill while Ray was starting"
START_S = 10.0
"""Ray takes about so long to start, with all imports before it."""
STOP_S = 2.5
REFUSED_CODE, STOPPED_CODE = 78, 75
ELSEWHERE = ("unshare", "--uts", "sh", "-c", 'hostname elsewhere && exec "$@"', "sh")
"""Before a command: it runs under another host name, which only root may give it."""


def kill_driver(bench: Bench, seed: int, run: Path) -> list[Check]:
    """Some kills, each at any moment between the first import and the end of a run.

    Every fourth trial makes its own models, so that it may die among them.
    """
    rng, checks, fresh = draws(seed, "kill"), list[Check](), seed % 4 == 0
    _, whole = bench.straight(fresh=fresh)
    for _ in range(bench.blows):
        moment, group = rng.uniform(0.0, whole), rng.random() < 0.5
        with bench.driver(run, fresh=fresh) as driver:
            if not wait_for(driver, moment):
                assert driver.returncode == 0, tail(run)
                break  # it was faster this time
            family = family_of(driver)
            stop_whole_group(driver) if group else driver.kill()
            driver.wait(timeout=60)
        checks.append(gone(run, family, GONE))
    if not checks:
        return []
    bench.finish(run, fresh=fresh)
    return [*checks, bench.same_end(run, KILLED, times=len(checks))]


def kill_starting(bench: Bench, seed: int, run: Path) -> list[Check]:
    """Some kills, each while Ray starts: parts of it outlive it by a minute if nobody ends them."""
    rng, checks = draws(seed, "start"), list[Check]()
    for _ in range(bench.blows):
        with bench.driver(run) as driver:
            assert wait_for(driver, rng.uniform(1.0, START_S)), tail(run)
            family = family_of(driver)
            driver.kill()
            driver.wait(timeout=60)
        checks.append(gone(run, family, GONE_EARLY))
    return checks


def stop_driver(bench: Bench, seed: int, run: Path) -> list[Check]:
    """SIGTERM some times, each at any moment; Ray allows three seconds for it by default."""
    rng, checks = draws(seed, "stop"), list[Check]()
    _, whole = bench.straight()
    for _ in range(bench.blows):
        with bench.driver(run) as driver:
            if not wait_for(driver, moment := rng.uniform(0.0, whole)):
                assert driver.returncode == 0, tail(run)
                break
            checks += stopped(driver, run, moment)
    if not checks:
        return []
    bench.finish(run)
    return [*checks, bench.same_end(run, STOPPED_ALIKE, times=len(checks) // 3)]


def stopped(driver: Process, run: Path, moment: float) -> list[Check]:
    """Ask a driver to stop: its code, in time, nothing lost, nobody left."""
    before, family = journal_bytes(run), family_of(driver)
    began = time.monotonic()
    driver.send_signal(signal.SIGTERM)
    wait_for(driver, 60.0)
    seconds, code = time.monotonic() - began, driver.poll()
    # Asked in its last moment, it has ended well.
    ends = (STOPPED_CODE, 0) if (run / "summary.json").is_file() else (STOPPED_CODE,)
    says = f"code {code} after {seconds:.1f} s, asked at {moment:.1f} s"
    after = journal_bytes(run)
    lost = [name for name, told in before.items() if not after.get(name, b"").startswith(told)]
    return [
        Check(STOPPED, code in ends and seconds <= STOP_S, says, seconds),
        Check(KEPT, not lost, ", ".join(lost)),
        gone(run, family, GONE),
    ]


def double_driver(bench: Bench, seed: int, run: Path) -> list[Check]:
    """A second driver beside a living one, beside one that is stopped, or at the same instant."""
    rng = draws(seed, "double")
    _, whole = bench.straight()
    how = ("alive", "suspended", "together")[seed % 3]
    with bench.driver(run) as first:
        if how == "together":
            wait_for(first, rng.uniform(0.0, 0.2))
        elif not begun(first, run, rng.uniform(0.0, whole)):
            return []
        checks = beside(bench, first, run, how)
        assert first.wait(timeout=RUN_S) in (0, REFUSED_CODE), tail(run)
    return [*checks, bench.same_end(run, ONE_WRITER)]


def begun(driver: Process, run: Path, more: float) -> bool:
    """Wait until a driver holds its folder, and `more` seconds; whether it still runs."""
    ends = time.monotonic() + RUN_S
    while not (run / "config.resolved.yaml").is_file():
        assert driver.poll() is None, tail(run)
        assert time.monotonic() < ends, "no folder was begun"
        time.sleep(0.01)
    return wait_for(driver, more)


def beside(bench: Bench, first: Process, run: Path, how: str) -> list[Check]:
    """Start a second one; which of the two is refused is theirs to find out."""
    if how == "suspended":
        os.kill(first.pid, signal.SIGSTOP)
    try:
        with bench.driver(run) as second:
            ends = time.monotonic() + RUN_S
            while second.poll() is None and first.poll() is None:
                assert time.monotonic() < ends, "neither ended"
                time.sleep(0.05)
            if first.poll() == REFUSED_CODE:
                second.wait(timeout=RUN_S)
                codes = second.returncode, first.returncode
            else:
                codes = first.poll() or 0, second.wait(timeout=RUN_S)
    finally:
        if how == "suspended":
            os.kill(first.pid, signal.SIGCONT)
    told = "another driver is running" in tail(run, 200)
    return [Check(REFUSED, codes == (0, REFUSED_CODE) and told, f"{how}: codes {codes}")]


def take_over(bench: Bench, seed: int, run: Path) -> list[Check]:
    """A second driver takes the run from one that lives, one that is suspended, or one that, as far
    as the two can tell, lives on another host: it is not killed, and has to find out itself."""
    rng = draws(seed, "takeover")
    _, whole = bench.straight()
    how = ("alive", "suspended", "elsewhere")[seed % 3]
    with bench.driver(run, within=ELSEWHERE if how == "elsewhere" else ()) as first:
        # Not at its very end: the second would find a finished run.
        if not begun(first, run, rng.uniform(0.0, 0.6 * whole)):
            return []
        if how == "suspended":
            os.kill(first.pid, signal.SIGSTOP)
        with bench.driver(run, more=["--takeover"]) as second:
            code = second.wait(timeout=RUN_S)
        assert code == 0, tail(run)
        wait_for(first, 60.0)
        told = f"{second.pid}" in tail(run, 400)
        expected = STOPPED_CODE if how == "elsewhere" else -signal.SIGKILL
        ok = first.returncode == expected and (how != "elsewhere" or told)
    return [
        Check(EVICTED, ok, f"{how}: code {first.returncode}"),
        bench.same_end(run, ONE_WRITER),
    ]
