"""What a call on a worker that failed says about it: Ray's errors in the words of the pool."""

from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    OutOfMemoryError,
    RayTaskError,
)

from actors.waiting import last_line
from rlhf_ray.errors import RlhfRayError
from rlhf_ray.scheduling.events import Death, Died, Event, Failed, Fault, Key


def told(worker: int, error: Exception, key: Key | None, *, ours: bool = True) -> Event:
    """What a call that failed says about its worker. Raises errors of ours, which are for the user;
    not `ours`: where others have done the same, it is the worker's own affair."""
    if ours and isinstance(error, RlhfRayError):
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
