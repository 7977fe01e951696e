"""Real engines, started once per session."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from commandline import rlhf_ray
from conftest import TINY
from ray_head import Head, ray_head


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """One whole run of the demo, made small: the folder it leaves."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    done = rlhf_ray("run", "-c", "configs/demo.yaml", "--run-dir", str(folder), *TINY)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    ray.init("local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def head(tmp_path: Path, cache: Path) -> Iterator[Head]:
    with ray_head(tmp_path, cpus=4) as found:
        yield found
