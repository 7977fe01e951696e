"""Ray's own client of the job server: deadlines, tokens, and whom it talks to."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobserver import Board, away, silent

from rlhf_ray import submit_server
from rlhf_ray.errors import ClusterUnavailable, RecipeError
from rlhf_ray.submit import Submission
from rlhf_ray.submit_server import JobServer, checked_address, find_token, is_local

NAMES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a client leaves in the environment is undone."""
    for name in NAMES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def board() -> Iterator[Board]:
    with Board("secret") as found:
        yield found


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine, treated as another one."""
    monkeypatch.setattr(submit_server, "is_local", lambda address: False)


# Which address


@pytest.mark.parametrize(
    ("address", "here"),
    [
        ("http://localhost:8265", True),
        ("http://127.0.0.1:8265", True),
        ("http://127.8.8.8", True),
        ("https://[::1]:8265", True),
        ("http://head:8265", False),
        ("http://10.0.0.7:8265", False),
        ("http://127.0.0.1.example:8265", False),
        ("http://localhost.example", False),
        ("http://0.0.0.0:8265", False),
    ],
)
def test_only_the_loopback_is_this_machine(address: str, here: bool) -> None:
    assert is_local(address) is here


@pytest.mark.parametrize("address", ["http://head:8265", "https://ray.example/below/"])
def test_another_machine_without_a_token_is_refused(address: str) -> None:
    assert checked_address(address, "secret") == address.rstrip("/")
    with pytest.raises(RecipeError, match="another machine, and there is no token"):
        checked_address(address, None)


@pytest.mark.parametrize(
    "address",
    ["", "head:6379", "ray://head:10001", "auto", "http://", "http://head:8265?x=1", "http://h:p",
     "file:///etc/passwd", "http://[::1"],
)  # fmt: skip
def test_what_is_no_dashboard_is_refused(address: str) -> None:
    with pytest.raises(RecipeError, match="--address"):
        checked_address(address, "secret")


def test_a_login_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(RecipeError, match="holds a login") as refused:
        checked_address("http://me:pass@head:8265", "secret")
    assert "pass" not in str(refused.value)


def test_the_environment_does_not_lead_the_client_elsewhere(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Board() as other:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", other.address)
        monkeypatch.setenv("RAY_ADDRESS", other.address)
        JobServer(board.address, "secret").jobs()
        assert board.seen
        assert not other.seen


# Which token


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, "of-home"),
        ({"RAY_AUTH_TOKEN_PATH": "named"}, "of-file"),
        ({"RAY_AUTH_TOKEN": " of-variable\n", "RAY_AUTH_TOKEN_PATH": "named"}, "of-variable"),
        ({"RAY_AUTH_MODE": "token"}, "of-home"),
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "of-variable"}, None),
    ],
)
def test_the_token_is_found_where_ray_looks_for_it(
    tmp_path: Path, environ: dict[str, str], found: str | None
) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of-home\n")
    (tmp_path / "named").write_text("of-file")
    if "RAY_AUTH_TOKEN_PATH" in environ:
        environ |= {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "named")}
    assert find_token(environ, tmp_path) == found


def test_where_there_is_no_token_there_is_none(tmp_path: Path) -> None:
    assert find_token({}, tmp_path) is None


@pytest.mark.parametrize(
    ("environ", "why"),
    [
        ({"RAY_AUTH_MODE": "token"}, "there is no token in"),
        ({"RAY_AUTH_TOKEN_PATH": "/not/there"}, "cannot be read"),
        ({"RAY_AUTH_TOKEN_PATH": "/dev/null"}, "there is no token in"),
        ({"RAY_AUTH_TOKEN": "two words"}, "holds no token"),
        ({"RAY_AUTH_TOKEN": "a\nHost: x"}, "holds no token"),
        ({"RAY_AUTH_TOKEN": "ключ"}, "holds no token"),
    ],
)
def test_a_token_that_cannot_be_is_refused_and_not_repeated(
    tmp_path: Path, environ: dict[str, str], why: str
) -> None:
    with pytest.raises(RecipeError, match=why) as refused:
        find_token(environ, tmp_path)
    assert environ.get("RAY_AUTH_TOKEN", "ключ") not in str(refused.value)


def test_every_request_shows_the_token_and_no_job_holds_it(board: Board, tmp_path: Path) -> None:
    server = JobServer(board.address, "secret")
    server.start("a1", Submission("a", "/shared/a", "true", {}, tmp_path))
    assert [job.id for job in server.jobs()] == ["a1"]
    assert server.log("a1") == ""
    assert {shown for _, _, shown in board.seen} == {"Bearer secret"}
    assert "secret" not in repr(board.jobs) + repr(board.packages)


@pytest.mark.parametrize("token", [None, "wrong"])
def test_a_token_that_is_refused_says_where_to_put_the_right_one(
    board: Board, token: str | None
) -> None:
    with pytest.raises(RecipeError, match="refuses the token, or wants one; put the token"):
        JobServer(board.address, token)


def test_a_cluster_elsewhere_that_asks_for_no_token_is_refused(elsewhere: None) -> None:
    with Board() as open_board:
        with pytest.raises(RecipeError, match="start Ray on all nodes with RAY_AUTH_MODE=token"):
            JobServer(open_board.address, "secret")
        assert {shown for _, _, shown in open_board.seen} == {None}


def test_a_cluster_elsewhere_that_asks_for_a_token_is_used(board: Board, elsewhere: None) -> None:
    assert JobServer(board.address, "secret").jobs() == []
    assert board.seen[0] == ("GET", "/api/jobs/", None)


# What does not answer


def test_a_server_that_never_answers_is_given_up(
    board: Board, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(submit_server, "ANSWER_S", 0.2)
    server = JobServer(board.address, "secret")
    board.tricks = [silent]
    asked = Submission("a", "/shared/a", "true", {}, tmp_path)
    for ask in (server.jobs, lambda: server.job("a1"), lambda: server.log("a1"),
                lambda: server.start("a1", asked)):  # fmt: skip
        began = time.monotonic()
        with pytest.raises(ClusterUnavailable, match="is the head up"):
            ask()
        assert time.monotonic() - began < 5


def test_a_first_question_that_is_never_answered_is_given_up(
    board: Board, monkeypatch: pytest.MonkeyPatch, elsewhere: None
) -> None:
    monkeypatch.setattr(submit_server, "CONNECT_S", 0.2)
    board.tricks = [silent]
    with pytest.raises(ClusterUnavailable, match="is the head up"):
        JobServer(board.address, "secret")


@pytest.mark.parametrize("far", [True, False])
def test_a_port_where_nobody_listens_is_named(monkeypatch: pytest.MonkeyPatch, far: bool) -> None:
    monkeypatch.setattr(submit_server, "is_local", lambda address: not far)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(ClusterUnavailable, match=f"at {address} .*is the head up"):
            JobServer(address, "secret")


def test_an_answer_that_is_not_rays_is_told(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    server = JobServer(board.address, "secret")
    monkeypatch.setattr(board, "answer", lambda *_: (200, {"strange": True}))
    with pytest.raises(ClusterUnavailable, match="no answer of a Ray job server"):
        server.jobs()
    with pytest.raises(ClusterUnavailable, match="no answer of a Ray job server"):
        JobServer(board.address, "secret")


def test_an_error_of_the_server_is_told_by_its_last_line(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = JobServer(board.address, "secret")
    monkeypatch.setattr(board, "answer", lambda *_: (500, "Traceback:\n  ...\nValueError: full\n"))
    with pytest.raises(ClusterUnavailable, match=r"status 500: ValueError: full$"):
        server.jobs()


def test_a_hang_up_is_no_answer(board: Board) -> None:
    server = JobServer(board.address, "secret")
    board.tricks = [away(1)]
    with pytest.raises(ClusterUnavailable, match="no answer"):
        server.jobs()
    assert server.job("a1") is None
    assert os.environ["RAY_API_SERVER_ADDRESS"] == board.address
