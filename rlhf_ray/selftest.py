"""Does a run that is killed and resumed come to the same end? A recipe, run twice, to see.

Once straight, once with `kill -9` at moments that the journal names. Both runs make all of their
models themselves. Every process started here has a deadline, and is ended by its number.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rlhf_ray.errors import BadData, RlhfRayError
from rlhf_ray.keys import generator
from rlhf_ray.same_end import Compared, compare

Say = Callable[[str], None]
Moment = tuple[str, str]
"""Kind and key of a record of the journal: the driver dies as soon as it is written."""

LOOK_S = 0.002
"""Between two looks at the journal: shorter than it takes to write two records."""
END_S = 60.0
"""A process that was killed is gone after this."""
TAIL = 15
"""Lines of a log that are shown when a run fails."""


class RunFailed(RlhfRayError):
    """One of the two runs ended where it should not."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run, and where: `folder` holds both runs, their logs and their models."""

    config: Path
    overrides: tuple[str, ...]
    folder: Path
    kills: int
    seed: int
    deadline_s: float
    """Of each attempt of a run."""

    def command(self, name: str) -> list[str]:
        """The very command a person would give, first and again."""
        told = ["run", "-c", str(self.config), "--run-dir", str(self.folder / name)]
        return [sys.executable, "-m", "rlhf_ray", *told, *self.overrides]


def resume(plan: Plan, say: Say) -> list[Compared]:
    """Run, kill and resume; what both runs came to.

    Raises:
        BadData: `folder` holds something already.
        RunFailed: a run did not end as it should, or none of the kills met a living driver.
    """
    if plan.folder.exists() and any(plan.folder.iterdir()):
        raise BadData(f"{plan.folder} is not empty; name another with --dir")
    plan.folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with driver(plan, "straight") as straight:
        finish(plan, straight, "straight")
    say(f"straight: finished in {time.monotonic() - began:.0f} s")
    landed = 0
    for moment in moments(records(plan.folder / "straight"), plan.kills, plan.seed):
        with driver(plan, "killed") as victim:
            seen = await_record(plan, victim, moment)
            kill(victim)
        landed += seen is not None
        say(f"killed: after record {' '.join(seen)}" if seen else "killed: had already finished")
    if not landed:
        raise RunFailed("the driver was never alive when it was to be killed: nothing was shown")
    with driver(plan, "killed") as resumed:
        finish(plan, resumed, "killed")
    say("killed: resumed and finished")
    return compare(plan.folder / "straight", plan.folder / "killed")


def moments(told: Sequence[Moment], kills: int, seed: int) -> list[Moment]:
    """Some of the records, drawn by the seed, in their order; fewer than `kills` if there are."""
    rng = generator(seed, "selftest", "moments")
    count = min(kills, len(told))
    drawn = sorted(rng.choice(len(told), size=count, replace=False).tolist())
    return [told[place] for place in drawn]


def records(run: Path, since: int = 0) -> list[Moment]:
    """Kind and key of every whole line of a journal, in order; `since`: from this segment on.

    Read beside a driver that writes: a last line without an end does not count.
    """
    found: list[Moment] = []
    for path in sorted((run / "journal").glob("*.jsonl"))[since:]:
        for line in path.read_bytes().split(b"\n")[:-1]:
            record = json.loads(line)
            found.append((record["kind"], record["key"]))
    return found


@contextmanager
def driver(plan: Plan, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """A driver with a process group of its own, which ends with this block at the latest."""
    environment = os.environ | {"RLHF_RAY_CACHE": str(plan.folder / f"{name}-models")}
    with (plan.folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            plan.command(name), stdout=log, stderr=log, env=environment, start_new_session=True
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a driver and its process group; nobody gets to say good-bye."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=END_S)


def finish(plan: Plan, process: subprocess.Popen[bytes], name: str) -> None:
    """Wait for the end of a run. Raises RunFailed unless it is a good one."""
    log = plan.folder / f"{name}.log"
    try:
        code = process.wait(timeout=plan.deadline_s)
    except subprocess.TimeoutExpired as error:
        raise RunFailed(f"not finished after {plan.deadline_s:g} s; see {log}") from error
    if code:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-TAIL:])
        raise RunFailed(f"the {name} run ended with {code}:\n{last}\nall of it: {log}")


def await_record(plan: Plan, process: subprocess.Popen[bytes], moment: Moment) -> Moment | None:
    """The record after which to kill, as soon as this attempt has written it; None: it finished.

    A wave since the last checkpoint is done again, so the record may be there from before: then
    the first that this attempt writes will do. Raises RunFailed after the deadline, or where the
    driver fails by itself.
    """
    run, ends = plan.folder / "killed", time.monotonic() + plan.deadline_s
    before = len(list((run / "journal").glob("*.jsonl")))
    known = moment in records(run)
    while process.poll() is None:
        written = records(run, since=before)
        if written and (known or moment in written):
            return written[-1] if known else moment
        if time.monotonic() > ends:
            raise RunFailed(f"no record {' '.join(moment)} after {plan.deadline_s:g} s in {run}")
        time.sleep(LOOK_S)
    finish(plan, process, "killed")
    return None


def render(compared: Sequence[Compared]) -> str:
    """A table for people, with the number of what differs below it."""
    width = max(len(one.what) for one in compared)
    lines = [f"{'what':<{width}}  {'straight':<12}  {'killed':<12}  equal"]
    for one in compared:
        shas = "  ".join(sha[:12] for sha in one.shas)
        lines.append(f"{one.what:<{width}}  {shas}  {'yes' if one.equal else 'NO'}")
        lines += [f"{'':<{width}}  {name}" for name in one.differs[:5]]
    return "\n".join([*lines, f"difference: {sum(len(one.differs) for one in compared)}"])
