"""What a run folder says of the run it holds: recipe, data and models; no other may go on in it.

Each has its hash in the folder, so that a changed byte is not taken for another wish:

    config.resolved.yaml  and its `.sha256`
    data.sha256           of what was read from data files
    models.json           a fingerprint of every model folder the recipe names
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import yaml

from rlhf_ray.config.folders import fingerprints
from rlhf_ray.config.load import dump_recipe
from rlhf_ray.config.schema import Recipe
from rlhf_ray.durable.fsio import atomic_write, read_bytes
from rlhf_ray.durable.manifest import NewerFormat
from rlhf_ray.errors import BadData, RecipeError

RESOLVED, SEAL = "config.resolved.yaml", "config.resolved.yaml.sha256"
DATA, MODELS = "data.sha256", "models.json"
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


def begun(run: Path) -> bool:
    """Whether anything was sampled in this folder."""
    # Not the journal alone: a run that has lost it must not become another one.
    traces = ("journal/*.jsonl", "checkpoints/*step-*", "rollouts/*.parquet")
    return any(one for pattern in traces for one in run.glob(pattern))


def write(run: Path, recipe: Recipe, data: str) -> None:
    """Say whose folder this is; nothing has begun in it."""
    told = f"{_SAYS}{FORMAT}\n{dump_recipe(recipe)}".encode()
    atomic_write(run / DATA, data.encode())
    atomic_write(run / MODELS, json.dumps(fingerprints(recipe), indent=1).encode() + b"\n")
    atomic_write(run / SEAL, hashlib.sha256(told).hexdigest().encode())
    atomic_write(run / RESOLVED, told)


def refuse_another(run: Path, recipe: Recipe, data: str) -> Recipe:
    """What the run in a folder began with, some of which may have changed since; where none has
    begun, `recipe`. Nothing is written.

    Raises RecipeError where it holds a run of another recipe, BadData where data or models have
    changed, or what it says is damaged, and NewerFormat.
    """
    check_format(run)
    if not begun(run):
        return recipe
    for path in (run / RESOLVED, run / DATA):
        if not path.is_file():
            raise BadData(f"{path} is missing in a run that has begun; restore it from a copy")
    _check_seal(run)
    if read_bytes(run / DATA) != data.encode():
        raise BadData(
            f"data files have changed since {run} began (or {run / DATA} has, which holds "
            "their hash); restore the files, or start over with another --run-dir"
        )
    try:
        # By way of a recipe: a key that is new since then has the value it had without it.
        there = Recipe.model_validate(yaml.safe_load(read_bytes(run / RESOLVED).decode()))
    except (yaml.YAMLError, ValueError) as error:
        raise BadData(f"{run / RESOLVED} is damaged ({error}); restore it from a copy") from error
    old, new = _flat(_tree(there)), _flat(_tree(recipe))
    changed = [
        f"{key}: {old.get(key)!r} there, {new.get(key)!r} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(MAY_CHANGE)
    ]
    if changed:
        raise RecipeError(
            f"{run} holds a run of another recipe ({'; '.join(changed[:5])}); "
            "give this one a folder of its own with --run-dir, or restore the recipe"
        )
    _check_models(run, recipe)
    return there


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


def _check_seal(run: Path) -> None:
    """Runs of earlier versions have none."""
    if not (run / SEAL).is_file():
        return
    if (
        read_bytes(run / SEAL).decode("ascii", "replace")
        != hashlib.sha256(read_bytes(run / RESOLVED)).hexdigest()
    ):
        raise BadData(
            f"{run / RESOLVED} is not what was written (or {SEAL} beside it is not, which holds "
            "its hash); restore it from a copy. Another recipe needs another --run-dir"
        )


def _check_models(run: Path, recipe: Recipe) -> None:
    """Runs of earlier versions do not know their models."""
    if not (run / MODELS).is_file():
        return
    try:
        known = dict(json.loads(read_bytes(run / MODELS)))
    except (ValueError, TypeError) as error:
        raise BadData(f"{run / MODELS} is damaged ({error}); restore it from a copy") from error
    for key, found in fingerprints(recipe).items():
        if known.get(key) != found:
            raise BadData(
                f"the model of {key} has changed since {run} began (or {run / MODELS} has, which "
                "holds its hash); restore the model, or start over with another --run-dir"
            )


def _tree(recipe: Recipe) -> Any:
    return yaml.safe_load(dump_recipe(recipe))


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {
        key: value
        for name, part in tree.items()
        for key, value in _flat(part, f"{prefix}{name}.").items()
    }
