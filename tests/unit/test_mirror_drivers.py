"""Has a run behind a URL one driver, and does it let go?"""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mirrors import Away, begin, content, head_of, silent, write

from rlhf_ray.durable import attempts, mirror
from rlhf_ray.durable.attempts import Owner, TakenOver
from rlhf_ray.durable.head import Head, newest, numbered
from rlhf_ray.durable.mirror import Mirror, mirrored
from rlhf_ray.durable.objects import Objects
from rlhf_ray.errors import BadData, RecipeError, StorageFailed


def test_a_driver_that_was_taken_over_writes_no_more(url: str, tmp_path: Path) -> None:
    first = begin(url, tmp_path / "a")
    write(tmp_path, {"a/mine": "1"})
    first.push()
    second = begin(url, tmp_path / "b")
    write(tmp_path, {"a/mine": "2", "b/mine": "3"})
    second.push()
    with pytest.raises(TakenOver, match=r"host-\d+ has taken over memory://.*writes no more"):
        first.push()
    for _ in range(5):  # heads between its own and the newest are gone: nothing refuses it there
        write(tmp_path, {"b/mine": "4" + (tmp_path / "b" / "mine").read_text()})
        second.push()
    assert numbered(second.objects)[0] > head_of(first).number + 1
    with pytest.raises(TakenOver):
        first.push()
    begin(url, tmp_path / "c")
    assert content(tmp_path / "c") == content(tmp_path / "b") == {"mine": b"444443"}


def test_a_driver_that_was_taken_over_notices_also_where_it_has_nothing_to_push(
    url: str, tmp_path: Path
) -> None:
    first = begin(url, tmp_path / "a")
    first.push()
    begin(url, tmp_path / "b")
    with pytest.raises(TakenOver):
        first.push()


def test_the_last_push_of_a_driver_that_is_ended_is_not_lost(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = begin(url, tmp_path / "a")
    write(tmp_path, {"a/x": "1"})
    monkeypatch.setattr(Owner, "end", lambda self: first.push())  # just before it dies
    begin(url, tmp_path / "b")
    assert content(tmp_path / "b") == {"x": b"1"}


def test_a_stopped_driver_goes_on_from_its_folder_and_another_run_does_not(
    url: str, tmp_path: Path
) -> None:
    def stopped() -> None:
        with mirrored(url, tmp_path / "a", takeover=False, say=silent) as one:
            one.push()
            write(tmp_path, {"a/x": "not pushed"})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    begin(url, tmp_path / "a")
    assert content(tmp_path / "a") == {"x": b"not pushed"}
    # The run is deleted, and another one is begun elsewhere that comes to the same numbers.
    objects = Objects(url)
    objects.delete(objects.names(""))
    for _ in range(3):
        begin(url, tmp_path / "b").end()
    begin(url, tmp_path / "a")
    assert content(tmp_path / "a") == {}


def test_of_two_drivers_that_begin_at_once_one_is_refused(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(url, tmp_path / "a")
    before = newest(Objects(url))
    begin(url, tmp_path / "b")
    monkeypatch.setattr(mirror, "newest", lambda objects: before)
    with pytest.raises(RecipeError, match="another driver has just begun"):
        begin(url, tmp_path / "c")


def test_a_driver_far_behind_cannot_begin_where_heads_were_deleted(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(url, tmp_path / "a")
    stale, second = newest(Objects(url)), begin(url, tmp_path / "b")
    for number in range(4):
        write(tmp_path, {"b/x": str(number)})
        second.push()
    monkeypatch.setattr(mirror, "newest", lambda objects: stale)
    with pytest.raises(RecipeError, match="another driver has just begun"):
        begin(url, tmp_path / "c")


def test_a_second_driver_hears_the_first_and_is_refused(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "BEAT_S", 0.05)
    monkeypatch.setattr(mirror, "SILENT_S", 5.0)
    first = Mirror(Objects(url), tmp_path / "a", silent)
    first.take(takeover=False)
    said: list[str] = []
    with pytest.raises(RecipeError, match=r"another driver is running in memory://.*--takeover"):
        begin(url, tmp_path / "b", takeover=False, say=said.append)
    assert said[0].startswith("listening 5 s for process")
    first.push()  # it still has the run
    first.close()
    monkeypatch.setattr(mirror, "SILENT_S", 0.5)
    began = time.monotonic()
    begin(url, tmp_path / "b", takeover=False, say=said.append)
    assert time.monotonic() - began >= 0.5
    with pytest.raises(TakenOver):
        first.end()


def test_a_driver_that_ended_is_not_listened_for(url: str, tmp_path: Path) -> None:
    for error in (None, KeyboardInterrupt, BadData("x"), StorageFailed("y")):
        try:
            with mirrored(url, tmp_path / "a", takeover=False, say=silent) as one:
                write(tmp_path, {"a/x": str(head_of(one).attempt)})
                if error is not None:
                    raise error
        except (KeyboardInterrupt, BadData, StorageFailed):
            assert newest(Objects(url)).ended
    # Whatever ends by an error does not push at last.
    begin(url, tmp_path / "b")
    assert content(tmp_path / "b") == {"x": b"1"}


def owned(url: str, folder: Path, owner: Owner) -> None:
    """A run whose driver has not let go."""
    driver = begin(url, folder)
    last = replace(head_of(driver), number=head_of(driver).number + 1, owner=owner)
    driver.objects.create(last.key, last.to_bytes())


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


def owner_of(process: "subprocess.Popen[bytes]") -> Owner:
    return Owner(socket.gethostname(), process.pid, attempts._born(process.pid))


def test_a_driver_that_lives_on_this_machine_is_refused_or_ended_at_once(
    url: str, tmp_path: Path, sleeper: "subprocess.Popen[bytes]"
) -> None:
    owned(url, tmp_path / "a", owner_of(sleeper))
    with pytest.raises(RecipeError, match=rf"another driver is running .*process {sleeper.pid}"):
        begin(url, tmp_path / "b", takeover=False)
    assert sleeper.poll() is None
    begin(url, tmp_path / "b", takeover=True)
    assert sleeper.wait(timeout=10) == -signal.SIGKILL


def test_only_a_driver_that_surely_died_here_is_not_listened_for(
    url: str, tmp_path: Path, sleeper: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "BEAT_S", 0.05)
    monkeypatch.setattr(mirror, "SILENT_S", 0.3)
    dead = owner_of(sleeper)
    sleeper.kill()
    sleeper.wait(timeout=10)
    owned(url, tmp_path / "a", dead)
    begin(url, tmp_path / "b", takeover=False)
    # A container beside this one: its host's name and kernel, and process numbers of its own.
    boot, _, began = dead.born.split()
    for born in (f"{boot} pid:[1] {began}", f"other-boot pid:[1] {began}", ""):
        owned(url, tmp_path / "c", replace(dead, born=born))
        said: list[str] = []
        begin(url, tmp_path / "b", takeover=False, say=said.append)
        assert said[0].startswith("listening")


def test_a_process_that_cannot_be_ended_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    owner, calls = Owner("h", 1, "x"), list[int]()

    def kill(pid: int, kind: int) -> None:
        calls.append(pid)
        raise (PermissionError if len(calls) == 1 else ProcessLookupError)

    monkeypatch.setattr(attempts.os, "kill", kill)
    monkeypatch.setattr(Owner, "lives_here", lambda self: True)
    with pytest.raises(RecipeError, match="belongs to another user"):
        owner.end()
    owner.end()  # it ended just then
    monkeypatch.setattr(attempts.os, "kill", lambda *asked: None)
    monkeypatch.setattr(attempts, "GONE_S", 0.1)
    with pytest.raises(RecipeError, match="was killed and does not end"):
        owner.end()


def test_the_beat_stops_with_the_driver_and_old_beats_go(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "BEAT_S", 0.02)
    for folder in ("a", "b"):
        with mirrored(url, tmp_path / folder, takeover=False, say=silent) as one:
            objects = one.objects
    assert objects.names("beats") == ["beats/000002"]
    time.sleep(0.1)
    beat = objects.read("beats/000002")
    time.sleep(0.2)
    assert objects.read("beats/000002") == beat


def test_a_beat_that_fails_is_said_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "BEAT_S", 0.02)
    said, objects = list[str](), Objects(url, silent)
    works, inner = objects._fs, Away(objects._fs, 10**9, PermissionError("403"))
    objects._fs = inner
    beat = mirror._Beat(objects, 1, said.append)
    await_true(lambda: inner.calls < 10**9 - 10)
    assert len(said) == 1
    assert "another driver may take over" in said[0]
    objects._fs = works
    await_true(lambda: bool(objects.names("beats")))
    objects._fs = inner
    await_true(lambda: len(said) == 2)
    beat.stop()


def await_true(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_an_error_is_raised_as_it_is_where_the_store_fails_as_well(
    url: str, tmp_path: Path
) -> None:
    said: list[str] = []

    def work() -> None:
        with mirrored(url, tmp_path / "a", takeover=False, say=said.append) as one:
            write(tmp_path, {"a/x": "1"})
            one.objects._fs = Away(one.objects._fs, 10**9, PermissionError("403"))
            raise BadData("the cause")

    with pytest.raises(BadData, match="the cause"):
        work()
    assert said == ["a driver on another machine will listen 30 s for this one"]


def test_a_driver_that_is_stopped_does_not_wait_for_the_store(url: str, tmp_path: Path) -> None:
    said, asked = list[str](), list[float]()

    def work() -> None:
        with mirrored(url, tmp_path / "a", takeover=False, say=said.append) as one:
            write(tmp_path, {"a/x": "1"})
            one.objects._fs = type("Hangs", (), {"pipe_file": lambda *a, **k: time.sleep(30)})()
            asked.append(time.monotonic())
            raise SystemExit(15)

    with pytest.raises(SystemExit):
        work()
    assert time.monotonic() - asked[0] < 2.0
    assert said == ["a driver on another machine will listen 30 s for this one"]
    assert newest(Objects(url)).files == {}


def ends(url: str, folder: Path, error: BaseException | None, work: Callable[[], None]) -> None:
    """A driver that works and ends with this error."""

    def driver() -> None:
        with mirrored(url, folder, takeover=False, say=silent):
            work()
            if error is not None:
                raise error

    if error is None:
        driver()
    else:
        with pytest.raises(type(error)):
            driver()


def test_a_damaged_state_is_never_pushed_as_a_whole_one(url: str, tmp_path: Path) -> None:
    ends(url, tmp_path / "a", None, lambda: write(tmp_path, {"a/x": "1", "a/y": "2"}))
    objects, before = Objects(url), newest(Objects(url))
    assert before is not None
    [piece] = before.files["x"].pieces
    objects.write({piece.key: b"3"})
    for folder in ("b", "c", "b"):
        with pytest.raises(BadData, match="'x' is not as it was written"):
            ends(url, tmp_path / folder, None, lambda: None)
        after = newest(objects)
        assert after is not None
        assert (after.files, after.ended) == (before.files, True)


def test_a_pull_that_was_interrupted_is_no_state(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends(url, tmp_path / "a", None, lambda: write(tmp_path, {"a/journal/1": "1", "a/y": "2"}))
    join, joined = mirror.fsio.atomic_join, list[Path]()

    def interrupted(path: Path, parts: list[Path]) -> None:
        if joined:
            raise KeyboardInterrupt
        joined.append(path)
        join(path, parts)

    monkeypatch.setattr(mirror.fsio, "atomic_join", interrupted)
    ends(url, tmp_path / "b", KeyboardInterrupt(), lambda: None)
    monkeypatch.setattr(mirror.fsio, "atomic_join", join)
    ends(url, tmp_path / "b", None, lambda: None)
    assert content(tmp_path / "b") == content(tmp_path / "a")


def test_a_folder_in_which_damage_was_found_is_fetched_again(url: str, tmp_path: Path) -> None:
    ends(url, tmp_path / "a", None, lambda: write(tmp_path, {"a/journal/1": "1", "a/y": "2"}))
    ends(url, tmp_path / "a", BadData("y is missing"), (tmp_path / "a" / "y").unlink)
    ends(url, tmp_path / "a", None, lambda: None)
    assert content(tmp_path / "a") == {"journal/1": b"1", "y": b"2"}


def test_of_two_that_listen_for_a_dead_driver_the_second_listens_for_the_first(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(url, tmp_path / "a")
    waited, listen = list[int](), mirror._await_silence

    def beside(objects: Objects, head: Head, **how: Any) -> None:
        waited.append(head.attempt)
        if len(waited) == 1:
            monkeypatch.setattr(mirror, "_await_silence", lambda *asked, **how: None)
            begin(url, tmp_path / "b")
            monkeypatch.setattr(mirror, "_await_silence", beside)
        else:
            listen(objects, head, **how)

    monkeypatch.setattr(mirror, "_await_silence", beside)
    monkeypatch.setattr(mirror, "SILENT_S", 0.1)
    monkeypatch.setattr(mirror, "BEAT_S", 0.05)
    begin(url, tmp_path / "c", takeover=False, say=lambda line: None)
    assert waited == [1, 2]


def test_a_living_driver_has_not_ended_where_the_host_has_another_name_now(
    sleeper: "subprocess.Popen[bytes]",
) -> None:
    owner = replace(owner_of(sleeper), host="its-old-name")
    assert not owner.ended_here()
    assert not owner.lives_here()
    sleeper.kill()
    sleeper.wait(timeout=10)
    assert owner.ended_here()
