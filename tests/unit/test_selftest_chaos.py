"""Does `make chaos` go on where it was, count right, and see what a dead driver leaves behind?"""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def chaos() -> Iterator[ModuleType]:
    """The command of `make chaos`, which lies beside its modules and is no part of a package."""
    folder = ROOT / "tests" / "chaos"
    sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location("chaos", folder / "chaos.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["chaos"] = module
    spec.loader.exec_module(module)
    yield module
    for name in ("chaos", "bench", "driver_trials"):
        sys.modules.pop(name, None)
    sys.path.remove(str(folder))


def check(promise: str, ok: bool = True, **more: Any) -> dict[str, Any]:
    return {"promise": promise, "ok": ok, "says": "", "seconds": None, "times": 1} | more


def test_what_is_in_the_file_is_not_tried_again(chaos: ModuleType) -> None:
    known = [{"kind": "kill", "seed": 0}, {"kind": "stop", "seed": 1}]
    plan = list(chaos.planned(["kill", "stop"], 2, known))
    assert plan == [("stop", 0), ("kill", 1)]
    assert len(list(chaos.planned([], None, []))) == sum(one.trials for one in chaos.KINDS.values())


def test_the_table_counts_trials_failures_and_the_longest_time(chaos: ModuleType) -> None:
    rows = [
        {"checks": [check("R1 a", times=3), check("R13 b", seconds=1.5)]},
        {"checks": [check("R1 a", ok=False, times=2), check("R13 b", seconds=0.2)]},
        {"checks": []},
    ]
    assert chaos.table(rows).splitlines()[2:] == [
        "| R1 a | 5 | 1 |  |",
        "| R13 b | 2 | 0 | 1.5 s |",
    ]


def test_a_line_that_was_half_written_is_dropped(chaos: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    path.write_text('{"kind": "kill"}\n{"kind": "st')
    assert chaos.rows(path) == [{"kind": "kill"}]
    assert path.read_text() == '{"kind": "kill"}\n'


def test_a_trial_that_trips_over_itself_is_a_failure(
    chaos: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trips(bench: Any, seed: int, run: Path) -> list[Any]:
        raise RuntimeError("no such thing")

    bench = chaos.Bench(tmp_path, tmp_path / "recipe.yaml")
    monkeypatch.setattr(chaos.Bench, "straight", lambda bench: (tmp_path, 1.0))
    monkeypatch.setitem(chaos.KINDS, "kill", chaos.Kind(1, trips))
    row = chaos.trial(bench, "kill", 0)
    assert [one["ok"] for one in row["checks"]] == [False]
    assert "RuntimeError: no such thing" in chaos.verdict(row)


def test_whatever_a_driver_left_is_seen_by_its_mark_and_ended(
    chaos: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bench

    monkeypatch.setattr(bench, "GONE_S", 0.3)
    run = tmp_path / "run"
    assert bench.gone(run, [], "p").ok
    left = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"],
        env=os.environ | {bench.MARK: str(run)}, start_new_session=True,
    )  # fmt: skip
    try:
        found = bench.gone(run, [], "p")
        assert not found.ok
        assert str(left.pid) in found.says
        assert found.seconds >= 0.3
        assert left.wait(timeout=30) < 0
    finally:
        left.kill()
        left.wait(timeout=30)
    assert bench.gone(run, [], "p").ok
