"""Judge workers: reward models in Ray actors, and the pool the driver asks."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

from actors.waiting import get, log_to
from rlhf_ray.config.schema import Judge, JudgeFleet, Timeouts
from rlhf_ray.errors import JudgeFailed
from rlhf_ray.messages import Choices, Floats, Preference, Prompt, Rollout, Scores, Step


class JudgeActor:
    """Holds some judges of the pool; every line of thinking is in `rlhf_ray.rewards`."""

    def __init__(self, number: int, logs: Path | None, threads: int) -> None:
        log_to(logs, f"judge-{number}", threads)
        self.judges: dict[str, Any] = {}

    def load(self, name: str, entry: Judge, path: str | None, tokens_per_batch: int) -> None:
        from rlhf_ray.rewards.build import build_judge

        self.judges[name] = build_judge(name, entry, path, tokens_per_batch=tokens_per_batch)

    def score(
        self, name: str, prompts: Sequence[Prompt], responses: Sequence[Sequence[str]]
    ) -> Floats:
        scores: Floats = self.judges[name].score(prompts, responses)
        return scores


class Judges:
    """The pool of judges; only the ones a prompt was given to are run."""

    def __init__(
        self,
        entries: Mapping[str, Judge],
        paths: Mapping[str, str],
        settings: JudgeFleet,
        timeouts: Timeouts,
        *,
        logs: Path | None = None,
    ) -> None:
        self.names, self.timeouts = tuple(entries), timeouts
        resources = {"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus}
        remote: Any = ray.remote(**resources)(JudgeActor)
        workers = [
            remote.remote(number, logs, settings.threads)
            for number in range(min(settings.workers, len(entries)))
        ]
        self.homes = {name: workers[i % len(workers)] for i, name in enumerate(entries)}
        budget = settings.tokens_per_batch
        for name, entry in entries.items():
            ref = self.homes[name].load.remote(name, entry, paths.get(name), budget)
            get(ref, timeout_s=timeouts.engine_s, what=f"judge '{name}' to load")

    def score(self, step: Step, choices: Choices, rollouts: Sequence[Rollout]) -> Scores:
        """Raw scores of the judges that were asked, NaN elsewhere.

        Raises JudgeFailed when a judge errs, or answers in another shape.
        """
        began = time.perf_counter()
        width = len(rollouts[0].responses)
        values = np.full((len(self.names), len(rollouts), width), np.nan)
        asked: dict[str, list[int]] = {
            name: np.flatnonzero(choices.asked[:, arm]).tolist()
            for arm, name in enumerate(self.names)
        }
        refs = {
            name: self._ask(name, [rollouts[row] for row in rows])
            for name, rows in asked.items()
            if rows
        }
        for name, ref in refs.items():
            found = get(ref, timeout_s=self.timeouts.score_s, what=f"scores of judge '{name}'")
            _check(name, found, (len(asked[name]), width))
            values[self.names.index(name), asked[name]] = found
        forwards = {name: len(asked[name]) * width for name in refs}
        return Scores(values, forwards, time.perf_counter() - began)

    def accuracy(self, name: str, pairs: Sequence[Preference]) -> dict[str, float]:
        """Share of labelled pairs whose chosen text scores higher, per source; ties count half."""
        prompts = [Prompt(pair.id, pair.prompt, pair.source) for pair in pairs]
        texts = [[pair.chosen, pair.rejected] for pair in pairs]
        ref = self.homes[name].score.remote(name, prompts, texts)
        found = get(ref, timeout_s=self.timeouts.score_s, what=f"scores of judge '{name}'")
        _check(name, found, (len(pairs), 2))
        right = (np.sign(found[:, 0] - found[:, 1]) + 1) / 2
        sources = np.array([pair.source for pair in pairs])
        return {source: float(right[sources == source].mean()) for source in sorted({*sources})}

    def _ask(self, name: str, rollouts: Sequence[Rollout]) -> Any:
        prompts = [rollout.prompt for rollout in rollouts]
        responses = [[one.text for one in rollout.responses] for rollout in rollouts]
        return self.homes[name].score.remote(name, prompts, responses)


def _check(name: str, scores: Floats, shape: tuple[int, int]) -> None:
    if scores.shape != shape:
        raise JudgeFailed(name, f"scores of shape {scores.shape} where {shape} was asked")
    if not np.isfinite(scores).all():
        raise JudgeFailed(name, f"{int((~np.isfinite(scores)).sum())} scores are not finite")
