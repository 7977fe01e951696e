"""How many workers a run shall have: what was ordered while it runs, and what its recipe says.

An order is a file in the run folder, which the driver looks at now and then. It changes how fast a
run goes and nothing of what it computes, so the journal does not know of it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rlhf_ray.config.schema import Elastic
from rlhf_ray.durable.fsio import atomic_write, read_bytes
from rlhf_ray.errors import BadData, RecipeError

FILE = "scale.json"
ROLES = ("rollouts", "judges")


def ordered(folder: Path) -> dict[str, int]:
    """What was ordered for each role, without those that are left to the recipe.

    Raises BadData for a file that is not ours.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    try:
        found = json.loads(read_bytes(path))
    except ValueError:
        found = None
    if isinstance(found, dict) and all(
        role in ROLES and type(count) is int and count >= 1 for role, count in found.items()
    ):
        return dict(found)
    raise BadData(f"{path} is damaged; remove it, or write it with `rlhf-ray scale`")


def parsed(texts: Sequence[str]) -> dict[str, int | None]:
    """`rollouts=8` -> {"rollouts": 8}; `rollouts=recipe` -> {"rollouts": None}.

    Raises RecipeError for anything else.
    """
    found: dict[str, int | None] = {}
    for text in texts:
        role, _, count = text.partition("=")
        if role not in ROLES or not (count == "recipe" or (count.isdecimal() and int(count) >= 1)):
            raise RecipeError(
                f"'{text}' is no number of workers; say {' or '.join(ROLES)}=N with N >= 1, or "
                "=recipe to go back to what the recipe says"
            )
        found[role] = None if count == "recipe" else int(count)
    return found


def order(folder: Path, counts: Mapping[str, int | None]) -> dict[str, int]:
    """Order other numbers of workers, None: as the recipe says. Returns all that is ordered now.

    An old file that cannot be read is replaced: what it may have ordered is no order any more.

    Raises BadData where there is no run, and for such a file where nothing new is ordered.
    """
    if not (folder / "config.resolved.yaml").is_file():
        raise BadData(f"{folder} is no run folder; give the --run-dir of a run")
    try:
        before = ordered(folder)
    except BadData:
        if not counts:
            raise
        before = {}
    orders: dict[str, int | None] = {**before, **counts}
    found = {role: count for role, count in orders.items() if count is not None}
    atomic_write(folder / FILE, json.dumps(found, sort_keys=True).encode() + b"\n")
    return found


def wanted(
    folder: Path, role: str, workers: int | Elastic, room: Callable[[], int] | None = None
) -> Callable[[], int]:
    """How many workers of a role there shall be whenever it is asked: what was ordered, else what
    the recipe says, else as many as the cluster has `room` for within the recipe's bounds, or the
    most where more room is asked for."""

    def now() -> int:
        count = ordered(folder).get(role)
        if count is not None:
            return count
        if isinstance(workers, int):
            return workers
        if workers.ask:
            return workers.max
        assert room is not None, role
        return min(max(room(), workers.min), workers.max)

    return now
