"""A run kept behind a URL: its machine is lost, and another one goes on."""

import shutil
import subprocess
import time
from pathlib import Path

from commandline import RUN_S, command, rlhf_ray
from conftest import ROOT, TINY
from objectstore import object_store

from rlhf_ray.durable.staging import folder_of
from rlhf_ray.same_end import compare


def await_file(driver: "subprocess.Popen[bytes]", folder: Path, names: str, text: str) -> None:
    """Return when a file of a run holds this."""
    ends = time.monotonic() + RUN_S
    while not any(text in path.read_text() for path in folder.glob(names)):
        assert driver.poll() is None
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_a_run_whose_machine_is_lost_goes_on_elsewhere_and_ends_alike(
    tiny_run: Path, tmp_path: Path
) -> None:
    with object_store() as bucket:
        url = f"{bucket}/tiny"
        asked = ["run", "-c", "configs/demo.yaml", "--run-dir", url, *TINY]
        with (tmp_path / "first.log").open("w") as log:
            first = subprocess.Popen(command(*asked), cwd=ROOT, stdout=log, stderr=log)
        try:
            here = folder_of(url)
            await_file(first, here, "config.resolved.yaml", "name: ")
            second = rlhf_ray(*asked)
            assert second.returncode == 78
            assert f"another driver is running in {url}" in second.stderr
            await_file(first, here, "journal/*.jsonl", '"key":"r001-w000","kind":"scores"')
        finally:
            first.kill()
            first.wait(timeout=60)
        shutil.rmtree(here)

        resumed = rlhf_ray(*asked)
        assert resumed.returncode == 0, resumed.stdout + resumed.stderr
        assert "resuming after wave" in resumed.stdout
        again = rlhf_ray(*asked)
        assert "this run is finished" in again.stdout

        fetched = tmp_path / "fetched"
        assert rlhf_ray("verify", url).returncode == 65
        done = rlhf_ray("fetch", url, str(fetched))
        assert done.returncode == 0, done.stderr
    verified = rlhf_ray("verify", str(fetched))
    assert verified.returncode == 0, verified.stdout
    assert [one for one in compare(tiny_run, fetched) if not one.equal] == []
