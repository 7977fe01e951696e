"""What is done to machines of a run that is kept behind a URL: they are lost with all they held."""

import os
import shutil
from pathlib import Path
from unittest.mock import patch

from bench import RUN_S, Bench, Check, draws, family_of, gone, tail, wait_for
from commandline import rlhf_ray
from driver_trials import GONE
from objectstore import object_store

from rlhf_ray.durable.staging import folder_of

LOST = "R1 driver behind a URL killed, its folder lost: the same command ends alike"


def lose_machine(bench: Bench, seed: int, run: Path) -> list[Check]:
    """Some kills, each at any moment; what the next driver finds is what the store holds."""
    rng, checks = draws(seed, "machine"), list[Check]()
    _, whole = bench.straight()
    with object_store() as bucket:
        url = f"{bucket}/{run.name}"
        with patch.dict(os.environ, RLHF_RAY_CACHE=str(bench.folder / "models")):
            held = folder_of(url)
        for _ in range(bench.blows):
            with bench.driver(run, more=["--run-dir", url]) as driver:
                if not wait_for(driver, rng.uniform(0.0, whole)):
                    assert driver.returncode == 0, tail(run)
                    break
                family = family_of(driver)
                driver.kill()
                driver.wait(timeout=60)
            checks.append(gone(run, family, GONE))
            shutil.rmtree(held, ignore_errors=True)  # there is none before a driver has made it
        with bench.driver(run, more=["--run-dir", url]) as driver:
            code = driver.wait(timeout=RUN_S)
        if code != 0:
            return [*checks, Check(LOST, False, f"code {code}:\n{tail(run)}")]
        fetched = rlhf_ray("fetch", url, str(run))
        shutil.rmtree(held)
    if fetched.returncode != 0:
        return [*checks, Check(LOST, False, fetched.stderr)]
    return [*checks, bench.same_end(run, LOST, times=len(checks))] if checks else []
