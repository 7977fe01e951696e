"""A toy run as a process of its own: what a driver does, in seconds, for tests that kill it.

    python toy_command.py FOLDER [FAULT]

`forgetful`: what a resumed attempt adds is not what was promised. `failing`: it ends with code 65.
"""

import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import toy_runs
from recipes import recipe_with

from rlhf_ray.config.schema import Loop, Recipe
from rlhf_ray.durable.folder import RunFolder
from rlhf_ray.durable.journal import Journal

LOOP = Loop(rounds=2, waves=2, prompts=2)
PAUSE_S = 0.03
"""After each record, so that there is a moment to be killed at."""


def recipe() -> Recipe:
    """One whose bandit has the arms and the width of the toy's."""
    rule = {"kind": "rules", "rule": "length"}
    return recipe_with(
        judges={"right": rule, "wrong": rule}, context={"width": 2}, loop=LOOP.model_dump()
    )


def go(folder: Path, fault: str = "") -> None:
    """Begin or go on, and leave what a finished run leaves."""
    if fault == "failing":
        print("error: the toy was told to fail")
        raise SystemExit(65)
    resumed = any(folder.glob("journal/*.jsonl"))
    run, append = RunFolder(folder, recipe()), Journal.append

    def slowly(journal: Journal, *record: Any) -> None:
        append(journal, *record)
        time.sleep(PAUSE_S)

    Journal.append = slowly  # type: ignore[method-assign]
    toy_runs.driven(run.path, loop=LOOP, keep=2)
    Journal.append = append  # type: ignore[method-assign]
    if resumed and fault == "forgetful":
        with closing(Journal(run.path / "journal")) as journal:
            journal.append("wave", "r001-w001", {"pairs": 0})
    for name in ("contexts.npy", "final/model.safetensors", "judges/a/weights", "summary.json"):
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_text(name)


if __name__ == "__main__":
    go(Path(sys.argv[1]), *sys.argv[2:])
