"""Nodes that are taken away, with a notice and then for good."""

import os
from pathlib import Path

from commandline import RUN_S, Driver
from conftest import TINY
from nodes import announce, node_of, small_cluster, take_away

from rlhf_ray.same_end import compare


def test_a_run_whose_node_is_preempted_and_dies_ends_like_one_whose_does_not(
    tiny_run: Path, tmp_path: Path
) -> None:
    with small_cluster() as cluster:
        environment = os.environ | {"RAY_ADDRESS": cluster.address}
        asked = ["-c", "configs/demo.yaml", *TINY]
        with Driver(tmp_path / "run", *asked, env=environment) as run:
            run.until("rollout engines ready")
            node = node_of(cluster, "RolloutActor")
            announce(cluster, node, within_s=600)
            run.until('"key":"r001-w000","kind":"rollouts"')
            assert (run.folder / "logs" / "rollout-1.log").exists(), "its only engine has moved"
            take_away(cluster, node)
            assert run.process.wait(timeout=RUN_S) == 0, run.said()
    assert [one for one in compare(tiny_run, run.folder) if not one.equal] == []
