"""Rollout workers: one vLLM engine per Ray actor, and the facade that leases prompts to them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from actors.pool import Tell, WorkerPool, finish, gather
from actors.waiting import CALL_FLOOR_S, limits
from actors.worker import Worker, pooled
from rlhf_ray.config.schema import Rollouts as Settings
from rlhf_ray.config.schema import Timeouts
from rlhf_ray.data.batches import Tokens
from rlhf_ray.data.chat import Chat
from rlhf_ray.errors import RlhfRayError
from rlhf_ray.messages import Prompt, Rollout
from rlhf_ray.scheduling.events import Key


class RolloutActor(Worker):
    """One engine. Weight calls carry the names vLLM's trainer side expects of an actor."""

    def __init__(self, name: str, logs: Path | None, threads: int) -> None:
        super().__init__(name, logs, threads)
        self.engine: Any = None
        self.met, self.delivery = False, 0
        """Which delivery of weights the engine holds; 0: those it started from."""

    def start(self, path: str, settings: Settings, arguments: dict[str, Any]) -> int:
        from rlhf_ray.rollouts.engine import RolloutEngine

        self.engine = RolloutEngine(path, settings, **arguments)
        self.engine.try_out()
        return self.delivery

    def generate(self, *arguments: Any, **options: Any) -> tuple[int, list[Rollout]]:
        return self.delivery, self.engine.generate(*arguments, **options)

    def logprobs(self, sequences: Sequence[Tokens]) -> list[NDArray[np.float32]]:
        found: list[NDArray[np.float32]] = self.engine.logprobs(sequences)
        return found

    def init_weight_transfer_engine(self, request: Any) -> None:
        if self.met:  # with another set of workers: their group is of no more use
            self.engine.llm.shutdown_weight_transfer_engine()
        self.met = True
        self.engine.llm.init_weight_transfer_engine(request)

    def start_weight_update(self) -> None:
        self.delivery = -1  # neither the old weights nor the new ones
        self.engine.llm.start_weight_update()

    def update_weights(self, request: Any) -> None:
        self.engine.llm.update_weights(request)

    def finish_weight_update(self, version: int, delivery: int) -> None:
        self.engine.finish_load(version)
        self.delivery = delivery


class Source(Protocol):
    """Where weights come from."""

    def send(self, workers: Mapping[int, Any], delivery: int) -> Sequence[Any]:
        """References that `arrived` reads."""

    def arrived(self, ref: Any) -> Mapping[int, str | None]: ...
    def overdue(self, seconds: float) -> RlhfRayError | None: ...


class Chunk(NamedTuple):
    """Prompts leased to one worker at a time."""

    purpose: str
    prompts: Sequence[Prompt]
    ids: Sequence[tuple[int, ...]]
    options: Mapping[str, Any]


class RolloutWorkers:
    """What the workers of a pool of engines are."""

    def __init__(
        self,
        name: str,
        path: str,
        settings: Settings,
        arguments: Any,
        logs: Path | None,
        actor: type[RolloutActor] = RolloutActor,
    ) -> None:
        self.name = name
        self.source: Source | None = None
        self._start = (path, settings, arguments)
        self._make = (logs, settings.threads)
        self._remote = pooled(actor, settings.num_cpus, settings.num_gpus)

    def make(self, number: int) -> Any:
        return self._remote.remote(f"{self.name}-{number}", *self._make)

    def start(self, actor: Any, version: int) -> Any:
        """It starts from the first weights, whatever was published since."""
        return actor.start.remote(*self._start)

    def load(self, actors: Mapping[int, Any], version: int) -> Sequence[Any]:
        assert self.source is not None, "nothing was published"
        return self.source.send(actors, version)

    def loaded(self, ref: Any) -> Mapping[int, str | None]:
        assert self.source is not None
        return self.source.arrived(ref)

    def overdue(self, seconds: float) -> RlhfRayError | None:
        assert self.source is not None
        return self.source.overdue(seconds)

    def ask(self, actor: Any, job: Chunk) -> Any:
        return actor.generate.remote(job.purpose, job.prompts, job.ids, **job.options)

    def check(self, job: Chunk, value: Any) -> str | None:
        """Whether these are rollouts of the prompts, as many responses as were asked for."""
        samples = job.options["samples"]
        if not (isinstance(value, list) and all(isinstance(one, Rollout) for one in value)):
            return f"{type(value).__name__} where a list of rollouts was asked"
        if [one.prompt.id for one in value] != [prompt.id for prompt in job.prompts]:
            return "rollouts of other prompts"
        if any(len(one.responses) != samples for one in value):
            return f"not {samples} responses to each prompt"
        for response in (one for rollout in value for one in rollout.responses):
            logprobs = response.logprobs
            if len(logprobs) != len(response.token_ids) or not np.isfinite(logprobs).all():
                return "a response whose tokens have no log-probabilities"
        return None


class Rollouts:
    """All rollout workers as one policy that samples.

    A chunk of prompts is planned before any worker is asked and is the unit of determinism: it
    gives the same bytes on whichever worker it runs.
    """

    def __init__(
        self,
        path: str,
        chat: Chat,
        settings: Settings,
        timeouts: Timeouts,
        *,
        max_model_len: int,
        precision: str,
        backend: str,
        seed: int,
        trust_remote_code: bool = False,
        logs: Path | None = None,
        name: str = "rollout",
        actor: type[RolloutActor] = RolloutActor,
        wanted: Callable[[], int] | None = None,
        tell: Tell = print,
    ) -> None:
        """`wanted`: how many workers there shall be, asked now and then; None: as many as set.
        `tell` hears of workers that died."""
        self.chat, self.settings, self._calls = chat, settings, 0
        arguments = {
            "max_model_len": max_model_len,
            "precision": precision,
            "backend": backend,
            "seed": seed,
            "trust_remote_code": trust_remote_code,
        }
        self.workers = RolloutWorkers(name, path, settings, arguments, logs, actor)
        wait = limits(timeouts, call_s=timeouts.generate_s, floor_s=CALL_FLOOR_S)
        size = wanted() if wanted else settings.fewest
        self.pool = WorkerPool(self.workers, size, wait, tell=tell, wanted=wanted)
        gather([self.pool], settings.fewest, within_s=timeouts.engine_s)

    def generate(
        self, purpose: str, prompts: Sequence[Prompt], *, samples: int, **options: Any
    ) -> list[Rollout]:
        """[P] rollouts in the order of `prompts`, whichever worker sampled them.

        `options` are those of `RolloutEngine.generate`.
        """
        self._calls += 1
        size = self.settings.chunk_prompts
        jobs: dict[Key, Chunk] = {}
        for at in range(0, len(prompts), size):
            part = prompts[at : at + size]
            ids = [self.chat.prompt_ids(prompt.text) for prompt in part]
            named = f"prompts {at} ('{part[0].id}') to {at + len(part) - 1} ('{part[-1].id}')"
            key = f"{purpose}, {named}, call {self._calls}"
            jobs[key] = Chunk(purpose, part, ids, {"samples": samples, **options})
        self.pool.submit(f"{purpose.rstrip('0123456789-')} x {samples}", jobs)
        finish([self.pool])
        return [rollout for chunk in self.pool.take(jobs) for rollout in chunk]

    def publish(self, source: Source) -> None:
        """All workers load what the source holds now, those that come later as well."""
        if source is not self.workers.source:  # what another one sent may still be under way
            self.pool.forget_loads()
        self.workers.source = source
        self.pool.publish()
        gather([self.pool])

    def make_room(self) -> None:
        """Workers that have not started yet wait behind others."""
        self.pool.make_room()

    def stop(self) -> None:
        """End these processes."""
        self.pool.stop()
