"""How long is a run without a rollout worker that was killed, beyond what an engine takes to start?

One worker is started as at the beginning of a run, and killed with SIGKILL some times, while idle
and while it samples; each time the seconds are counted from the kill until its successor is ready
and its work was done. Weights are those of the start: a delivery is measured by `overhead.py`.
"""

import argparse
import os
import signal
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

import ray

from actors.cluster import cluster
from actors.pool import gather, turn
from actors.rollout import Rollouts
from rlhf_ray.config.schema import GoldData, Scratch, Timeouts
from rlhf_ray.config.schema import Rollouts as Settings
from rlhf_ray.data.chat import Chat
from rlhf_ray.data.tokens import texts
from rlhf_ray.gold.families import demonstrations, draw_prompts
from rlhf_ray.training.scratch import make_policy

TARGET_S = 5.0
"""A recovery may take this much longer than the start of an engine."""
TIMEOUTS = Timeouts(engine_s=300, generate_s=300)
SETTINGS = Settings(workers=1, chunk_prompts=64, threads=1)


def started(policy: Path) -> tuple[Rollouts, float]:
    """A worker that is ready, and the seconds until it was."""
    began = time.perf_counter()
    rollouts = Rollouts(
        str(policy), Chat.load(str(policy)), SETTINGS, TIMEOUTS, max_model_len=32,
        precision="fp32", backend="host", seed=0,
    )  # fmt: skip
    return rollouts, time.perf_counter() - began


def pid_of(rollouts: Rollouts) -> int:
    [actor] = rollouts.pool.actors.values()
    return int(ray.get(actor.__ray_call__.remote(lambda _: os.getpid()), timeout=60))


def idle(rollouts: Rollouts) -> float:
    """Seconds from the kill of an idle worker until another is ready."""
    pid, [number] = pid_of(rollouts), rollouts.pool.actors
    began = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    while number in rollouts.pool.actors:
        turn([rollouts.pool])
    gather([rollouts.pool])
    return time.perf_counter() - began


def sampling(rollouts: Rollouts) -> float:
    """Seconds from the kill of a sampling worker until what it was asked is there, less the seconds
    of sampling alone."""
    prompts = draw_prompts(GoldData().families, 64, seed=0, purpose="bench", evaluation=False)
    pid, killed = pid_of(rollouts), list[float]()
    began = time.perf_counter()
    rollouts.generate("straight", prompts, samples=64)
    alone = time.perf_counter() - began

    def kill() -> None:
        os.kill(pid, signal.SIGKILL)
        killed.append(time.perf_counter())

    timer = threading.Timer(alone / 2, kill)
    timer.start()
    rollouts.generate("killed", prompts, samples=64)
    timer.join(timeout=60)
    return time.perf_counter() - killed[0] - alone


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder, cluster(2, 120):
        policy = Path(folder) / "policy"
        make_policy(
            policy, Scratch(max_positions=32), texts(demonstrations(GoldData(), 64, seed=0)), seed=0
        )
        starts, found = list[float](), {"idle": list[float](), "sampling": list[float]()}
        for _ in range(repeats):
            rollouts, seconds = started(policy)
            starts.append(seconds)
            found["idle"].append(idle(rollouts))
            found["sampling"].append(sampling(rollouts))
            rollouts.stop()
    start = median(starts)
    print(f"| engine start, median of {repeats} | {start:.1f} s |")
    for what, seconds in found.items():
        over = median(seconds) - start
        print(
            f"| killed while {what}: until its work goes on | {median(seconds):.1f} s, at most "
            f"{max(seconds):.1f} s | {over:+.1f} s over a start | <= {TARGET_S:+.1f} s | "
            f"{'met' if over <= TARGET_S else 'missed'} |"
        )


if __name__ == "__main__":
    main()
