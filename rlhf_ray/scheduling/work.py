"""Chunks from plan to delivery: PENDING -> LEASED -> DONE or POISON, delivered in planned order."""

from collections import deque
from collections.abc import Iterator
from enum import StrEnum
from heapq import heappop, heappush
from typing import Any

from rlhf_ray.scheduling.events import Key, Submit


class Stage(StrEnum):
    PENDING = "pending"
    LEASED = "leased"
    DONE = "done"
    POISON = "poison"


class Chunk:
    """One chunk between its first lease and its delivery."""

    __slots__ = (
        "avoid", "blamed", "copies", "faults", "key", "kind", "leases", "place", "stage", "value",
    )  # fmt: skip

    def __init__(self, key: Key, kind: str, place: int) -> None:
        self.key, self.kind, self.place = key, kind, place
        self.stage, self.value = Stage.PENDING, None
        self.copies = self.leases = 0  # workers that hold it now, and that ever did
        self.faults: tuple[str, ...] = ()
        self.blamed = False
        """Whether one of the faults was more than a process that was gone."""
        self.avoid: tuple[int, ...] = ()
        """Workers that said its data was at fault: another one shall confirm it."""


class Work:
    """All chunks that are not delivered. Those never begun are no more than keys of the plan, so
    what is held grows with what is under way, not with the plan."""

    def __init__(self, tries: int) -> None:
        self.tries = tries
        self.open: dict[Key, Chunk] = {}
        self.poisoned: list[Chunk] = []
        self.planned = 0
        self._plans: deque[tuple[str, Iterator[Key]]] = deque()
        self._order: deque[Chunk] = deque()
        self._again: list[tuple[int, Chunk]] = []
        self._places = 0

    @property
    def left(self) -> int:
        """Chunks that are neither delivered nor known to be poison."""
        return self.planned + len(self._order)

    def submit(self, plan: Submit) -> None:
        if len(set(plan.keys)) != len(plan.keys) or any(key in self.open for key in plan.keys):
            raise ValueError(f"chunks of '{plan.kind}' do not all have a key of their own")
        self.planned += len(plan.keys)
        self._plans.append((plan.kind, iter(plan.keys)))

    def next(self, room: int) -> Chunk | None:
        """The first chunk that nobody has, with at most `room` begun; the caller leases it or says
        `again`."""
        while self._again:
            _, chunk = heappop(self._again)
            if chunk.stage is Stage.PENDING:  # a late result may have come meanwhile
                return chunk
        return self._begin() if len(self._order) < room else None

    def again(self, chunk: Chunk) -> None:
        heappush(self._again, (chunk.place, chunk))

    def lease(self, chunk: Chunk) -> None:
        chunk.stage = Stage.LEASED
        chunk.copies += 1
        chunk.leases += 1

    def lose(self, chunk: Chunk, fault: str | None, *, gone: bool = False) -> None:
        """A worker no longer holds the chunk and left no result; `fault` is held against it.

        `gone`: all that is known is that its process was.
        """
        chunk.copies -= 1
        if fault is not None:
            chunk.faults += (fault,)
            chunk.blamed |= not gone
        if chunk.stage is not Stage.LEASED or chunk.copies:
            return
        if len(chunk.faults) >= self.tries:
            chunk.stage = Stage.POISON
        else:
            chunk.stage = Stage.PENDING
            self.again(chunk)

    def finish(self, chunk: Chunk, value: Any) -> None:
        chunk.stage, chunk.value = Stage.DONE, value

    def deliverable(self) -> Iterator[Chunk]:
        """Finished chunks in planned order, each once; poison is passed over and kept."""
        order = self._order
        while order and (order[0].stage is Stage.DONE or order[0].stage is Stage.POISON):
            chunk = order.popleft()
            del self.open[chunk.key]
            if chunk.stage is Stage.POISON:
                self.poisoned.append(chunk)
            else:
                yield chunk

    def _begin(self) -> Chunk | None:
        while self._plans:
            kind, keys = self._plans[0]
            for key in keys:
                chunk = Chunk(key, kind, self._places)
                self._places += 1
                self.planned -= 1
                self._order.append(chunk)
                self.open[key] = chunk
                return chunk
            self._plans.popleft()
        return None
