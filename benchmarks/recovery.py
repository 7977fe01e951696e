"""How long is a run without a rollout worker that was killed, beyond what an engine takes to start?

One worker is started as at the beginning of a run, and killed with SIGKILL some times, while idle
and while it samples; the seconds are counted from the kill until its work is in the hands of its
successor. Weights are those of the start: what a delivery takes is measured by `overhead.py`.
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


def recovery(rollouts: Rollouts, *, sampling: bool) -> float:
    """Seconds from the kill of the worker, `sampling` or idle and then asked, until what it was
    asked is in the hands of its successor."""
    prompts = draw_prompts(GoldData().families, 64, seed=0, purpose="bench", evaluation=False)
    crew, pid, [victim] = rollouts.pool.pool.crew, pid_of(rollouts), rollouts.pool.actors
    work = threading.Thread(target=rollouts.generate, args=("a", prompts), kwargs={"samples": 64})

    def await_lease(mine: bool) -> None:
        ends = time.monotonic() + TIMEOUTS.engine_s
        while not any((number == victim) == mine and one.chunk is not None
                      for number, one in list(crew.workers.items())):  # fmt: skip
            assert time.monotonic() < ends, "nobody was asked"
            time.sleep(0.01)

    if sampling:
        work.start()
        await_lease(mine=True)
    began = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    if not sampling:
        work.start()
    await_lease(mine=False)
    found = time.perf_counter() - began
    work.join(timeout=TIMEOUTS.generate_s)
    assert not work.is_alive(), "what it was asked is not done"
    return found


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
            for what, seen in found.items():
                seen.append(recovery(rollouts, sampling=what == "sampling"))
            rollouts.stop()
    start = median(starts)
    print("| from the kill on | median | longest | over a start | target | |")
    print("|---|---|---|---|---|---|")
    print(f"| engine start, {repeats} times | {start:.1f} s | {max(starts):.1f} s | | | |")
    for what, seconds in found.items():
        over = median(seconds) - start
        print(
            f"| killed while {what}: until its work goes on | {median(seconds):.1f} s | "
            f"{max(seconds):.1f} s | {over:+.1f} s | <= {TARGET_S:+.1f} s | "
            f"{'met' if over <= TARGET_S else 'missed'} |"
        )


if __name__ == "__main__":
    main()
