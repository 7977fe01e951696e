"""The run folder: whose it is, that only one driver writes in it, and where a run stands."""

import fcntl
import os
from pathlib import Path
from typing import Any

import yaml

from rlhf_ray.config.load import dump_recipe
from rlhf_ray.config.schema import Recipe
from rlhf_ray.durable.fsio import atomic_write
from rlhf_ray.errors import BadData, RecipeError, StorageFailed

RESOLVED = "config.resolved.yaml"
MAY_CHANGE = ("timeouts", "checkpoints", "judge_fleet", "rollouts.workers")
"""Keys that change how fast a run goes, not what it computes."""


class RunFolder:
    """Opened for one driver at a time; the lock ends with the process, however it ends."""

    def __init__(self, path: Path, recipe: Recipe) -> None:
        """Raises RecipeError when the folder holds a run of another recipe, or a live one."""
        self.path = path.absolute()
        try:
            for name in ("samples", "pairs", "rollouts", "logs", "judges"):
                (self.path / name).mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / ".lock", os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as error:
            raise StorageFailed(
                f"the run folder {self.path} cannot be written: {error.strerror}; choose another "
                "with --run-dir"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RecipeError(
                f"another driver is running in {self.path}; wait for it, end it, or use --run-dir"
            ) from error
        self.resumed = self._claim(recipe)

    def _claim(self, recipe: Recipe) -> bool:
        resolved = self.path / RESOLVED
        text = dump_recipe(recipe)
        if not resolved.is_file():
            if any((self.path / "journal").glob("*.jsonl")):
                raise BadData(f"{resolved} is missing beside a journal; restore it from a copy")
            atomic_write(resolved, text.encode())
            return False
        old, new = (_flat(yaml.safe_load(one)) for one in (resolved.read_text("utf-8"), text))
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
        return True


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {
        key: value
        for name, part in tree.items()
        for key, value in _flat(part, f"{prefix}{name}.").items()
    }
