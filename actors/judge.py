"""Judge workers: reward models in Ray actors, and the pool the driver asks."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray

from actors.waiting import get, log_to
from rlhf_ray.config.judges import Critic, Judge, JudgeFleet
from rlhf_ray.config.schema import Timeouts
from rlhf_ray.errors import JudgeFailed
from rlhf_ray.messages import (
    Choices,
    Critiques,
    Floats,
    Judgement,
    Preference,
    Rollout,
    Scores,
    Step,
)


class JudgeActor:
    """Holds some judges of the pool; every line of thinking is in `rlhf_ray.rewards`."""

    def __init__(self, number: int, logs: Path | None, threads: int, limit: int | None) -> None:
        log_to(logs, f"judge-{number}", threads)
        from rlhf_ray.rewards.shelf import Shelf

        self.judges: Shelf[Any] = Shelf(limit)

    def load(self, name: str, entry: Judge, path: str | None, options: dict[str, Any]) -> None:
        """Take a judge and load it once: what cannot be is said now. One that is held already takes
        its new weights in place."""
        from rlhf_ray.rewards.build import build_judge
        from rlhf_ray.rewards.shelf import weights_bytes

        make = partial(build_judge, name, entry, path, **options)
        self.judges.register(name, make, weights_bytes(path))
        if name in self.judges.held:
            self.judges.get(name).load(path)
        else:
            self.judges.get(name)

    def score(self, name: str, *arguments: Any) -> Judgement:
        found: Judgement = self.judges.get(name).score(*arguments)
        return found

    def margins(self, name: str, pairs: Sequence[Preference]) -> Floats:
        found: Floats = self.judges.get(name).margins(pairs)
        return found


class Judges:
    """The pool of judges; only the ones a prompt was given to are run.

    A judge's prompts are cut into chunks before any worker is asked; a chunk gives the same scores
    on whichever of the judge's replicas it runs.
    """

    def __init__(
        self,
        entries: Mapping[str, Judge],
        paths: Mapping[str, str],
        settings: JudgeFleet,
        timeouts: Timeouts,
        *,
        critic: Critic | None = None,
        logs: Path | None = None,
    ) -> None:
        self.entries, self.names, self.timeouts = entries, tuple(entries), timeouts
        self.chunk = settings.chunk_prompts
        self.options = {
            "tokens_per_batch": settings.tokens_per_batch,
            "critic": critic,
            "num_gpus": settings.num_gpus,
            "precision": settings.precision,
        }
        resources = {"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus}
        remote: Any = ray.remote(**resources)(JudgeActor)
        limit = int(settings.memory_gib * 2**30) if settings.memory_gib else None
        self.homes = places(entries, settings.workers)
        count = 1 + max(number for home in self.homes.values() for number in home)
        self.workers = [
            remote.remote(number, logs, settings.threads, limit) for number in range(count)
        ]
        for name in entries:
            self._load(name, paths.get(name))

    def score(
        self, step: Step, choices: Choices, rollouts: Sequence[Rollout], critiques: Critiques
    ) -> Scores:
        """Raw scores of the judges that were asked, NaN elsewhere and where one failed.

        Raises JudgeFailed when a judge errs, or answers in another shape.
        """
        began = time.perf_counter()
        width = len(rollouts[0].responses)
        values = np.full((len(self.names), len(rollouts), width), np.nan)
        asked = {
            name: np.flatnonzero(choices.asked[:, arm]).tolist()
            for arm, name in enumerate(self.names)
            if choices.asked[:, arm].any()
        }
        refs = {name: self._ask(name, rows, rollouts, critiques) for name, rows in asked.items()}
        costs = {}
        for name, parts in refs.items():
            what = f"scores of judge '{name}'"
            found: list[Judgement] = get(parts, timeout_s=self.timeouts.score_s, what=what)
            whole = np.concatenate([part.values for part in found])
            _check(name, whole, (len(asked[name]), width), _failures(found))
            values[self.names.index(name), asked[name]] = whole
            costs[name] = merged(found)
        # Sorted, as the journal gives them back.
        return Scores(values, dict(sorted(costs.items())), time.perf_counter() - began)

    def margins(self, name: str, pairs: Sequence[Preference]) -> Floats:
        """[N] how far a judge prefers the chosen response of each pair; NaN: too long for it."""
        ref = self.workers[self.homes[name][0]].margins.remote(name, pairs)
        found: Floats = get(ref, timeout_s=self.timeouts.score_s, what=f"judge '{name}' on pairs")
        return found

    def replace(self, name: str, path: str) -> None:
        """New weights for a judge, in all its replicas."""
        self._load(name, path)

    def _load(self, name: str, path: str | None) -> None:
        entry = self.entries[name]
        refs = [
            self.workers[number].load.remote(name, entry, path, self.options)
            for number in self.homes[name]
        ]
        get(refs, timeout_s=self.timeouts.engine_s, what=f"judge '{name}' to load")

    def _ask(
        self, name: str, rows: Sequence[int], rollouts: Sequence[Rollout], critiques: Critiques
    ) -> list[Any]:
        """References to the judgements of each chunk, in row order."""
        homes, refs = self.homes[name], []
        for number, at in enumerate(range(0, len(rows), self.chunk)):
            part = [rollouts[row] for row in rows[at : at + self.chunk]]
            refs.append(
                self.workers[homes[number % len(homes)]].score.remote(
                    name,
                    [one.prompt for one in part],
                    [[response.text for response in one.responses] for one in part],
                    [critiques.texts[row] for row in rows[at : at + self.chunk]],
                    [one.reference for one in part],
                )
            )
        return refs


def places(entries: Mapping[str, Judge], workers: int) -> dict[str, list[int]]:
    """Which workers hold which judge: replicas on different workers, in recipe order."""
    wanted = {name: getattr(entry, "replicas", 1) for name, entry in entries.items()}
    count = min(max(workers, *wanted.values()), sum(wanted.values()))
    homes, at = {}, 0
    for name, replicas in wanted.items():
        homes[name] = [(at + number) % count for number in range(replicas)]
        at += replicas
    return homes


def merged(parts: Sequence[Judgement]) -> Judgement:
    """The cost of several chunks as one; measures are means over responses."""
    names = sorted({name for part in parts for name in part.measures})
    return Judgement(
        np.zeros((0, 0)),
        _failures(parts),
        sum(part.forwards for part in parts),
        sum(part.tokens for part in parts),
        sum(part.seconds for part in parts),
        {name: _mean(name, [part for part in parts if name in part.measures]) for name in names},
    )


def _mean(name: str, parts: Sequence[Judgement]) -> float:
    """Over the responses of the chunks that have this measure."""
    values = [part.measures[name] for part in parts]
    return float(np.average(values, weights=[part.values.size for part in parts]))


def _failures(parts: Sequence[Judgement]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part.failures)
    return dict(sorted(total.items()))


def _check(name: str, scores: Floats, shape: tuple[int, int], failures: Mapping[str, int]) -> None:
    if scores.shape != shape:
        raise JudgeFailed(name, f"scores of shape {scores.shape} where {shape} was asked")
    missing = int((~np.isfinite(scores)).sum())
    if missing != sum(failures.values()) or np.isinf(scores).any():
        raise JudgeFailed(
            name, f"{missing} scores are not finite, {dict(failures)} are accounted for"
        )
