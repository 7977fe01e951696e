"""A run as a Ray job: one call starts it, follows it while it is alive, and resumes it afterwards.

Ray hands the entry point of a job to a shell and runs it once: our words are quoted for that shell,
and each attempt is a job of its own, NAME-a1, NAME-a2, ... A job server refuses an id it knows, so
two calls at once, or one whose answer was lost, make one job.
"""

import os
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rlhf_ray.config.load import PREFIX
from rlhf_ray.errors import STOPPED, ClusterUnavailable, RecipeError

STOP_WAIT_S = 120
"""Between SIGTERM and SIGKILL when a job is stopped; Ray's own 3 s may cut a checkpoint short."""
PATIENCE_S = 300.0
"""How long a job server may be away before nobody follows any longer."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 5.0
"""Between two looks at a job: short while it prints, longer while it is silent."""
TRIES = 5
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
LOST = ClusterUnavailable.exit_code
AGAIN = (69, 70, 74, STOPPED)
"""Exit codes after which the same command can help; so it can after a death by signal."""
# Text of models reaches the log: everything but lines and tabs that moves a cursor or a colour.
_CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


@dataclass(frozen=True, slots=True)
class Submission:
    """What is asked of a job server."""

    name: str
    run_dir: str
    entrypoint: str
    environment: Mapping[str, str]
    working_dir: Path


@dataclass(frozen=True, slots=True)
class Job:
    """What a job server says of a job."""

    id: str
    status: str
    entrypoint: str
    environment: Mapping[str, str]
    run_dir: str | None
    """None for jobs that are not ours."""
    exit_code: int | None
    message: str

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    def does(self, asked: Submission) -> bool:
        return (self.run_dir, self.entrypoint) == (asked.run_dir, asked.entrypoint) and (
            dict(self.environment) == dict(asked.environment)
        )


class Server(Protocol):
    """A job server; each call ends in time, and raises ClusterUnavailable where there is no answer.

    What cannot be at all, a refused token for example, is a RecipeError.
    """

    def jobs(self) -> list[Job]: ...
    def job(self, id: str) -> Job | None: ...
    def start(self, id: str, asked: Submission) -> None: ...
    def log(self, id: str) -> str: ...


def submission(
    name: str,
    config: Path,
    run_dir: str,
    working_dir: Path,
    overrides: Sequence[str],
    environ: Mapping[str, str],
) -> Submission:
    """The job that runs `config`, which travels with its folder `working_dir`.

    Raises RecipeError where it does not lie there.
    """
    root, recipe = (Path(os.path.abspath(path)) for path in (working_dir, config))
    if not root.is_dir():
        raise RecipeError(f"--working-dir {working_dir} is no folder; it is sent to the cluster")
    if not recipe.is_relative_to(root):
        raise RecipeError(
            f"{config} does not lie in {root}, which is what the cluster gets to see; move it there"
            " or name a folder around it with --working-dir"
        )
    # `=` and `--`: a word that begins with a dash is nobody's option on the other side either.
    words = [
        "python", "-m", "rlhf_ray", "run",
        f"--config={recipe.relative_to(root).as_posix()}", f"--run-dir={run_dir}",
        *(["--", *overrides] if overrides else []),
    ]  # fmt: skip
    return Submission(
        name=name,
        run_dir=run_dir,
        entrypoint=shlex.join(words),
        environment={key: environ[key] for key in sorted(environ) if key.startswith(PREFIX)}
        | {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
        working_dir=root,
    )


class Submitter:
    """Starts jobs and follows them; `say` is for people, `write` gets the log of the driver."""

    def __init__(
        self,
        server: Server,
        say: Callable[[str], None],
        write: Callable[[str], None],
        *,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.server = server
        self.say = say
        self.write = write
        self.patience_s = patience_s

    def start(self, asked: Submission) -> str:
        """The id of the job that does this run: one that is alive, else a new one."""
        for _ in range(TRIES):
            jobs = self.server.jobs()
            for job in jobs:
                if job.run_dir == asked.run_dir and not job.ended:
                    return self._joined(job, asked)
            id = f"{asked.name}-a{1 + _last_attempt(jobs, asked.name)}"
            try:
                self.server.start(id, asked)
            except ClusterUnavailable:
                # The answer may have been lost, or another call was faster: the list tells.
                found = self.server.job(id)
                if found is None:
                    raise
                if not found.does(asked):
                    continue
            self.say(f"started {id}")
            return id
        raise ClusterUnavailable(
            f"{TRIES} times somebody else was faster to start a job of the name '{asked.name}'; "
            "try again, or give the recipe another name"
        )

    def follow(self, id: str) -> int:
        """Write the log of a job until it ends; the exit code of its driver."""
        log, pause, heard = _Log(self, id), FIRST_PAUSE_S, time.monotonic()
        while True:
            try:
                job = self.server.job(id)
            except ClusterUnavailable as error:
                if time.monotonic() - heard > self.patience_s:
                    raise ClusterUnavailable(
                        f"{error}; {id} may go on without us: the same command follows or resumes "
                        f"it (nothing was heard of it for {self.patience_s:g} s)"
                    ) from error
            else:
                heard = time.monotonic()
                if job is None:
                    raise ClusterUnavailable(
                        f"the job server knows no {id}: its head was replaced, and the job ended "
                        "with it; the same command resumes the run"
                    )
                pause = FIRST_PAUSE_S if log.more() else min(1.5 * pause, LONGEST_PAUSE_S)
                if job.ended:
                    return self._ended(job)
            time.sleep(pause)

    def _joined(self, job: Job, asked: Submission) -> str:
        if not job.does(asked):
            raise RecipeError(
                f"{asked.run_dir} is already being run by {job.id}, with another command: "
                f"{job.entrypoint}; let it end, stop it (ray job stop {job.id}), or take another "
                "--run-dir"
            )
        self.say(f"{job.id} does this run already")
        return job.id

    def _ended(self, job: Job) -> int:
        if job.status == "SUCCEEDED":
            self.say(f"{job.id} is done")
            return 0
        if job.status == "STOPPED":
            self.say(f"{job.id} was stopped; the same command resumes the run")
            return STOPPED
        if job.exit_code is None:
            why = job.message.strip().partition("\n")[0]
            self.say(f"{job.id} was lost ({why}); the same command resumes the run")
            return LOST
        # A shell that became its command is killed itself: -9 is what another shell calls 137.
        code = job.exit_code if job.exit_code >= 0 else 128 - job.exit_code
        helps = code in AGAIN or code > 128
        advice = "the same command resumes the run" if helps else "mend its cause first"
        self.say(f"{job.id} ended with exit code {code}; {advice}")
        return code


class _Log:
    """What of a driver's log has been written; each look fetches all of it."""

    def __init__(self, submitter: Submitter, id: str) -> None:
        self.submitter = submitter
        self.id = id
        self.shown = 0
        self.missing = False

    def more(self) -> bool:
        """Write what is new, and whether there was any."""
        try:
            text = self.submitter.server.log(self.id)
        except ClusterUnavailable as error:
            # Its node is away, or a character of the last line is half written.
            if not self.missing:
                self.submitter.say(f"the log of {self.id} cannot be read now: {error}")
            self.missing = True
            return False
        self.missing = False
        new, self.shown = text[self.shown :], max(self.shown, len(text))
        self.submitter.write(new.translate(_CONTROLS))
        return bool(new)


def _last_attempt(jobs: Sequence[Job], name: str) -> int:
    found = (re.fullmatch(rf"{re.escape(name)}-a(\d+)", job.id) for job in jobs)
    return max((int(one[1]) for one in found if one), default=0)
