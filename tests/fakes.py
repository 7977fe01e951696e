"""Roles with behaviour of their own, so that the loop is tested without engines.

A response is one letter of `abcd`, a judge's taste is the letters from best to worst, and a
learner's loss follows from what it is given. `Diary` keeps what was asked, in order.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rlhf_ray.messages import (
    Accuracy,
    Choices,
    Evaluation,
    Floats,
    Pair,
    Prompt,
    Response,
    Rollout,
    Scores,
    Step,
    SyncReport,
    UpdateReport,
    WaveReport,
)

LETTERS = "abcd"
SOURCES = ("sort", "reverse")
Diary = list[str]


class Died(Exception):
    """What a test raises where a process would be killed."""


def respond(text: str) -> Response:
    logprobs = np.full(2, -0.1 * ord(text), np.float32)
    return Response(text, (LETTERS.index(text), 99), logprobs, finished=True)


class TurnTaking:
    """Prompts named after their step; the right answer to all of them is `a`."""

    def wave(self, step: Step, size: int) -> list[Prompt]:
        return [
            Prompt(f"{step}-{i}", f"ask {step} {i}", SOURCES[i % 2], "a", "exact")
            for i in range(size)
        ]


class Policy:
    """Samples the same four letters for every prompt, from whichever version it was given."""

    def __init__(self, diary: Diary) -> None:
        self.diary, self.version = diary, 0

    def generate(
        self, step: Step | str, prompts: Sequence[Prompt], samples: int = len(LETTERS)
    ) -> list[Rollout]:
        self.diary.append(f"generate {step}")
        responses = tuple(respond(letter) for letter in LETTERS[:samples])
        return [Rollout(prompt, (7, 8), responses, self.version) for prompt in prompts]


class Judges:
    """Each judge ranks the letters by its own taste."""

    def __init__(self, diary: Diary, tastes: dict[str, str]) -> None:
        self.diary, self.tastes = diary, tastes

    def score(self, step: Step, choices: Choices, rollouts: Sequence[Rollout]) -> Scores:
        self.diary.append(f"score {step}")
        values: Floats = np.full((len(self.tastes), len(rollouts), len(LETTERS)), np.nan)
        for arm, taste in enumerate(self.tastes.values()):
            for row in np.flatnonzero(choices.asked[:, arm]):
                texts = [one.text for one in rollouts[row].responses]
                values[arm, row] = [-taste.index(text) for text in texts]
        asked = choices.asked.sum(axis=0) * len(LETTERS)
        return Scores(values, dict(zip(self.tastes, map(int, asked), strict=True)), 0.0)


class Learner:
    """The loss of a pair is 1 where it prefers `a`, else 2; `weights` count the pairs trained on.

    It dies before the update of wave `dies_at`.
    """

    def __init__(self, diary: Diary, dies_at: int = -1) -> None:
        self.diary, self.dies_at = diary, dies_at
        self.version = self.weights = self.reference = 0

    def begin_round(self) -> None:
        self.diary.append("begin round")
        self.reference = self.weights

    def update(self, step: Step, pairs: Sequence[Pair]) -> UpdateReport:
        if step.index == self.dies_at:
            raise Died
        self.diary.append(f"update {step}")
        self.version += 1
        self.weights += len(pairs)
        losses = np.array([1.0 if pair.chosen == "a" else 2.0 for pair in pairs])
        return UpdateReport(self.version, losses, {"weights": float(self.weights)})

    def save(self, folder: Path) -> None:
        state = np.array([self.version, self.weights, self.reference])
        np.save(folder / "state.npy", state, allow_pickle=False)

    def restore(self, folder: Path) -> None:
        state = np.load(folder / "state.npy", allow_pickle=False)
        self.version, self.weights, self.reference = map(int, state)


class Delivery:
    """Hands the version number to the policy."""

    def __init__(self, diary: Diary, policy: Policy) -> None:
        self.diary, self.policy = diary, policy

    def deliver(self, version: int) -> SyncReport:
        self.diary.append(f"deliver {version}")
        self.policy.version = version
        return SyncReport(version, 0.0, 0.0)


class Evaluator:
    """Finds the policy a tenth better after each round."""

    def __init__(self, diary: Diary) -> None:
        self.diary = diary

    def measure(self, round: int) -> Evaluation:
        self.diary.append(f"evaluate {round}")
        found = Accuracy(round / 10, {"sort": round / 10})
        return Evaluation(round, found, found)


class Memory:
    """Keeps what a run reports."""

    def __init__(self, diary: Diary) -> None:
        self.diary = diary
        self.waves: list[WaveReport] = []
        self.evaluations: list[Evaluation] = []

    def commit(self, report: WaveReport) -> None:
        self.diary.append(f"commit {report.step}")
        self.waves.append(report)

    def evaluated(self, evaluation: Evaluation) -> None:
        self.evaluations.append(evaluation)


def contexts(prompts: Sequence[Prompt]) -> NDArray[np.float32]:
    """[P, 2] one direction per source."""
    return np.eye(2, dtype=np.float32)[[SOURCES.index(prompt.source) for prompt in prompts]]
