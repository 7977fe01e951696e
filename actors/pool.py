"""The loop around a worker pool: what the state machine orders is done on Ray, and what comes of
it is said. Nothing is decided here (`rlhf_ray.scheduling` does), and there is one thread.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
)

from actors.cluster import draining
from actors.waiting import last_line, resources
from rlhf_ray.errors import ClusterUnavailable, LearnersLost, RlhfRayError
from rlhf_ray.scheduling.crew import State
from rlhf_ray.scheduling.events import (
    Action,
    Death,
    Deliver,
    Died,
    Drain,
    Event,
    Fail,
    Failed,
    Fault,
    Key,
    Kill,
    Lease,
    Leaving,
    Load,
    Loaded,
    Ping,
    Pong,
    Publish,
    Result,
    Scale,
    Start,
    Started,
    Submit,
    Tick,
)
from rlhf_ray.scheduling.limits import Limits
from rlhf_ray.scheduling.pool import Pool

FETCH_S = 120.0
"""For the bytes of a result that is there, from whichever node it lies on."""
LOOK_S = 5.0
"""Between two looks at which nodes go away and how many workers are wanted."""


Tell = Callable[[str], None]
"""Shows a line to who watches the run."""


class Workers(Protocol):
    """What the workers of a pool are. `start`, `load` and `ask` return references."""

    name: str

    def make(self, number: int) -> Any:
        """A new actor; it has `ping`, in a concurrency group of its own."""

    def start(self, actor: Any, version: int) -> Any:
        """To the version it holds once it can work: the one that is published, or an older one."""

    def load(self, actors: Mapping[int, Any], version: int) -> Sequence[Any]:
        """For all of them at once; `loaded` reads each."""

    def loaded(self, ref: Any) -> Mapping[int, str | None]:
        """{worker: None, or why it does not hold the version}. Raises where none of them does."""

    def overdue(self, seconds: float) -> RlhfRayError | None:
        """What to raise where a load that has lasted so long will not end by itself."""

    def ask(self, actor: Any, job: Any) -> Any:
        """To (version it was done with, value)."""

    def check(self, job: Any, value: Any) -> str | None:
        """Why this cannot be what was asked for."""


class WorkerPool:
    """Some workers, of which each may die, hang or be taken away while jobs are done."""

    def __init__(
        self,
        workers: Workers,
        size: int,
        limits: Limits,
        *,
        tell: Tell,
        wanted: Callable[[], int] | None = None,
    ) -> None:
        """`tell` hears of workers that died; `wanted` is asked now and then for another size."""
        self.workers, self.size, self.limits, self.wanted = workers, size, limits, wanted
        self.tell = tell
        self.version = 0
        """Counts what was published; what a version holds is the workers' business."""
        self._begin()

    def _begin(self) -> None:
        self.pool = Pool(self.limits, self.version)
        self.actors: dict[int, Any] = {}
        self.calls: dict[Any, Callable[[Any], None]] = {}
        self.jobs: dict[Key, Any] = {}
        self.done: dict[Key, Any] = {}
        self.nodes: dict[int, str] = {}
        self._to_load: list[int] = []
        self._loads: dict[Any, float] = {}
        self._looked, self._told = time.monotonic(), 0
        self.say(Scale(self.size))

    def submit(self, kind: str, jobs: Mapping[Key, Any]) -> None:
        """Have jobs done, in this order; `finish` waits for them."""
        self.jobs |= jobs
        self.say(Submit(kind, tuple(jobs)))

    def publish(self) -> None:
        """All workers shall load what there is to load now.

        Work of a run that lost its learners may be left; the workers that hold it start anew.
        """
        self.version += 1
        self.done = {}
        if self.pool.work.left:
            self.stop()
            self._begin()
        else:
            self.say(Publish(self.version))

    def stop(self) -> None:
        """End all processes."""
        for actor in self.actors.values():
            ray.kill(actor)
        self.actors = {}

    @property
    def busy(self) -> bool:
        """Whether jobs are left to be done."""
        return self.pool.work.left > 0

    def late(self, needed: int) -> bool:
        """Whether weights are on their way, or fewer than `needed` workers are ready for jobs.

        Workers that start are not waited for: there may be no room for them.
        """
        crew = self.pool.crew
        ready = sum(
            worker.state is State.READY and worker.version == crew.version
            for worker in crew.workers.values()
        )
        loading = any(worker.state is State.WARM for worker in crew.workers.values())
        return loading or ready < min(needed, max(1, crew.open_slots()))

    def take(self, keys: Iterable[Key]) -> list[Any]:
        """What came of jobs that are done; it is not kept."""
        return [self.done.pop(key) for key in keys]

    def hear(self) -> None:
        """Say all that has happened, then that time has passed.

        Raises what ends the wait: errors of ours from workers, and what the pool ends with.
        """
        try:
            self._hear()
        except LearnersLost:
            self._forget_loads()
            raise

    def _hear(self) -> None:
        ready, _ = ray.wait(list(self.calls), num_returns=len(self.calls), timeout=0) \
            if self.calls else ([], [])  # fmt: skip
        for ref in ready:
            self.calls.pop(ref)(ref)
        self._look()
        self._end_loads()
        self.say(Tick())
        self._load()

    def say(self, event: Event) -> None:
        """Raises what the pool ends with."""
        actions = self.pool.step(time.monotonic(), event)
        for action in actions:
            self._do(action)
        self._tell_deaths()

    def _tell_deaths(self) -> None:
        crew = self.pool.crew
        deaths = crew.deaths.total() - crew.deaths[Death.DRAINED]
        new, self._told = deaths - self._told, deaths
        for death in list(crew.last_deaths)[-new:] if new else ():
            self.tell(f"{self.workers.name} {death}")

    def _do(self, action: Action) -> None:
        match action:
            case Start(number):
                actor = self.actors[number] = self.workers.make(number)
                ready = self.workers.start(actor, self.version)
                self._call(ready, number, lambda version: Started(number, version))
            case Load(number):
                self._to_load.append(number)
            case Ping(number):
                self._call(self.actors[number].ping.remote(), number, self._pong(number))
            case Lease(number, key):
                job = self.jobs[key]
                self._call(
                    self.workers.ask(self.actors[number], job), number,
                    lambda found: self._result(number, key, job, found), key,
                )  # fmt: skip
            case Kill(number):
                ray.kill(self.actors.pop(number))  # its calls come back as its death
            case Deliver(key, value):
                del self.jobs[key]
                self.done[key] = value
            case Fail(error):
                raise type(error)(f"{self.workers.name} workers: {error}")
            case Drain():
                pass  # nothing to be done: it is given no more jobs

    def _call(
        self, ref: Any, number: int, event: Callable[[Any], Event], key: Key | None = None
    ) -> None:
        def hear(ready: Any) -> None:
            try:
                found = ray.get(ready, timeout=FETCH_S)
            except (RayError, GetTimeoutError) as error:
                self._gone(number, error)
                self.say(told(number, error, key))
            else:
                self.say(event(found))

        self.calls[ref] = hear

    def _gone(self, number: int, error: Exception) -> None:
        if isinstance(error, ActorDiedError | OutOfMemoryError):
            self.actors.pop(number, None)

    def _pong(self, number: int) -> Callable[[str], Event]:
        def event(node: str) -> Event:
            self.nodes[number] = node
            return Pong(number)

        return event

    def _result(self, number: int, key: Key, job: Any, found: tuple[int, Any]) -> Event:
        version, value = found
        wrong = self.workers.check(job, value)
        if wrong is not None:
            return Failed(number, Fault.INFRA, f"it answered {wrong}", key)
        return Result(number, key, version, value)

    def _load(self) -> None:
        """One delivery for all that wait for weights."""
        actors = {number: self.actors[number] for number in self._to_load if number in self.actors}
        self._to_load, version = [], self.pool.crew.version
        if not actors:
            return

        def hear(ready: Any) -> None:
            for number, why in self.workers.loaded(ready).items():
                self.say(
                    Loaded(number, version) if why is None else Failed(number, Fault.INFRA, why)
                )

        for ref in self.workers.load(actors, version):
            self.calls[ref], self._loads[ref] = hear, time.monotonic()

    def _end_loads(self) -> None:
        """Loads that hang where no limit of a worker sees it: in who sends the weights."""
        self._loads = {ref: began for ref, began in self._loads.items() if ref in self.calls}
        for began in self._loads.values():
            if (error := self.workers.overdue(time.monotonic() - began)) is not None:
                raise error

    def _forget_loads(self) -> None:
        """Who sends the weights is lost: nobody knows what the workers hold that waited for them,
        and no other answer of the lost one shall be heard."""
        for ref in self._loads:
            self.calls.pop(ref, None)
        self._loads = {}
        for worker in list(self.pool.crew.workers.values()):
            if worker.state is State.WARM:
                self.say(Failed(worker.number, Fault.INFRA, "its weights did not come"))

    def _look(self) -> None:
        now = time.monotonic()
        if now < self._looked + LOOK_S:
            return
        self._looked = now
        leaving = draining()
        for number, node in list(self.nodes.items()):
            if number not in self.actors:
                del self.nodes[number]
            elif node in leaving:
                self.say(Leaving(number, leaving[node]))
        if self.wanted is not None and (size := self.wanted()) != self.size:
            self.size = size
            self.say(Scale(size))


def finish(pools: Iterable[WorkerPool]) -> None:
    """Until all submitted jobs are done. The pools' own limits end it otherwise."""
    busy = list(pools)
    while busy := [pool for pool in busy if pool.busy]:
        turn(busy)


def gather(pools: Sequence[WorkerPool], needed: int = 1) -> None:
    """Until as many workers of each pool as are needed hold what was published last.

    Raises ClusterUnavailable where that takes longer than a pool may be short of workers.
    """
    ends = time.monotonic() + max(pool.limits.short_s for pool in pools)
    for pool in pools:
        pool.hear()
    while late := [pool for pool in pools if pool.late(needed)]:
        if time.monotonic() > ends:
            deaths = [death for pool in late for death in pool.pool.crew.last_deaths]
            raise ClusterUnavailable(
                f"too few {late[0].workers.name} workers were ready after "
                f"{late[0].limits.short_s:g} s ({resources()}); the last that died: "
                f"{'; '.join(deaths) or 'none'}. timeouts.engine_s is what one may take"
            )
        turn(late)


def turn(pools: Sequence[WorkerPool]) -> None:
    """Wait until something has happened in one of the pools, at most as long as a tick."""
    tick_s = min(pool.limits.tick_s for pool in pools)
    calls = [ref for pool in pools for ref in pool.calls]
    if calls:
        ray.wait(calls, num_returns=1, timeout=tick_s)
    else:
        time.sleep(tick_s)
    for pool in pools:
        pool.hear()


def told(worker: int, error: Exception, key: Key | None) -> Event:
    """What a call that failed says about its worker. Raises errors that are for the user."""
    if isinstance(error, RlhfRayError):
        raise error
    why = last_line(error)
    match error:
        case OutOfMemoryError():
            return Died(worker, Death.OUT_OF_MEMORY, why)
        case ActorDiedError() if error.preempted:
            return Died(worker, Death.PREEMPTED, why)
        case ActorDiedError() if error.actor_init_failed:
            return Died(worker, Death.INIT_FAILED, why)
        case ActorDiedError():
            return Died(worker, Death.INFRA, why)
        case ActorUnavailableError() | GetTimeoutError():
            return Failed(worker, Fault.INFRA, why, key)
        case RayTaskError():  # its own code raised: the next one might raise as well
            return Failed(worker, Fault.DATA, why, key)
    return Failed(worker, Fault.INFRA, why, key)
