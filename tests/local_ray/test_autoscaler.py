"""Elastic workers on a cluster whose nodes come when they are asked for."""

from pathlib import Path

from commandline import rlhf_ray
from conftest import TINY
from ray_head import ray_head

from rlhf_ray.same_end import compare

PLAN = ["rollouts.num_cpus=2", "rollouts.workers={min: 1, max: 2, ask: true}"]
"""The head has room for the learner and the judges, each node for one such worker."""


def test_an_autoscaler_adds_the_nodes_a_run_asks_for_and_the_run_ends_alike(
    tiny_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with ray_head(tmp_path, cpus=2, nodes=2, node_cpus=2) as head:
        environment = head.environment | {"RAY_ADDRESS": head.address}
        asked = ["run", "-c", "configs/demo.yaml", "--run-dir", str(folder), *TINY, *PLAN]
        done = rlhf_ray(*asked, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "waiting up to 600 s for nodes: " in done.stdout
    assert (folder / "logs" / "rollout-1.log").exists(), "the second has found room"
    assert [one for one in compare(tiny_run, folder) if not one.equal] == []
