"""The judges of a run as one, the facade the driver holds: it asks those a prompt was given to.

Judges that live together share a pool of workers. A judge's prompts are cut into chunks before any
worker is asked; a chunk gives the same scores on whichever of the judge's replicas it runs.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from actors.judge import Ask, Edition, Home
from actors.pool import Tell, WorkerPool, finish, gather
from actors.waiting import limits
from rlhf_ray.config.judges import Critic, Judge, JudgeFleet
from rlhf_ray.config.schema import Timeouts
from rlhf_ray.errors import BadData, ClusterUnavailable
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
from rlhf_ray.scheduling.homes import homes

PAIRS = 256
"""Of one ask. As many however many replicas there are: a batch of others may round otherwise."""


class Judges:
    """The judges on their workers, which may die, hang, come and go."""

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
        """`wanted`: how many workers there shall be from the next scores on; None: as many as set.
        `tell` hears of workers that died."""
        self.names, self.chunk, self._calls = tuple(entries), settings.chunk_prompts, 0
        self.editions = {
            name: Edition(name, entry, paths.get(name), 0) for name, entry in entries.items()
        }
        self.replicas = {name: getattr(entry, "replicas", 1) for name, entry in entries.items()}
        options = {
            "tokens_per_batch": settings.tokens_per_batch,
            "critic": critic,
            "num_gpus": settings.num_gpus,
            "precision": settings.precision,
        }
        # No chunk is late before its limit: a service may try again for longer than usual.
        wait_s = timeouts.score_s
        self._wanted = wanted or (lambda: settings.workers)
        self._home = partial(Home, settings=settings, options=options, logs=logs)
        self._pool: Callable[..., WorkerPool[Home]] = partial(
            WorkerPool, limits=limits(timeouts, call_s=wait_s, floor_s=wait_s), tell=tell
        )
        self.size, self.tell, self.start_s = 0, tell, timeouts.engine_s
        self.made = 0
        """Pools so far, which are numbered."""
        self.pools: dict[tuple[str, ...], WorkerPool[Home]] = {}
        """By the judges that live there."""
        self._fit()

    def make_room(self) -> None:
        """Workers that have not started yet wait behind others."""
        for pool in self.pools.values():
            pool.make_room()

    def _fit(self) -> None:
        """As many workers as are wanted now, with the judges that belong there.

        Where there is no room for judges on workers of their own, all stay where they are; where
        there is none for more workers with the same judges, these wait and hold nobody up.
        """
        try:
            size = self._wanted()
        except BadData as error:  # an order that cannot be read ends no run
            if not self.pools:
                raise
            self.tell(str(error))
            return
        if size == self.size:
            return
        self.size, wanted = size, homes(self.replicas, size)
        # Workers may change their judges, which is faster than a start.
        free = [pool for names, pool in self.pools.items() if names not in wanted]
        old = {names: self.pools[names] for names in wanted if names in self.pools}
        old |= dict(zip([names for names in wanted if names not in old], free, strict=False))
        before = {names: pool.size for names, pool in old.items()}
        for names, pool in old.items():  # who goes makes room for who comes
            pool.scale(min(pool.size, wanted[names]))
        new = {names: self._made(names, wanted[names]) for names in wanted if names not in old}
        if new and not self._ready(new):
            for names, pool in old.items():
                pool.scale(before[names])
            return
        for pool in self.pools.values():
            if pool not in old.values():
                pool.stop()
        self.pools = {names: old.get(names) or new[names] for names in wanted}
        for names, pool in old.items():
            pool.scale(wanted[names])
            self._publish(names)
        if old:
            gather(list(old.values()))

    def _made(self, names: tuple[str, ...], workers: int) -> WorkerPool[Home]:
        home = self._home(self.made)
        home.editions = [self.editions[name] for name in names]
        self.made += 1
        return self._pool(home, workers)

    def _ready(self, new: Mapping[tuple[str, ...], WorkerPool[Home]]) -> bool:
        """Whether each new pool has got a worker; where one has none, all of them are gone again.

        Raises ClusterUnavailable where there are no others.
        """
        if self.pools:
            self.tell(f"{self.size} judge workers were ordered; the run waits for new ones to load")
        try:
            gather(list(new.values()), within_s=self.start_s if self.pools else None)
        except ClusterUnavailable as error:
            for pool in new.values():
                pool.stop()
            if not self.pools:
                raise
            self.tell(f"judges stay where they are, {self.size} workers were ordered: {error}")
            return False
        return True

    def _publish(self, names: tuple[str, ...]) -> None:
        """The judges of a pool as they are now, to all its workers."""
        self.pools[names].workers.editions = [self.editions[name] for name in names]
        self.pools[names].publish()

    def score(
        self, step: Step, choices: Choices, rollouts: Sequence[Rollout], critiques: Critiques
    ) -> Scores:
        """Raw scores of the judges that were asked, NaN elsewhere and where one failed.

        Raises JudgeFailed when a judge errs.
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
            arm = self.names.index(name)
            values[arm, asked[name]] = np.concatenate([part.values for part in found])
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
        held = [names for names in self.pools if name in names]
        for names in held:
            self._publish(names)
        gather([self.pools[names] for names in held])

    def path(self, name: str) -> str | None:
        """The weights of a judge that are in use."""
        return self.editions[name].path

    def _answers(self, asks: Mapping[str, Sequence[Ask]]) -> dict[str, list[Any]]:
        """What each judge answers, in the order it was asked."""
        self._calls += 1
        asked: dict[str, list[tuple[WorkerPool[Home], Key]]] = {}
        for name, parts in asks.items():
            pools, what = self._turns(name), f"{parts[0].method} of judge '{name}'"
            asked[name] = [
                (pools[at % len(pools)], f"{what}, part {at}, call {self._calls}")
                for at in range(len(parts))
            ]
            for (pool, key), ask in zip(asked[name], parts, strict=True):
                pool.submit(what, {key: ask})
        finish(self.pools.values())
        return {
            name: [pool.take([key])[0] for pool, key in places] for name, places in asked.items()
        }

    def _turns(self, name: str) -> list[WorkerPool[Home]]:
        """Where a judge lives: a pool once for each of its workers."""
        pools = self.pools.items()
        return [pool for names, pool in pools if name in names for _ in range(pool.size)]

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
