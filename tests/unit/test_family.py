"""Does everything a driver has started end with it, also what has left its group?"""

import os
import signal
import subprocess
import sys
import time
from typing import Any

import psutil
import pytest
from conftest import ROOT

import actors.cluster
from actors.family import MARK, watched
from rlhf_ray.errors import ClusterUnavailable

DRIVER = """
import subprocess, sys, time
from actors.family import watched
grandchild = "import subprocess, sys, time; " \\
    "print(subprocess.Popen(['sleep', '60'], start_new_session=True).pid, flush=True); " \\
    "time.sleep(60)"
watcher = watched()
child = subprocess.Popen([sys.executable, "-c", grandchild], start_new_session=True)
print(child.pid, watcher.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("group", "looked_s"), [(False, 3.0), (True, 3.0), (False, 0.0)],
    ids=["alone", "with its group", "before the watcher has looked"],
)  # fmt: skip
def test_nothing_outlives_a_driver_that_is_killed(group: bool, looked_s: float) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        assert driver.stdout is not None
        pids = [int(word) for _ in range(2) for word in driver.stdout.readline().split()]
        family = [psutil.Process(pid) for pid in pids]
        assert len(family) == 3
        time.sleep(looked_s)
        os.killpg(driver.pid, signal.SIGKILL) if group else driver.kill()
        driver.wait(timeout=30)
        _, alive = psutil.wait_procs(family, timeout=30)
        assert [one for one in alive if one.status() != psutil.STATUS_ZOMBIE] == []
        assert bystander.poll() is None
    finally:
        driver.kill()
        bystander.kill()
        driver.wait(timeout=30)
        bystander.wait(timeout=30)


def test_ray_that_does_not_start_in_time_is_told_as_that_and_nobody_stays_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watchers: list[subprocess.Popen[bytes]] = []

    def late(*_: Any, **options: Any) -> None:
        raise Exception("the node timed out during startup")  # as Ray says it

    def watch() -> subprocess.Popen[bytes]:
        watchers.append(watched())
        return watchers[0]

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv(MARK, "none")  # put back afterwards
    monkeypatch.setattr(actors.cluster.ray, "init", late)
    monkeypatch.setattr(actors.cluster, "watched", watch)
    with (
        pytest.raises(ClusterUnavailable, match=r"this machine: the node timed out.*same command"),
        actors.cluster.cluster(1.0, 1.0),
    ):
        raise AssertionError("it did not start")
    assert watchers[0].wait(timeout=30) == -signal.SIGKILL
