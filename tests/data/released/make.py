"""Make the run folder that every later version has to be able to go on with.

    python tests/data/released/make.py tests/data/released/0.1.0

It runs `recipe.yaml` beside it, kills the driver in its third wave, when samples and scores are
known and the update is not, and keeps what a resume reads. Needed once per format of the folder.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

RECIPE = Path(__file__).with_name("recipe.yaml")
SEEN = '"key":"r001-w000","kind":"scores"'
UNREAD = ("logs", "attempts", "report.html", "pretrained", "critiques")
"""No resume needs them; who owned an attempt is also nobody else's business."""
START_S = 900


def main(target: Path) -> None:
    """Leave the folder at `target`, which must not be there yet."""
    run = target.absolute()
    assert not run.exists(), f"{run} is there already; remove it, or give another"
    command = [sys.executable, "-m", "rlhf_ray", "run", "-c", str(RECIPE), "--run-dir", str(run)]
    driver = subprocess.Popen(command)
    ends = time.monotonic() + START_S
    while SEEN not in _journal(run):
        assert driver.poll() is None, "the run has ended too early; see what it says above"
        assert time.monotonic() < ends, f"no third wave in {START_S} s; see what it says above"
        time.sleep(0.002)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait(timeout=60)
    for name in UNREAD:
        shutil.rmtree(run / name, ignore_errors=True)
    for path in sorted(run.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    print(run, sum(path.stat().st_size for path in run.rglob("*") if path.is_file()), "bytes")


def _journal(run: Path) -> str:
    return "".join(path.read_text() for path in sorted((run / "journal").glob("*.jsonl")))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
