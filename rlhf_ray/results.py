"""What a finished run leaves: the policy with its card, the summary, and the report."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import rlhf_ray
from rlhf_ray.config.schema import Recipe
from rlhf_ray.data.baselines import HashedNgrams, longer_response_accuracy
from rlhf_ray.durable.fsio import atomic_write, read_bytes
from rlhf_ray.durable.manifest import write_manifest
from rlhf_ray.errors import BadData
from rlhf_ray.messages import Floats, Preference
from rlhf_ray.metrics import Row, summary
from rlhf_ray.preferences.accuracy import clustered
from rlhf_ray.report import write_report


def leave_results(recipe: Recipe, folder: Path, rows: Sequence[Row], wall_s: float) -> Row:
    """Write card, summary and report beside `final/`; the summary."""
    found = summary(rows, status="completed", wall_s=wall_s)
    atomic_write(folder / "final" / "README.md", model_card(recipe, found).encode())
    write_manifest(folder / "final", {})
    atomic_write(folder / "summary.json", json.dumps(found, indent=2).encode())
    write_report(folder)
    return found


def read_summary(folder: Path) -> Row | None:
    """The summary of a finished run, None while it is not.

    Raises BadData for one that does not tell what is said of a finished run.
    """
    path = folder / "summary.json"
    if not path.is_file():
        return None
    try:
        found: Row = json.loads(read_bytes(path))
        if found["status"] != "completed":
            return None
        ends = found["gold_accuracy"]
        both = [(mode, when) for mode in ("sampled", "greedy") for when in ("before", "after")]
        said = [ends[mode][when]["overall"] for mode, when in both] if ends else []
        sum([found["wall_s"], *said])  # all of them are numbers
        return found
    except (ValueError, LookupError, TypeError) as error:
        raise BadData(f"{path} is damaged ({error!r}); remove it to go on with the run") from error


def held_out_row(
    name: str,
    pairs: Sequence[Preference],
    margins: Floats,
    train: Sequence[Preference],
    *,
    seed: int,
) -> Row:
    """A judge's held-out accuracy per source, beside length and a linear n-gram model.

    `margins` [N]: how far the judge prefers the chosen response of each of `pairs`.
    """
    baseline = HashedNgrams(seed=seed)
    baseline.fit(train)
    sources = np.array([pair.source for pair in pairs])
    names = sorted({*sources.tolist()})
    right = (np.sign(margins) + 1) / 2
    prompts = np.array([pair.prompt for pair in pairs])
    found = {one: clustered(right[sources == one], prompts[sources == one]) for one in names}
    return {
        "kind": "judge",
        "name": name,
        "accuracy": {one: mean for one, (mean, _, _) in found.items()},
        "intervals": {one: [low, high] for one, (_, low, high) in found.items()},
        "longer_response": longer_response_accuracy(pairs),
        "ngram": baseline.accuracy(pairs),
        "pairs": {one: int((sources == one).sum()) for one in names},
    }


def model_card(recipe: Recipe, found: dict[str, Any]) -> str:
    """What the policy is and how it came to be, for the hub and for people."""
    accuracy = found["gold_accuracy"]
    lines = [
        *_head("text-generation", "dpo"),
        f"# {recipe.name}",
        "",
        f"Trained with rlhf_ray {rlhf_ray.__version__}: {found['rounds']} round(s), "
        f"{found['waves']} waves, seed {recipe.seed}, judges {', '.join(recipe.judges)} chosen by "
        f"{recipe.bandit.kind}, loss {recipe.learner.loss} (beta {recipe.learner.beta}, "
        f"NLL weight {recipe.learner.nll_weight}).",
    ]
    if accuracy:
        lines += ["", "| held-out gold accuracy | before | after |", "|---|---|---|"]
        lines += [
            f"| {mode} | {accuracy[mode]['before']['overall']:.3f} "
            f"| {accuracy[mode]['after']['overall']:.3f} |"
            for mode in ("sampled", "greedy")
        ]
    return "\n".join([*lines, ""])


def _head(task: str, tag: str) -> list[str]:
    return [
        "---",
        "library_name: transformers",
        f"pipeline_tag: {task}",
        f"tags: [rlhf, {tag}, generated_from_trainer]",
        "---",
    ]
