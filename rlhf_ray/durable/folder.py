"""The run folder: whose it is, that only one driver writes in it, and where a run stands."""

import fcntl
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from rlhf_ray.config.load import dump_recipe
from rlhf_ray.config.schema import Recipe
from rlhf_ray.durable.attempts import Attempt, made_way, owner_of
from rlhf_ray.durable.fsio import atomic_write, entries, make_dir, open_private, read_bytes
from rlhf_ray.durable.manifest import NewerFormat
from rlhf_ray.errors import BadData, RecipeError

RESOLVED = "config.resolved.yaml"
OURS = {RESOLVED, ".lock", ".head"}
FORMAT = 1
"""Of a run folder as a whole: recipe, journal, manifests, checkpoints, samples. It goes up when an
earlier version would misread what this one writes; folders of each stay resumable."""
_SAYS = "# rlhf_ray run folder, format "
"""How a resolved recipe begins; one that begins with a key is of format 1."""
MAY_CHANGE = (
    "timeouts", "checkpoints", "judge_fleet.workers", "rollouts.workers",
    "learner.workers", "learner.zero_stage",
)  # fmt: skip
"""Keys that change how fast a run goes, not what it computes; the learner's two do, by rounding."""


RELEASE_S = 30.0
"""The lock of a process that was killed is free after this."""


class RunFolder:
    """Opened for one driver at a time; the lock ends with the process, however it ends.

    `attempt` says so where the lock does not reach: ask it before anything is written.
    """

    began: Recipe
    """What the run began with; some of it may have changed since."""

    def __init__(
        self,
        path: Path,
        recipe: Recipe,
        *,
        data: str = "",
        push: Callable[[], None] = lambda: None,
    ) -> None:
        """`push`: called whenever what lies in the folder should outlive this machine.

        Raises RecipeError when the folder holds a run of another recipe, or a live one, and
        BadData when it holds something else or `data` (a hash of what was read) has changed;
        NewerFormat, before a byte is written, when a later version began it."""
        self.path, self.push = path.absolute(), push
        check_format(self.path)
        found = {one.name for one in entries(self.path)} if self.path.is_dir() else set()
        if found and not OURS & found:
            raise BadData(
                f"{self.path} is not empty and no run folder (it holds '{min(found)}'); choose "
                "another with --run-dir"
            )
        make_dir(self.path)
        # Before all else: it tells the next attempt that this folder is a run's.
        self._lock = open_private(self.path / ".lock")
        self._hold()
        for name in ("samples", "pairs", "rollouts", "logs", "judges"):
            make_dir(self.path / name)
        self._claim(recipe, data)
        self.attempt = Attempt(self.path)

    def _hold(self) -> None:
        """Take the lock. One that has been taken over by this very process may still be held: by
        a driver on another host, or for a moment by one that was killed here."""
        ends = time.monotonic() + RELEASE_S
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if not made_way(self.path):
                    owner = owner_of(self.path)
                    raise RecipeError(
                        f"another driver is running in {self.path} ({owner or 'it is starting'}); "
                        "wait for it, end it, take the run over with --takeover, or use --run-dir"
                    ) from error
            if time.monotonic() > ends:
                return
            time.sleep(0.1)

    def _claim(self, recipe: Recipe, data: str) -> None:
        resolved, digest = self.path / RESOLVED, self.path / "data.sha256"
        text = dump_recipe(recipe)
        self.began = recipe
        if not self._begun():
            # Nothing has been sampled yet: a mended recipe may take the folder.
            atomic_write(digest, data.encode())
            atomic_write(resolved, f"{_SAYS}{FORMAT}\n{text}".encode())
            return
        for path in (resolved, digest):
            if not path.is_file():
                raise BadData(f"{path} is missing in a run that has begun; restore it from a copy")
        if read_bytes(digest) != data.encode():
            raise BadData(
                f"data files have changed since {self.path} began (or {digest} has, which holds "
                "their hash); restore the files, or start over with another --run-dir"
            )
        try:
            # By way of a recipe: a key that is new since then has the value it had without it.
            there = Recipe.model_validate(yaml.safe_load(read_bytes(resolved).decode()))
            old = _flat(yaml.safe_load(dump_recipe(there)))
            self.began = there
        except (yaml.YAMLError, ValueError) as error:
            raise BadData(f"{resolved} is damaged ({error}); restore it from a copy") from error
        new = _flat(yaml.safe_load(text))
        changed = [
            f"{key}: {old.get(key)!r} there, {new.get(key)!r} now"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key) and not key.startswith(MAY_CHANGE)
        ]
        if changed:
            raise RecipeError(
                f"{self.path} holds a run of another recipe ({'; '.join(changed[:5])}); "
                "give this one a folder of its own with --run-dir, or restore the recipe"
            )

    def _begun(self) -> bool:
        # Not the journal alone: a run that has lost it must not become another one.
        traces = ("journal/*.jsonl", "checkpoints/*step-*", "rollouts/*.parquet")
        return any(one for pattern in traces for one in self.path.glob(pattern))


def check_format(run: Path) -> None:
    """Raises NewerFormat for the folder of a later version, BadData where it cannot be told; a
    folder in which nothing has begun is of no format."""
    path = run / RESOLVED
    if not path.is_file():
        return
    first = read_bytes(path).partition(b"\n")[0]
    told = re.fullmatch(_SAYS.encode() + rb"([1-9]\d{0,5})", first)
    if told is None and first.startswith(b"#"):
        raise BadData(
            f"{path} is damaged (its first line should be '{_SAYS}{FORMAT}'); restore it from a "
            "copy"
        )
    if told is not None and (number := int(told[1])) > FORMAT:
        raise NewerFormat(
            f"{run} has format {number}, this version of rlhf_ray reads up to {FORMAT}; go on with "
            "the newer version that began it, or use another --run-dir"
        )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {
        key: value
        for name, part in tree.items()
        for key, value in _flat(part, f"{prefix}{name}.").items()
    }
