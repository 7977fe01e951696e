"""Shared by all tests: where the repository is, and a demo small enough for a test."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")

ROOT = Path(__file__).parent.parent
TINY = [
    "policy.supervised.steps=40",
    "policy.supervised.batch_size=32",
    *(
        f"judges.{family}_judge.train.{key}"
        for family in ("sort", "reverse", "rotate", "swap")
        for key in (
            "steps=10", "preferences.prompts_per_family=10", "preferences.samples=4",
        )
    ),
    "rollouts.responses=4",
    "rollouts.chunk_prompts=8",
    "loop.rounds=2",
    "loop.waves=2",
    "loop.prompts=16",
    "loop.warm_waves=1",
    "context.sample=48",
    "evaluate.prompts=16",
    "evaluate.samples=1",
]  # fmt: skip
"""Overrides that shrink configs/demo.yaml to seconds of work on the same engines."""

# A shell that starts tests in the background has Ctrl-C ignored, in them and all they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

SMALL_LOOP = [
    "policy.supervised.steps=40", "policy.supervised.batch_size=32", "rollouts.responses=4",
    "rollouts.chunk_prompts=8", "loop.rounds=2", "loop.waves=2", "loop.prompts=16",
    "loop.warm_waves=1", "context.sample=48", "evaluate.prompts=16", "evaluate.samples=1",
]  # fmt: skip
"""Overrides that shrink any recipe on generated data."""


def small_judge(name: str) -> list[str]:
    """Overrides that shrink the training of one judge."""
    train = f"judges.{name}.train"
    return [f"{train}.steps=10", f"{train}.preferences.prompts_per_family=10",
            f"{train}.preferences.samples=4"]  # fmt: skip


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models made by tests are shared among them and leave the user's cache alone."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["RLHF_RAY_CACHE"] = str(folder)
    os.environ.pop("RAY_ADDRESS", None)
    return folder
