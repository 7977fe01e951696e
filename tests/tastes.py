"""Learners and data for judges whose folder holds their taste: the letters from best to worst.

What makes judges and refreshes them is then tested without training: only its result is given.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_ray.messages import Floats, Preference, Prompt, Response, Rollout

NAN = float("nan")


def duel(chosen: str, rejected: str, prompt: str = "ask=") -> Preference:
    return Preference(f"{chosen}{rejected}", prompt, chosen, rejected, "sort")


class Letters:
    """Every response is a letter, and `a` beats `b` beats `c` beats `d`; and more pairs, if given,
    to train on, to examine with, and to write in stage 1."""

    def __init__(
        self,
        train: Sequence[Preference] = (),
        held_out: Sequence[Preference] = (),
        unlabelled: Sequence[Preference] = (),
    ) -> None:
        self.train = [duel("a", "d"), duel("b", "d"), *train]
        self.held_out = [duel("a", "b"), duel("c", "d"), *held_out]
        self.unlabelled = unlabelled

    def fresh(self, round: int, size: int) -> list[Prompt]:
        return [Prompt(f"{round}-{n}", "ask=", "sort") for n in range(size)]

    def preferences(self, settings: Any, sample: Any) -> tuple[list[Preference], list[Preference]]:
        return self.train, self.held_out

    def corpus(self, settings: Any, pairs: Sequence[Preference]) -> list[Preference]:
        return [*pairs, *self.unlabelled]

    def verified(
        self, settings: Any, rollouts: Sequence[Rollout], *, truth: bool
    ) -> list[Preference]:
        return [duel("b", "c"), duel("a", "d")]

    def fingerprint(self, settings: Any) -> str:
        return repr((self.train, self.held_out, self.unlabelled))

    def files(self, judge: Any, critic: Any) -> list[str]:
        return []


class Gang:
    """Teaches the model of each training the next taste, in two steps."""

    def __init__(self, *tastes: str) -> None:
        self.tastes, self.done = list(tastes), 0

    def begin(self, build: Callable[[int, int], Any]) -> None:
        self.done = 0

    def advance(self, steps: int) -> dict[str, float]:
        self.done += steps
        return {"steps": self.done, "loss": 0.0}

    def margins(self, items: Sequence[Any]) -> Floats:
        return np.ones(len(items))

    def notes(self) -> dict[str, float]:
        return {"J_first": 0.25, "J_last": 0.5}

    def export(self, folder: Path, tokenizer: str, *, trust_remote_code: bool) -> None:
        shutil.copytree(tokenizer, folder)
        (folder / "taste").write_text(self.tastes.pop(0))

    def end(self) -> None:
        assert self.done == 2


def preferred(taste: str, pairs: Sequence[Preference]) -> Floats:
    """[N] by how many places the chosen letter is better; NaN for one without a place."""
    places = {letter: float(place) for place, letter in enumerate(taste)}
    return np.array([places.get(one.rejected, NAN) - places.get(one.chosen, NAN) for one in pairs])


def generate(step: str, prompts: Sequence[Prompt], *, samples: int) -> list[Rollout]:
    responses = tuple(Response(one, (), np.zeros(0), True) for one in "abcd"[:samples])
    return [Rollout(prompt, (1,), responses, 0) for prompt in prompts]
