"""Judge workers: reward models in Ray actors, and the pool the driver asks."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray
from ray.exceptions import RayError

from actors.pool import FETCH_S, Tell, WorkerPool, finish, gather
from actors.waiting import last_line, limits, log_to
from rlhf_ray.config.judges import Critic, Judge, JudgeFleet
from rlhf_ray.config.schema import Timeouts
from rlhf_ray.errors import BadData, ClusterUnavailable, JudgeFailed, RlhfRayError
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
from rlhf_ray.scheduling.events import Key

PAIRS = 256
"""Of one ask. As many however many replicas there are: a batch of others may round otherwise."""


class JudgeActor:
    """Holds some judges of the pool; every line of thinking is in `rlhf_ray.rewards`."""

    def __init__(self, name: str, logs: Path | None, threads: int, limit: int | None) -> None:
        log_to(logs, name, threads)
        from rlhf_ray.rewards.shelf import Shelf

        self.judges: Shelf[Any] = Shelf(limit)
        self.editions: dict[str, int] = {}
        self.version = -1
        """Which change of its judges' weights it holds."""

    @ray.method(concurrency_group="health")  # type: ignore[untyped-decorator]
    def ping(self) -> str:
        """The node it lives on; answers beside whatever the judges do."""
        return str(ray.get_runtime_context().get_node_id())

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


class Place:
    """What the workers of one place in the pool are: each holds the same judges."""

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
        self._remote: Any = ray.remote(
            num_cpus=settings.num_cpus,
            num_gpus=settings.num_gpus,
            concurrency_groups={"health": 1},
        )(JudgeActor)
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
        """Nothing: what a judge may say is its own business (`Judges.score` looks)."""
        return None


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
        wanted: Callable[[], int] | None = None,
        tell: Tell = print,
    ) -> None:
        """`wanted`: how many places there shall be from the next scores on; None: as many as set.
        `tell` hears of workers that died."""
        self.names, self.chunk, self._calls = tuple(entries), settings.chunk_prompts, 0
        self.editions = {
            name: Edition(name, entry, paths.get(name), 0) for name, entry in entries.items()
        }
        options = {
            "tokens_per_batch": settings.tokens_per_batch,
            "critic": critic,
            "num_gpus": settings.num_gpus,
            "precision": settings.precision,
        }
        # No chunk is late before its limit: a service may try again for longer than usual.
        wait_s = timeouts.score_s
        self._wanted = wanted or (lambda: settings.workers)
        self._place = partial(Place, settings=settings, options=options, logs=logs)
        self._pool = partial(
            WorkerPool, size=1, limits=limits(timeouts, call_s=wait_s, floor_s=wait_s), tell=tell
        )
        self.size, self.tell, self.start_s = 0, tell, timeouts.engine_s
        self.homes: dict[str, list[int]] = {}
        """The places that hold each judge."""
        self.places: list[Place] = []
        self.pools: list[WorkerPool] = []
        self._fit()

    def make_room(self) -> None:
        """Workers that have not started yet wait behind others."""
        for pool in self.pools:
            pool.make_room()

    def _fit(self) -> None:
        """As many places as are wanted now, with the judges that belong there.

        Where there is no room for more, judges stay where they are.
        """
        first = not self.size
        try:
            size = self._wanted()
        except BadData as error:  # an order that cannot be read ends no run
            if first:
                raise
            self.tell(str(error))
            return
        if size == self.size:
            return
        self.size = size
        homes = places({name: one.entry for name, one in self.editions.items()}, size)
        count = 1 + max(number for home in homes.values() for number in home)
        more = [self._place(number) for number in range(len(self.places), count)]
        for place in more:
            self._shelve(place, homes)
        pools = [self._pool(place) for place in more]
        try:
            gather(pools, within_s=None if first else self.start_s) if pools else None
        except ClusterUnavailable as error:
            for pool in pools:
                pool.stop()
            if first:
                raise
            self.tell(f"judges stay on {len(self.pools)} workers, {size} were ordered: {error}")
            return
        self.homes, old = homes, self.pools[:count]
        for pool in self.pools[count:]:
            pool.stop()
        self.places, self.pools = [*self.places[:count], *more], [*old, *pools]
        for place, pool in zip(self.places, old, strict=False):
            self._shelve(place, homes)
            pool.publish()
        if old:
            gather(old)

    def _shelve(self, place: Place, homes: Mapping[str, Sequence[int]]) -> None:
        place.editions = [one for name, one in self.editions.items() if place.number in homes[name]]

    def score(
        self, step: Step, choices: Choices, rollouts: Sequence[Rollout], critiques: Critiques
    ) -> Scores:
        """Raw scores of the judges that were asked, NaN elsewhere and where one failed.

        Raises JudgeFailed when a judge errs, or answers in another shape.
        """
        began = time.perf_counter()
        self._fit()
        width = len(rollouts[0].responses)
        values = np.full((len(self.names), len(rollouts), width), np.nan)
        asked = {
            name: np.flatnonzero(choices.asked[:, arm]).tolist()
            for arm, name in enumerate(self.names)
            if choices.asked[:, arm].any()
        }
        answers = self._answers(
            {name: self._chunks(name, rows, rollouts, critiques) for name, rows in asked.items()}
        )
        costs = {}
        for name, found in answers.items():
            whole = np.concatenate([part.values for part in found])
            _check(name, whole, (len(asked[name]), width), _failures(found))
            values[self.names.index(name), asked[name]] = whole
            costs[name] = merged(found)
        # Sorted, as the journal gives them back.
        return Scores(values, dict(sorted(costs.items())), time.perf_counter() - began)

    def margins(self, name: str, pairs: Sequence[Preference]) -> Floats:
        """[N] how far a judge prefers the chosen response of each pair; NaN: too long for it."""
        parts = [pairs[at : at + PAIRS] for at in range(0, len(pairs), PAIRS)]
        asks = [Ask("margins", name, (part,)) for part in parts]
        return np.concatenate(self._answers({name: asks})[name])

    def replace(self, name: str, path: str) -> None:
        """New weights for a judge, in all its replicas. The same path may hold other weights."""
        old = self.editions[name]
        self.editions[name] = old._replace(path=path, number=old.number + 1)
        for number in self.homes[name]:
            self._shelve(self.places[number], self.homes)
            self.pools[number].publish()
        gather([self.pools[number] for number in self.homes[name]])

    def path(self, name: str) -> str | None:
        """The weights of a judge that are in use."""
        return self.editions[name].path

    def _answers(self, asks: Mapping[str, Sequence[Ask]]) -> dict[str, list[Any]]:
        """What each judge answers, in the order it was asked; its asks go to its homes in turn."""
        self._calls += 1
        keys: dict[str, list[Key]] = {}
        for name, parts in asks.items():
            homes = self.homes[name]
            what = f"{parts[0].method} of judge '{name}'"
            keys[name] = [f"{what}, part {at}, call {self._calls}" for at in range(len(parts))]
            for at, (key, ask) in enumerate(zip(keys[name], parts, strict=True)):
                self.pools[homes[at % len(homes)]].submit(what, {key: ask})
        finish(self.pools)
        return {
            name: [
                self.pools[self.homes[name][at % len(self.homes[name])]].take([key])[0]
                for at, key in enumerate(own)
            ]
            for name, own in keys.items()
        }

    def _chunks(
        self, name: str, rows: Sequence[int], rollouts: Sequence[Rollout], critiques: Critiques
    ) -> list[Ask]:
        """The judge's prompts in pieces, in row order."""
        asks = []
        for at in range(0, len(rows), self.chunk):
            part = [rollouts[row] for row in rows[at : at + self.chunk]]
            arguments = (
                [one.prompt for one in part],
                [[response.text for response in one.responses] for one in part],
                [critiques.texts[row] for row in rows[at : at + self.chunk]],
                [one.reference for one in part],
            )
            asks.append(Ask("score", name, arguments))
        return asks


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
