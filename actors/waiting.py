"""Every wait on an actor: it has a deadline and says what it waited for."""

import ray

from rlhf_ray.config.schema import Timeouts
from rlhf_ray.scheduling.limits import Limits

CALL_FLOOR_S = 60.0
"""No chunk of rollouts is late before."""


def limits(timeouts: Timeouts, *, call_s: float, floor_s: float) -> Limits:
    """A pool's limits, from a recipe's: one call may take `call_s`, and is not late before
    `floor_s`, however fast others were."""
    # A load may have to wait for the one before.
    start_s, load_s = timeouts.engine_s, 4.0 * timeouts.sync_s
    return Limits(
        tick_s=min(1.0, timeouts.ping_s),
        start_s=start_s,
        load_s=load_s,
        ping_s=timeouts.ping_s,
        chunk_floor_s=min(floor_s, call_s),
        chunk_cap_s=call_s,
        short_s=start_s + load_s,
        stall_s=start_s + load_s + call_s,
    )


def resources() -> str:
    """Free and total CPUs and GPUs, for messages."""
    free, total = ray.available_resources(), ray.cluster_resources()
    return ", ".join(
        f"{free.get(kind, 0):g} of {total.get(kind, 0):g} {kind}s free" for kind in ("CPU", "GPU")
    )


def last_line(error: Exception) -> str:
    """What an error of Ray says at last: there stands the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
