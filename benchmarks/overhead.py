"""What does a finished run spend beside its work: driver, weight delivery, refreshes, engines?

A wave's overhead is the time no stage accounts for. How long it waits for the wave before to be
kept, its checkpoint included, is part of that, and measured by itself. Ray's share inside a stage
is what `rollouts.py` measures. Only waves that delivered weights count for delivery. The refresh
of a judge is measured against the waves of the round that begins with it; the samples for all
judges are part of it.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from rlhf_ray.config.load import load_recipe
from rlhf_ray.config.schema import Recipe
from rlhf_ray.errors import RlhfRayError
from rlhf_ray.report import CONFIG, Row, Run, read_run

HELP_RUNS = 10
HELP_DEADLINE_S = 60
OVERHEAD, RECORD, DELIVERY, REFRESH, ENGINES_S, HELP_S = 0.10, 0.01, 0.05, 0.10, 30.0, 0.5
"""Targets: shares of a wave, and seconds."""


def timed(folder: Path) -> Run:
    """What a run measured. Ends the program where there is nothing, or some cannot be read."""
    run = read_run(folder)
    if run.unread or not any("wall_s" in row for row in run.waves):
        sys.exit(
            f"{folder} cannot be measured: {'; '.join(run.unread) or 'it has no timed wave'}; "
            "give the folder of a finished run"
        )
    return run


def refresh_share(run: Run) -> float | None:
    """Median over rounds: seconds of the refresh of one judge / seconds of the round's waves."""
    found = []
    for round in sorted({row["round"] for row in run.refreshes}):
        judges = sum(row["round"] == round for row in run.refreshes)
        waves = [row for row in run.waves if row["round"] == round and "wall_s" in row]
        spent = sum(row["seconds"].get("refresh", 0.0) for row in waves)
        found.append(spent / judges / (sum(row["wall_s"] for row in waves) - spent))
    return median(found) if found else None


def shares(waves: list[Row]) -> tuple[float, float | None]:
    """Median shares of overhead and of weight delivery in a wave; None: nothing was delivered."""
    delivered = [row for row in waves if row["sync_s"] > 0]
    sync = median(row["sync_s"] / row["wall_s"] for row in delivered) if delivered else None
    return median(row["overhead_s"] / row["wall_s"] for row in waves), sync


def engines_ready_s(recipe: Recipe, folder: Path) -> float:
    """Seconds from nothing, Ray included, until the run's engines hold its trained policy."""
    began = time.perf_counter()
    from actors.cluster import cluster
    from actors.rollout import Rollouts
    from rlhf_ray.data.chat import Chat
    from rlhf_ray.launch.models import weight_backend

    policy = str(folder / "final")
    chat = Chat.load(policy, trust_remote_code=recipe.policy.trust_remote_code)
    with cluster(recipe.rollouts.num_cpus * recipe.rollouts.fewest, 120):
        Rollouts(
            policy,
            chat,
            recipe.rollouts,
            recipe.timeouts,
            max_model_len=chat.max_tokens,
            precision=recipe.learner.precision,
            backend=weight_backend(recipe),
            seed=recipe.seed,
            trust_remote_code=recipe.policy.trust_remote_code,
        )
        return time.perf_counter() - began


def help_s() -> float:
    """Median seconds of `rlhf-ray --help`."""
    command = [sys.executable, "-m", "rlhf_ray", "--help"]
    found = []
    for _ in range(HELP_RUNS):
        began = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, timeout=HELP_DEADLINE_S, check=True)
        found.append(time.perf_counter() - began)
    return median(found)


def line(what: str, value: float, target: float, *, share: bool) -> str:
    """One row of the table; shares in percent, everything else in seconds."""
    found, wanted = (f"{x:.1%}" if share else f"{x:.2f} s" for x in (value, target))
    return f"| {what} | {found} | <= {wanted} | {'met' if value <= target else 'missed'} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="folder of a finished run")
    parser.add_argument("--no-engines", action="store_true", help="do not start the engines")
    asked = parser.parse_args()
    try:
        recipe, run = load_recipe(asked.run_dir / CONFIG, environ={}), timed(asked.run_dir)
        waves = [row for row in run.waves if "wall_s" in row]
        overhead, sync = shares(waves)
        print(f"| {recipe.name}, {len(waves)} waves | median | target | |\n|---|---|---|---|")
        print(line("driver overhead in a wave", overhead, OVERHEAD, share=True))
        kept = [row["record_s"] / row["wall_s"] for row in waves if row.get("record_s")]
        if kept:
            print(line("waiting for a wave to be kept", median(kept), RECORD, share=True))
        if sync is not None:
            print(line("weight delivery in a wave", sync, DELIVERY, share=True))
        if (refresh := refresh_share(run)) is not None:
            print(line("refresh of one judge, of a round", refresh, REFRESH, share=True))
        print(line("`rlhf-ray --help`", help_s(), HELP_S, share=False), flush=True)
        if not asked.no_engines:
            ready = engines_ready_s(recipe, asked.run_dir)
            print(line("engines ready, once", ready, ENGINES_S, share=False))
    except RlhfRayError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
