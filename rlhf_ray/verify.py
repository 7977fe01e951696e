"""Is a run folder whole? Everything in it that has a hash is read; not a byte of it is changed."""

import fcntl
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rlhf_ray.durable import manifest
from rlhf_ray.durable.audit import check_journal, check_metrics, check_shards
from rlhf_ray.durable.folder import check_format
from rlhf_ray.durable.fsio import entries, explained, read_bytes, sha256_of
from rlhf_ray.durable.journal import Journal
from rlhf_ray.durable.recorded import kept_contexts
from rlhf_ray.errors import BadData, RecipeError

CHECKPOINTS, CONTEXTS = "checkpoints", "contexts.npy"
REDONE = {"rollouts": ".parquet", "critiques": "-critiques.json"}
"""What a wave that is done again is made from: files in `rollouts/`, by kind of record."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    ok: bool
    says: str


def verify(run: Path) -> Iterator[Finding]:
    """What is whole and what is not, in the order in which a resume would meet it.

    Raises BadData for what is no run folder, RecipeError while a driver writes in it.
    """
    if not (run / "config.resolved.yaml").is_file():
        raise BadData(f"{run} is no run folder: config.resolved.yaml is not in it; give another")
    check_format(run)
    _check_idle(run)
    with tempfile.TemporaryDirectory() as scratch:
        # Opening a journal cuts what a killed attempt left half written: from a copy, here.
        copy = Path(scratch) / "journal"
        with explained("copy", run / "journal"):
            if (run / "journal").is_dir():
                shutil.copytree(run / "journal", copy)
        try:
            journal = Journal(copy)
        except BadData as error:
            yield Finding("journal", False, str(error).replace(str(copy), str(run / "journal")))
            return
        yield _journal(journal, run / "journal")
        yield from _built_on(journal, run)
    yield from _models(run)


def _check_idle(run: Path) -> None:
    lock = run / ".lock"
    if not lock.is_file():
        return
    with explained("open", lock), lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RecipeError(
                f"a driver is running in {run}, and what it writes is not whole yet; verify when "
                "it has ended"
            ) from error


def _journal(journal: Journal, folder: Path) -> Finding:
    records, segments = journal.position[0] + 1, len(journal.segments)
    torn = {one.name for one in entries(journal.folder)} - (
        {one.name for one in entries(folder)} if folder.is_dir() else set()
    )
    more = "; its last line was half written when the driver died, and a resume cuts it"
    told = f"{records} records in {segments} segments{more if torn else ''}"
    return Finding("journal", True, told)


def _built_on(journal: Journal, run: Path) -> Iterator[Finding]:
    """Checkpoints, samples, rollouts and metrics, against the journal."""
    done = 0
    for path in entries(run / CHECKPOINTS) if (run / CHECKPOINTS).is_dir() else ():
        if path.name.startswith("step-"):
            found, extra = _folder(path, run)
            if extra is not None:
                done = max(done, int(extra["done"]))
                found = _tried(found, partial(check_journal, journal, path, extra))
            yield found
        elif path.name.startswith("quarantine-"):
            yield Finding(
                f"{CHECKPOINTS}/{path.name}", True, "put aside by a resume: see REASON.txt"
            )
    yield _tried(
        Finding("samples, pairs", True, f"those of {done} waves are as they were written"),
        partial(check_shards, journal, run, done),
    )
    again = [step for step, body in journal.all("learn") if body["index"] >= done]
    again += [step for step, _ in journal.all("rollouts") if journal.find("learn", step) is None]
    if (run / CONTEXTS).is_file():
        yield _tried(
            Finding(CONTEXTS, True, "as they were computed"), partial(kept_contexts, run / CONTEXTS)
        )
    yield _tried(
        Finding("rollouts", True, f"those of {len(again)} waves that a resume does again"),
        partial(_check_rollouts, journal, run / "rollouts", again),
    )
    yield _tried(
        Finding("metrics.jsonl", True, "no row without its record"),
        partial(_check_rows, journal, run / "metrics.jsonl"),
    )


def _check_rollouts(journal: Journal, folder: Path, steps: list[str]) -> None:
    for step in steps:
        for kind, end in REDONE.items():
            known, path = journal.find(kind, step), folder / f"{step}{end}"
            if known and (not path.is_file() or sha256_of(path) != known["sha256"]):
                raise BadData(f"{path} is missing or changed since it was made; restore it")


def _check_rows(journal: Journal, path: Path) -> None:
    check_metrics(journal, path, _rows(path))


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    lines = read_bytes(path).splitlines(keepends=True)
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            if number == len(lines) and not line.endswith(b"\n"):
                break  # half written; a resume drops it
            raise BadData(f"{path}:{number}: not a row of metrics ({error})") from error
    return found


def _models(run: Path) -> Iterator[Finding]:
    """All folders with a manifest but checkpoints: models, pairs, trainings under way."""
    for path in sorted(run.rglob(manifest.NAME)):
        parts = path.relative_to(run).parts
        # What an attempt that died had not yet put in its place is made anew.
        if parts[0] != CHECKPOINTS and not any(part.startswith(".tmp-") for part in parts):
            yield _folder(path.parent, run)[0]


def _folder(path: Path, run: Path) -> tuple[Finding, dict[str, Any] | None]:
    """A folder with a manifest, and what stands in it besides; None where it is damaged."""
    name = str(path.relative_to(run))
    try:
        extra = manifest.verify_manifest(path)
    except BadData as error:
        return Finding(name, False, str(error)), None
    return Finding(name, True, "every file is as it was written"), extra


def _tried(good: Finding, check: Callable[[], object]) -> Finding:
    try:
        check()
    except BadData as error:
        return Finding(good.name, False, str(error))
    return good
