"""Judge workers: reward models in Ray actors, and what a pool of them is."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray
from ray.exceptions import RayError

from actors.pool import FETCH_S
from actors.waiting import last_line
from actors.worker import Worker, pooled
from rlhf_ray.config.judges import Judge, JudgeFleet
from rlhf_ray.errors import RlhfRayError
from rlhf_ray.messages import Floats, Judgement, Preference


class JudgeActor(Worker):
    """Holds the judges of its pool; every line of thinking is in `rlhf_ray.rewards`."""

    def __init__(self, name: str, logs: Path | None, threads: int, limit: int | None) -> None:
        super().__init__(name, logs, threads)
        from rlhf_ray.rewards.shelf import Shelf

        self.judges: Shelf[Any] = Shelf(limit)
        self.editions: dict[str, int] = {}
        self.version = -1
        """Which change of its judges' weights it holds."""

    def load(self, judges: Sequence["Edition"], options: dict[str, Any], version: int) -> int:
        """Hold these judges and no others, each loaded once: what cannot be is said now. One that
        is held already takes its new weights in place; of the same edition, it stays as it is."""
        from rlhf_ray.rewards.build import build_judge
        from rlhf_ray.rewards.shelf import weights_bytes

        self.version = -1
        for name in set(self.editions) - {one.judge for one in judges}:
            del self.editions[name]
            self.judges.remove(name)
        for name, entry, path, edition in judges:
            if self.editions.get(name) == edition:
                continue
            make = partial(build_judge, name, entry, path, **options)
            self.judges.register(name, make, weights_bytes(path))
            if name in self.judges.held:
                self.judges.get(name).load(path)
            else:
                self.judges.get(name)
            self.editions[name] = edition
        self.version = version
        return version

    def score(self, name: str, *arguments: Any) -> tuple[int, Judgement]:
        return self.version, self.judges.get(name).score(*arguments)

    def margins(self, name: str, pairs: Sequence[Preference]) -> tuple[int, Floats]:
        return self.version, self.judges.get(name).margins(pairs)


class Edition(NamedTuple):
    """A judge with its weights."""

    judge: str
    entry: Judge
    path: str | None
    number: int
    """Counts how often the judge was given weights: one path may hold others later."""


class Ask(NamedTuple):
    """A call on a judge: one chunk of prompts, or pairs."""

    method: str
    judge: str
    arguments: tuple[Any, ...]


class Home:
    """What the workers of one pool are: each holds the same judges."""

    def __init__(
        self,
        number: int,
        settings: JudgeFleet,
        options: dict[str, Any],
        logs: Path | None,
    ) -> None:
        self.name, self.number, self.options = f"judge {number}", number, options
        self.editions: list[Edition] = []
        """The judges that live here."""
        limit = int(settings.memory_gib * 2**30) if settings.memory_gib else None
        self._make = (logs, settings.threads, limit)
        self._remote = pooled(JudgeActor, settings.num_cpus, settings.num_gpus)
        self._loading: dict[Any, tuple[int, int]] = {}

    def make(self, number: int) -> Any:
        again = f"-{number}" if number else ""
        return self._remote.remote(f"judge-{self.number}{again}", *self._make)

    def start(self, actor: Any, version: int) -> Any:
        return actor.load.remote(self.editions, self.options, version)

    def load(self, actors: Mapping[int, Any], version: int) -> Sequence[Any]:
        refs = {self.start(actor, version): (number, version) for number, actor in actors.items()}
        self._loading |= refs
        return list(refs)

    def loaded(self, ref: Any) -> Mapping[int, str | None]:
        number, version = self._loading.pop(ref)
        try:
            holds = ray.get(ref, timeout=FETCH_S)
        except RlhfRayError:
            raise
        except RayError as error:
            return {number: last_line(error)}
        return {number: None if holds == version else f"it holds {holds} after loading {version}"}

    def overdue(self, seconds: float) -> RlhfRayError | None:
        """Nobody else takes part in a load: the worker's own limit ends it."""
        return None

    def ask(self, actor: Any, job: Ask) -> Any:
        return getattr(actor, job.method).remote(job.judge, *job.arguments)

    def check(self, job: Ask, value: Any) -> str | None:
        """Whether these are scores of what was asked about, and each that is missing has a reason.

        A margin may be NaN: the pair is too long.
        """
        asked: tuple[int, ...]
        kind: type[Any] = np.ndarray if job.method == "margins" else Judgement
        if not isinstance(value, kind):
            return f"{type(value).__name__} where {kind.__name__} was asked"
        if job.method == "margins":
            (pairs,) = job.arguments
            asked, values, failed = (len(pairs),), value, int(np.isnan(value).sum())
        else:
            prompts, responses, *_ = job.arguments
            asked, values = (len(prompts), len(responses[0])), value.values
            failed = sum(value.failures.values())
        if values.shape != asked:
            return f"values of shape {values.shape} where {asked} was asked"
        missing = int((~np.isfinite(values)).sum())
        if missing != failed:
            return f"{missing} values that are not finite, {failed} have a reason"
        return None
