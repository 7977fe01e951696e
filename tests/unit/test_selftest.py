"""Does the self-test kill where it says, and would it see a resume that is not exact?"""

import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT
from typer.testing import CliRunner

from rlhf_ray import selftest
from rlhf_ray.cli import app
from rlhf_ray.durable.journal import Journal
from rlhf_ray.errors import BadData
from rlhf_ray.selftest import Plan, RunFailed, moments, records, render, resume

TOY = ROOT / "tests" / "toy_command.py"


@dataclass(frozen=True, slots=True)
class ToyPlan(Plan):
    """Runs a process that does what a driver does, without engines."""

    fault: str = ""

    def command(self, name: str) -> list[str]:
        fault = [self.fault] if self.fault and name == "killed" else []
        return [sys.executable, str(TOY), str(self.folder / name), *fault]


def plan(folder: Path, *, kills: int = 1, seed: int = 0, fault: str = "") -> ToyPlan:
    return ToyPlan(Path("none.yaml"), (), folder, kills, seed, deadline_s=60.0, fault=fault)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.mark.parametrize("seed", range(2))
def test_a_killed_toy_comes_to_the_same_end(seed: int, tmp_path: Path) -> None:
    said: list[str] = []
    found = resume(plan(tmp_path, kills=2, seed=seed), said.append)
    assert all(one.equal for one in found)
    assert [line for line in said if "after record" in line], said
    assert len(list((tmp_path / "killed/journal").glob("*.jsonl"))) > 1
    assert render(found).endswith("difference: 0")


def test_an_inexact_resume_is_seen_and_named(tmp_path: Path) -> None:
    found = resume(plan(tmp_path, fault="forgetful"), print)
    assert {one.what for one in found if not one.equal} == {"journal"}
    assert "wave r001-w001" in render(found)
    assert render(found).endswith("difference: 1")


def test_a_run_that_fails_is_no_success(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"(?s)ended with 65:.*the toy was told to fail"):
        resume(plan(tmp_path, fault="failing"), print)


def test_a_driver_that_was_never_killed_shows_nothing(tmp_path: Path) -> None:
    @dataclass(frozen=True, slots=True)
    class Gone(ToyPlan):
        def command(self, name: str) -> list[str]:
            if name == "killed":
                return [sys.executable, "-c", "pass"]
            return [sys.executable, str(TOY), str(self.folder / name)]

    early = Gone(Path("none.yaml"), (), tmp_path, 2, 0, deadline_s=60.0)
    with pytest.raises(RunFailed, match="was never alive when it was to be killed"):
        resume(early, print)


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(BadData, match="is not empty"):
        resume(plan(tmp_path), print)


def test_a_run_that_never_ends_is_ended_at_its_deadline(tmp_path: Path) -> None:
    @dataclass(frozen=True, slots=True)
    class Endless(Plan):
        def command(self, name: str) -> list[str]:
            return [sys.executable, "-c", "import time; time.sleep(600)"]

    hanging = Endless(Path("none.yaml"), (), tmp_path, 1, 0, deadline_s=0.5)
    with selftest.driver(hanging, "killed") as process:
        with pytest.raises(RunFailed, match="no record wave r000"):
            selftest.await_record(hanging, process, ("wave", "r000"))
        with pytest.raises(RunFailed, match=r"not finished after 0\.5 s"):
            selftest.finish(hanging, process, "straight")
    assert process.returncode == -signal.SIGKILL


def test_a_kill_takes_the_whole_group(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, start_new_session=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    selftest.kill(parent)
    assert parent.returncode == -signal.SIGKILL
    # Its parent is gone, so nobody waits for it here: it is no more, or waits to be collected.
    status, ends = Path(f"/proc/{child}/stat"), time.monotonic() + 30
    while status.exists() and status.read_text().rpartition(")")[2].split()[0] not in "ZX":
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_moments_follow_from_the_seed_and_come_in_order() -> None:
    told = [("learn", f"w{number}") for number in range(20)]
    drawn = [moments(told, 5, seed) for seed in range(8)]
    assert drawn == [moments(told, 5, seed) for seed in range(8)]
    assert len({tuple(one) for one in drawn}) > 4
    assert all(one == sorted(one, key=told.index) and len(set(one)) == 5 for one in drawn)
    assert moments(told[:2], 5, 0) == told[:2]


def test_a_record_counts_once_its_line_is_whole(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.append("rollouts", "w0", {})
    with (tmp_path / "journal/000001.jsonl").open("ab") as file:
        file.write(b'{"body":{},"key":"w1","kind":"sco')
    assert records(tmp_path) == [("rollouts", "w0")]
    assert records(tmp_path, since=1) == []


def test_a_recipe_that_cannot_be_is_refused_before_anything_runs(tmp_path: Path) -> None:
    words = ["selftest", "resume", "--dir", str(tmp_path / "new"), "loop.rounds=0"]
    done = CliRunner().invoke(app, words)
    assert type(done.exception).__name__ == "RecipeError"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("fault", "code"), [("", 0), ("forgetful", 70)])
def test_the_command_ends_with_0_only_where_nothing_differs(
    fault: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def toy(recipe: Path, overrides: tuple[str, ...], folder: Path, *rest: float) -> Plan:
        return plan(folder, fault=fault)

    monkeypatch.setattr(selftest, "Plan", toy)
    done = CliRunner().invoke(app, ["selftest", "resume", "--dir", str(tmp_path / "new")])
    assert done.exit_code == code
    assert f"difference: {int(code != 0)}" in done.output
