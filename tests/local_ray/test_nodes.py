"""Nodes that are taken away, with a notice and then for good."""

import os
import subprocess
import time
from pathlib import Path

from commandline import RUN_S, command, journal_text
from conftest import ROOT, TINY
from nodes import announce, node_of, small_cluster, take_away

from rlhf_ray.same_end import compare


def test_a_run_whose_node_is_preempted_and_dies_ends_like_one_whose_does_not(
    tiny_run: Path, tmp_path: Path
) -> None:
    folder, said = tmp_path / "run", tmp_path / "run.log"
    asked = ["run", "-c", "configs/demo.yaml", "--run-dir", str(folder), *TINY]

    with small_cluster() as cluster, said.open("w") as log:
        environment = os.environ | {"RAY_ADDRESS": cluster.address}
        driver = subprocess.Popen(
            command(*asked), cwd=ROOT, env=environment, stdout=log, stderr=log
        )

        def until(text: str) -> None:
            ends = time.monotonic() + RUN_S
            while text not in said.read_text() + journal_text(folder):
                assert driver.poll() is None, said.read_text()
                assert time.monotonic() < ends, said.read_text()
                time.sleep(0.02)

        try:
            until("rollout engines ready")
            node = node_of(cluster, "RolloutActor")
            announce(cluster, node, within_s=600)
            until('"key":"r001-w000","kind":"rollouts"')
            assert (folder / "logs" / "rollout-1.log").exists(), "its only engine has moved"
            take_away(cluster, node)
            assert driver.wait(timeout=RUN_S) == 0, said.read_text()
        finally:
            driver.kill()
            driver.wait(timeout=60)
    assert [one for one in compare(tiny_run, folder) if not one.equal] == []
