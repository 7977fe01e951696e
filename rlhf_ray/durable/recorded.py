"""Roles that remember: the same protocol, but what the journal holds is returned, not done again.

The driver does not know. After a crash the steps since the last checkpoint run again: their rollouts
and scores come from here, only the updates (whose weights died) are computed once more.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_ray.durable.fsio import sha256_of
from rlhf_ray.durable.journal import Journal, decode_array, encode_array
from rlhf_ray.durable.samples import read_rollouts, write_rollouts
from rlhf_ray.errors import BadData
from rlhf_ray.messages import Accuracy, Choices, Evaluation, Prompt, Rollout, Scores, Step
from rlhf_ray.metrics import evaluation_row


class RecordedPolicy:
    """Sampling, remembered per step in `rollouts/<step>.parquet`."""

    def __init__(
        self, generate: Callable[..., list[Rollout]], samples: int, journal: Journal, folder: Path
    ) -> None:
        self._generate, self.samples = generate, samples
        self.journal, self.folder = journal, folder

    def generate(self, step: Step, prompts: Sequence[Prompt]) -> list[Rollout]:
        """Raises BadData when a recorded file is not what was recorded."""
        path = self.folder / f"{step}.parquet"
        if known := self.journal.find("rollouts", str(step)):
            if not path.is_file() or sha256_of(path) != known["sha256"]:
                raise BadData(
                    f"{path} is missing or changed since it was sampled; restore it from a copy"
                )
            return read_rollouts(path)
        rollouts = self._generate(f"wave-{step.index}", prompts, samples=self.samples)
        write_rollouts(path, rollouts)
        self.journal.append("rollouts", str(step), {"sha256": sha256_of(path)})
        return rollouts


class RecordedJudges:
    """Scores, remembered per step."""

    def __init__(self, score: Callable[..., Scores], journal: Journal) -> None:
        self._score, self.journal = score, journal

    def score(self, step: Step, choices: Choices, rollouts: Sequence[Rollout]) -> Scores:
        if known := self.journal.find("scores", str(step)):
            # NaN marks a judge that was not asked; the bits travel, not a number.
            return Scores(decode_array(known["values"]), known["forwards"], 0.0)
        scores = self._score(step, choices, rollouts)
        body = {"values": encode_array(scores.values), "forwards": dict(scores.forwards)}
        self.journal.append("scores", str(step), body)
        return scores


class RecordedEvaluator:
    """Held-out accuracies, remembered per round."""

    def __init__(self, measure: Callable[[int], Evaluation], journal: Journal) -> None:
        self._measure, self.journal = measure, journal

    def measure(self, round: int) -> Evaluation:
        if known := self.journal.find("evaluation", str(round)):
            return Evaluation(round, _accuracy(known["sampled"]), _accuracy(known["greedy"]))
        evaluation = self._measure(round)
        self.journal.append("evaluation", str(round), evaluation_row(evaluation))
        return evaluation


def choice_body(choices: Choices, signals: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, Any]:
    """A step's choice and its credit, from which a bandit can be folded."""
    return {
        "contexts": encode_array(choices.contexts),
        "asked": encode_array(choices.asked),
        "propensities": encode_array(choices.propensities),
        "signals": encode_array(signals),
    }


def replay(
    journal: Journal, learn: Callable[[Choices, Any], None], arms: tuple[str, ...], done: int
) -> None:
    """Bring a fresh selector to where it stood after `done` waves: the same calls, the same order."""
    learned = {body["index"]: body for _, body in journal.all("learn")}
    for index in range(done):
        body = learned[index]
        choices = Choices(
            decode_array(body["contexts"]), decode_array(body["asked"]), arms,
            decode_array(body["propensities"]),
        )
        learn(choices, decode_array(body["signals"]))


def _accuracy(row: dict[str, Any]) -> Accuracy:
    return Accuracy(row["overall"], row["by_source"])
