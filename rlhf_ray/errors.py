"""Every error a user can cause.

    RlhfRayError
    ├── RecipeError           the recipe asks for something that cannot be          exit 78
    ├── BadData               a data file, model folder or run folder is unusable   exit 65
    │   └── JudgeFailed       a reward model gave no usable score
    ├── WeightSyncMismatch    a rollout worker does not hold the learner's weights  exit 65
    ├── ClusterUnavailable    Ray, a node or an engine did not answer in time       exit 69
    │   └── LearnersLost      a learner rank died or hangs: the gang starts anew
    ├── StorageFailed         the run folder cannot be written                      exit 74
    └── TakenOver             another driver goes on with the run (durable/attempts)  exit 75

Each takes plain arguments and passes all of them to `super().__init__`: an exception that
crosses a Ray actor is rebuilt from its `args`.
"""

from typing import ClassVar

STOPPED = 75
"""Exit code of a run that was stopped and can be continued (EX_TEMPFAIL)."""


class RlhfRayError(Exception):
    """What was asked, where, why it cannot be, and what to do: one line for a person."""

    exit_code: ClassVar[int] = 70


def in_words(error: Exception) -> str:
    """What an error tells a person: one from a worker also carries its traceback, and its cause is
    what is needed."""
    return str(getattr(error, "cause", error))


class RecipeError(RlhfRayError):
    exit_code = 78


class BadData(RlhfRayError):
    exit_code = 65


class JudgeFailed(BadData):
    def __init__(self, judge: str, why: str) -> None:
        super().__init__(judge, why)

    def __str__(self) -> str:
        return f"judge '{self.args[0]}' failed: {self.args[1]}"


class WeightSyncMismatch(RlhfRayError):
    exit_code = 65

    def __init__(self, worker: str, version: int, difference: float, tolerance: float) -> None:
        super().__init__(worker, version, difference, tolerance)

    def __str__(self) -> str:
        worker, version, difference, tolerance = self.args
        return (
            f"after loading policy version {version}, {worker} differs from the learner by "
            f"{difference:.2e} in log-probability (allowed: {tolerance:.0e}); "
            "check weights.tolerance against the precision of both sides"
        )


class ClusterUnavailable(RlhfRayError):
    exit_code = 69


class LearnersLost(ClusterUnavailable):
    """The last commit is not touched: a new gang goes on from there."""


class StorageFailed(RlhfRayError):
    exit_code = 74
