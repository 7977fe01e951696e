"""Submitting a run: one command that starts, follows and resumes, against a job server of ours."""

import io
import subprocess
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from jobserver import Board, Trick, away

from rlhf_ray import submit as submit_module
from rlhf_ray.errors import ClusterUnavailable, RecipeError
from rlhf_ray.submit import Submission, Submitter, submission
from rlhf_ray.submit_server import RUN_DIR, JobServer

HOSTILE = ["; touch x", "$(touch x)", "`touch x`", "it's", 'say "so"', "a\nb", "*", "a b", "--help",
           "-c", "&", "|", ">x", "#x", "~", "\\", "!x", "ü", ""]  # fmt: skip
WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@pytest.fixture(autouse=True)
def _quick_and_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits; whatever a client leaves in the environment is undone."""
    monkeypatch.setattr(submit_module, "FIRST_PAUSE_S", 0.01)
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def board() -> Iterator[Board]:
    with Board() as found:
        yield found


def asked(folder: Path, **changes: Any) -> Submission:
    (folder / "recipe.yaml").write_text("name: mine\n")
    options: dict[str, Any] = {
        "name": "mine", "config": folder / "recipe.yaml", "run_dir": "/shared/mine",
        "working_dir": folder, "overrides": [], "environ": {},
    }  # fmt: skip
    return submission(**(options | changes))


def submitter(board: Board, **options: Any) -> tuple[Submitter, list[str], list[str]]:
    """A submitter, with what it says and what it writes."""
    said: list[str] = []
    written: list[str] = []
    return (
        Submitter(JobServer(board.address, None), said.append, written.append, **options),
        said,
        written,
    )


# The entry point


def words_of_a_shell(entrypoint: str, folder: Path) -> list[str]:
    """What `python` is called with when a shell gets the entry point, as Ray gives it."""
    python = folder / "python"
    python.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
    python.chmod(0o755)
    environment = {"PATH": f"{folder}:/usr/bin:/bin"}
    done = subprocess.run(
        entrypoint, shell=True, cwd=folder, env=environment, capture_output=True, timeout=30,
        check=True,
    )  # fmt: skip
    return done.stdout.decode().split("\0")[:-1]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(run_dir=WORDS, overrides=st.lists(WORDS))
@example(run_dir='/shared/it\'s; $(touch x)\n"run"', overrides=HOSTILE)
def test_a_shell_hands_over_every_word_as_it_was(
    tmp_path: Path, run_dir: str, overrides: list[str]
) -> None:
    entrypoint = asked(tmp_path, run_dir=run_dir, overrides=overrides).entrypoint
    command = ["-m", "rlhf_ray", "run", "--config=recipe.yaml", f"--run-dir={run_dir}"]
    rest = ["--", *overrides] if overrides else []
    assert words_of_a_shell(entrypoint, tmp_path) == [*command, *rest]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["python", "recipe.yaml"]


@pytest.mark.parametrize(
    "name", ["it's.yaml", "a b.yaml", "-c.yaml", "$(touch x).yaml", "a\nb.yaml"]
)
def test_a_recipe_may_be_called_anything(tmp_path: Path, name: str) -> None:
    found = asked(tmp_path, config=tmp_path / name)
    assert words_of_a_shell(found.entrypoint, tmp_path)[3] == f"--config={name}"


def test_a_recipe_is_named_as_it_lies_in_the_folder_that_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = asked(tmp_path, config=Path("deep/../recipes/one.yaml"), working_dir=Path())
    assert "--config=recipes/one.yaml " in found.entrypoint
    assert found.working_dir == tmp_path


def test_a_recipe_that_would_not_travel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"does not lie in .*name a folder around it with"):
        asked(tmp_path, config=tmp_path.parent / "recipe.yaml")
    with pytest.raises(RecipeError, match="is no folder"):
        asked(tmp_path, working_dir=tmp_path / "recipe.yaml")


def test_of_the_environment_only_the_recipes_keys_travel(tmp_path: Path) -> None:
    found = asked(tmp_path, environ={"RLHF_RAY__SEED": "3", "RAY_AUTH_TOKEN": "x", "HOME": "/me"})
    assert found.environment == {"RLHF_RAY__SEED": "3", "RAY_JOB_STOP_WAIT_TIME_S": "120"}


# Starting


def test_a_first_call_starts_the_first_attempt_with_all_it_needs(
    board: Board, tmp_path: Path
) -> None:
    one, said, _ = submitter(board)
    wanted = asked(tmp_path, overrides=["seed=2"])
    assert one.start(wanted) == "mine-a1"
    assert said == ["started mine-a1"]
    job = board.jobs["mine-a1"]
    assert job["entrypoint"] == wanted.entrypoint
    assert job["metadata"][RUN_DIR] == "/shared/mine"
    assert job["runtime_env"]["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "120"}
    (package,) = board.packages.values()
    assert zipfile.ZipFile(io.BytesIO(package)).namelist() == ["recipe.yaml"]


@pytest.mark.parametrize("status", ["SUCCEEDED", "FAILED", "STOPPED"])
def test_the_same_call_resumes_what_has_ended(board: Board, tmp_path: Path, status: str) -> None:
    one, _, _ = submitter(board)
    wanted = asked(tmp_path)
    board.add("mine-a9", status, entrypoint=wanted.entrypoint, metadata={RUN_DIR: "/shared/mine"})
    board.add("mine-a2", status)
    board.add("mine-a10x", status)
    board.add("mine-too-a50", status)
    assert one.start(wanted) == "mine-a10"


@pytest.mark.parametrize("status", ["PENDING", "RUNNING"])
def test_the_same_call_joins_what_is_alive(board: Board, tmp_path: Path, status: str) -> None:
    one, said, _ = submitter(board)
    assert one.start(asked(tmp_path)) == "mine-a1"
    board.jobs["mine-a1"]["status"] = status
    assert one.start(asked(tmp_path)) == "mine-a1"
    assert list(board.jobs) == ["mine-a1"]
    assert said[1:] == ["mine-a1 does this run already"]


@pytest.mark.parametrize("other", [{"overrides": ["seed=2"]}, {"environ": {"RLHF_RAY__SEED": "2"}}])
def test_another_command_for_a_run_that_is_alive_is_refused(
    board: Board, tmp_path: Path, other: dict[str, Any]
) -> None:
    one, _, _ = submitter(board)
    one.start(asked(tmp_path))
    with pytest.raises(RecipeError, match="already being run by mine-a1, with another command"):
        one.start(asked(tmp_path, **other))
    assert list(board.jobs) == ["mine-a1"]


def test_runs_of_one_name_in_two_folders_are_two_jobs(board: Board, tmp_path: Path) -> None:
    one, _, _ = submitter(board)
    assert one.start(asked(tmp_path)) == "mine-a1"
    assert one.start(asked(tmp_path, run_dir="/shared/other")) == "mine-a2"


def lost_answer(board: Board, method: str, path: str) -> bool:
    """Does what is asked and says nothing."""
    if method != "POST" or board.jobs:
        return False
    board.add("mine-a1", entrypoint=lost_answer.entrypoint, metadata={RUN_DIR: "/shared/mine"},
              runtime_env={"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "120"}})  # fmt: skip
    return True


def test_a_start_whose_answer_is_lost_is_one_job(board: Board, tmp_path: Path) -> None:
    lost_answer.entrypoint = asked(tmp_path).entrypoint  # type: ignore[attr-defined]
    one, _, _ = submitter(board)
    board.tricks = [lost_answer]
    assert one.start(asked(tmp_path)) == "mine-a1"
    assert list(board.jobs) == ["mine-a1"]


def faster(run_dir: str, entrypoint: str, times: int) -> Trick:
    """Somebody else starts a job under the very id, just before us."""
    left = [times]

    def trick(board: Board, method: str, path: str) -> bool:
        if method == "POST" and left[0]:
            left[0] -= 1
            board.add(f"mine-a{len(board.jobs) + 1}", entrypoint=entrypoint,
                      metadata={RUN_DIR: run_dir},
                      runtime_env={"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "120"}})  # fmt: skip
        return False

    return trick


def test_of_two_calls_at_once_the_slower_joins_the_faster(board: Board, tmp_path: Path) -> None:
    one, _, _ = submitter(board)
    board.tricks = [faster("/shared/mine", asked(tmp_path).entrypoint, times=1)]
    assert one.start(asked(tmp_path)) == "mine-a1"
    assert list(board.jobs) == ["mine-a1"]


def test_an_id_that_another_run_took_is_left_to_it(board: Board, tmp_path: Path) -> None:
    one, _, _ = submitter(board)
    board.tricks = [faster("/shared/other", "true", times=2)]
    assert one.start(asked(tmp_path)) == "mine-a3"
    assert board.jobs["mine-a3"]["metadata"][RUN_DIR] == "/shared/mine"


def test_a_name_that_is_always_taken_ends(board: Board, tmp_path: Path) -> None:
    one, _, _ = submitter(board)
    board.tricks = [faster("/shared/other", "true", times=99)]
    with pytest.raises(ClusterUnavailable, match="somebody else was faster"):
        one.start(asked(tmp_path))


def test_a_start_that_is_refused_says_why(board: Board, tmp_path: Path) -> None:
    one, _, _ = submitter(board)
    board.tricks = [away(1, "/api/jobs/")]
    with pytest.raises(ClusterUnavailable, match=f"no answer .* at {board.address}"):
        one.start(asked(tmp_path))


# Following


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ({"status": "SUCCEEDED", "driver_exit_code": 0}, 0, "is done"),
        ({"status": "STOPPED"}, 75, "was stopped; the same command resumes"),
        ({"status": "FAILED", "driver_exit_code": 78}, 78, "exit code 78; mend its cause first"),
        ({"status": "FAILED", "driver_exit_code": 65}, 65, "exit code 65; mend its cause first"),
        ({"status": "FAILED", "driver_exit_code": 74}, 74, "exit code 74; the same command"),
        ({"status": "FAILED", "driver_exit_code": -9}, 137, "exit code 137; the same command"),
        ({"status": "FAILED", "message": "Job supervisor actor died: x\ny"}, 69, "died: x);"),
    ],
)
def test_a_job_ends_with_the_code_of_its_driver(
    board: Board, end: dict[str, Any], code: int, said: str
) -> None:
    one, heard, written = submitter(board)
    board.add("mine-a1", "PENDING")
    board.script = [{}, {"status": "RUNNING", "log": "one\ntwo\n"}, {}, {"log": "thr"},
                    {"log": "ee\n"} | end]  # fmt: skip
    assert one.follow("mine-a1") == code
    assert "".join(written) == "one\ntwo\nthree\n"
    assert len(heard) == 1
    assert said in heard[0]


def test_an_outage_shorter_than_our_patience_is_waited_for(board: Board) -> None:
    one, _, written = submitter(board)
    board.add("mine-a1")
    board.script = [{"log": "one\n"}, {"log": "two\n", "status": "SUCCEEDED"}]
    board.tricks = [away(5, "mine-a1")]
    assert one.follow("mine-a1") == 0
    assert "".join(written) == "one\ntwo\n"


def test_an_outage_longer_than_our_patience_ends_the_following(board: Board) -> None:
    one, _, _ = submitter(board, patience_s=0.2)
    board.add("mine-a1")
    board.tricks = [away(10**6, "mine-a1")]
    began = time.monotonic()
    with pytest.raises(ClusterUnavailable, match="may go on without us: the same command follows"):
        one.follow("mine-a1")
    assert 0.2 < time.monotonic() - began < 5


def test_a_head_that_was_replaced_ends_the_following(board: Board) -> None:
    one, _, _ = submitter(board)
    with pytest.raises(ClusterUnavailable, match="knows no mine-a1: its head was replaced"):
        one.follow("mine-a1")


def test_a_log_that_cannot_be_read_is_told_once_and_does_not_end_the_following(
    board: Board,
) -> None:
    one, said, written = submitter(board)
    board.add("mine-a1")
    board.script = [{"log": "one\n"}, {}, {"log": "two\n"}, {"status": "SUCCEEDED"}]
    board.tricks = [away(3, "/logs")]
    assert one.follow("mine-a1") == 0
    assert "".join(written) == "one\ntwo\n"
    assert [one for one in said if "cannot be read now" in one] == said[:-1]
    assert len(said) == 2


def test_what_moves_a_cursor_does_not_reach_the_terminal(board: Board) -> None:
    one, _, written = submitter(board)
    board.add("mine-a1")
    board.script = [{"log": "a\x1b[2J\x07\r\tü\x9b1m\n", "status": "SUCCEEDED"}]
    one.follow("mine-a1")
    assert "".join(written) == "a[2J\tü1m\n"


def test_a_job_that_is_silent_is_looked_at_less_and_less(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(submit_module, "FIRST_PAUSE_S", 1.0)
    monkeypatch.setattr(time, "sleep", pauses.append)
    one, _, _ = submitter(board)
    board.add("mine-a1")
    board.script = [{"log": "a"}, *[{}] * 7, {"log": "b"}, {"status": "SUCCEEDED"}]
    one.follow("mine-a1")
    assert pauses == pytest.approx([1.0, 1.5, 2.25, 3.375, 5.0, 5.0, 5.0, 5.0, 1.0])
