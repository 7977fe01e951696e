"""R14: is SIGTERM a polite end from the first second on, also where Ray has its own handler?"""

import subprocess
import sys
import time

import pytest
from conftest import ROOT

PROGRAM = """
import signal, sys, time
from rlhf_ray import cli

@cli.app.command()
def hang() -> None:
    {before}
    print("on", flush=True)
    time.sleep(60)

sys.argv = ["rlhf-ray", "hang"]
cli.main()
"""


@pytest.mark.parametrize(
    "before", ["pass", "signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))"]
)
def test_sigterm_ends_with_75_in_time_and_says_how_to_go_on(before: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(before=before)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "on\n"
        began = time.monotonic()
        process.terminate()
        _, said = process.communicate(timeout=30)
        assert (process.returncode, time.monotonic() - began < 2.5) == (75, True)
        assert "the same command goes on where it was: rlhf-ray hang" in said
    finally:
        process.kill()
        process.wait(timeout=30)


def test_other_exit_codes_pass() -> None:
    program = PROGRAM.format(before="sys.exit(3)")
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 3
