"""What is asked of an object store, and what where it is away?"""

import errno
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mirrors import Away, begin, content, head_of, silent, write
from objectstore import object_store

from rlhf_ray.durable import objects as objects_module
from rlhf_ray.durable.attempts import TakenOver
from rlhf_ray.durable.mirror import Mirror
from rlhf_ray.durable.objects import Objects
from rlhf_ray.durable.pull import fetch
from rlhf_ray.durable.staging import folder_of, local
from rlhf_ray.errors import BadData, RecipeError, StorageFailed


def test_a_store_that_does_not_answer_ends_the_wait_by_its_deadline(url: str) -> None:
    objects = Objects(url)
    objects._fs = type("Hangs", (), {"pipe_file": lambda *a, **k: time.sleep(30)})()
    began = time.monotonic()
    with pytest.raises(
        StorageFailed, match=r"cannot create x in memory://.*no answer within 0.2 s"
    ):
        objects.create("x", b"", within_s=0.2)
    assert time.monotonic() - began < 5


def test_a_store_that_overwrites_is_refused(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects, plain = Objects(url), Objects(url)._fs.pipe_file
    monkeypatch.setattr(
        type(objects._fs), "pipe_file", lambda self, path, data, mode="": plain(path, data)
    )
    with pytest.raises(RecipeError, match="does not refuse to create what is there already"):
        Mirror(objects, tmp_path / "a", silent).take(takeover=False)
    assert objects.names("") == []


@pytest.mark.parametrize(
    "bad",
    [
        "ftp://host/x",
        "file:///x",
        "s3://",
        "://x",
        "s3://b",
        "s3:///x",
        "s3://b/x::y",
        "s3://b/a*",
        "s3://k:secret@b/x",
        "s3://b/[x]",
        "s3://b/a b",
        "s3://b/../x",
        "s3://b//x",
        "s3://b/x?y",
    ],
)
def test_a_url_that_two_drivers_could_write_behind_is_refused(bad: str) -> None:
    with pytest.raises(RecipeError, match=r"cannot be kept in '.*s3://BUCKET/PATH"):
        Objects(bad)


def test_every_url_has_one_spelling_and_a_folder_of_its_own_on_each_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folders = {folder_of(url) for url in ("s3://a-b/x", "s3://a-b/x/", "s3://b-b/x", "gs://a-b/x")}
    assert len(folders) == 3
    monkeypatch.setattr(socket, "gethostname", lambda: "another")
    assert folder_of("s3://a-b/x") not in folders
    assert folder_of("runs/x") == Path("runs/x")
    with pytest.raises(RecipeError, match="cannot be kept"):
        folder_of("ftp://h/x")
    with pytest.raises(BadData, match="rlhf-ray fetch s3://a-b/x FOLDER"):
        local("s3://a-b/x/")


@pytest.mark.parametrize(
    "error",
    [ConnectionRefusedError(), TimeoutError(), OSError(errno.EBUSY, "slow down"),
     type("EndpointConnectionError", (Exception,), {})(),
     type("ClientConnectorError", (OSError,), {})(errno.ECONNREFUSED, "refused"),
     type("ServerDisconnectedError", (Exception,), {})()],
)  # fmt: skip
def test_a_store_that_is_away_for_a_while_is_waited_for(
    error: Exception, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects_module, "AWAY_S", 20.0)
    said: list[str] = []
    driver = begin(url, tmp_path / "a", say=said.append)
    write(tmp_path, {"a/x": "1"})
    driver.objects._fs = Away(driver.objects._fs, 7, error)
    driver.push()
    assert len(said) == 1
    assert f"{url} does not answer, trying for 20 s" in said[0]
    begin(url, tmp_path / "b")
    assert content(tmp_path / "b") == {"x": b"1"}


@pytest.mark.parametrize("error", [PermissionError("403"), OSError(errno.ENOSPC, "full")])
def test_what_does_not_pass_by_waiting_ends_at_once(error: Exception, url: str) -> None:
    objects = Objects(url, silent)
    objects._fs = Away(objects._fs, 1, error)
    with pytest.raises(StorageFailed, match=type(error).__name__):
        objects.read("x")


def test_a_create_that_was_done_before_it_failed_is_done(url: str) -> None:
    objects, inner = Objects(url, silent), Objects(url)._fs

    class Forgetful:
        cat_file = inner.cat_file

        def pipe_file(self, *asked: Any, **options: Any) -> None:
            inner.pipe_file(*asked, **options)
            raise ConnectionResetError

    objects._fs = Forgetful()
    assert objects.create("x", b"mine")
    assert not objects.create("x", b"of another")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with object_store() as found:
        yield found


def test_s3_keeps_a_run_and_refuses_a_second_driver(
    elsewhere: None, bucket: str, tmp_path: Path
) -> None:
    url = f"{bucket}/mine"
    first = begin(url, tmp_path / "a")
    write(tmp_path, {"a/journal/1": "one\n", "a/big": "x" * 200_000})
    first.push()
    write(tmp_path, {"a/journal/1": "one\ntwo\n"})
    first.push()
    assert not first.objects.create(head_of(first).key, b"of another")
    second = begin(url, tmp_path / "b")
    assert content(tmp_path / "b") == content(tmp_path / "a")
    with pytest.raises(TakenOver):
        first.end()
    second.end()
    fetch(url, tmp_path / "c")
    assert content(tmp_path / "c") == content(tmp_path / "a")
    with pytest.raises(BadData, match="there already"):
        fetch(url, tmp_path / "c")
    with pytest.raises(BadData, match="no run in"):
        fetch(f"{bucket}/nothing", tmp_path / "d")


def test_s3_is_listed_anew_each_time(bucket: str) -> None:
    one, other = Objects(f"{bucket}/lists"), Objects(f"{bucket}/lists")
    assert one.names("heads") == []
    other.write({"heads/1": b"x"})
    assert one.names("heads") == ["heads/1"]


def test_a_bucket_that_is_not_there_is_named(bucket: str, tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match=r"s3://nowhere-at-all/x: .*see whether it is"):
        begin("s3://nowhere-at-all/x", tmp_path / "a")
