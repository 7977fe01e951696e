"""What is pushed where a run goes on while it is pushed?"""

from pathlib import Path
from typing import Any

import pytest
from mirrors import begin, content, write

from rlhf_ray.durable import changes
from rlhf_ray.durable.head import newest
from rlhf_ray.durable.objects import Objects
from rlhf_ray.durable.pull import fetch
from rlhf_ray.errors import StorageFailed


def test_a_file_that_changes_while_it_is_sent_is_looked_at_again(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, sent, keys = begin(url, tmp_path / "a"), list[int](), list[str]()
    upload, often = Objects.upload, 1

    def meanwhile(self: Objects, files: dict[str, Path]) -> None:
        sent.append(len(files))
        keys.extend(files)
        if len(sent) <= often:
            (tmp_path / "a" / "report.html").write_text("changed" * len(sent))
            (tmp_path / "a" / "gone").unlink(missing_ok=True)
        upload(self, files)

    monkeypatch.setattr(Objects, "upload", meanwhile)
    write(tmp_path, {"a/report.html": "old", "a/gone": "x"})
    driver.push()
    write(tmp_path, {"a/report.html": "newer"})
    often = len(sent) + 1
    driver.push()
    begin(url, tmp_path / "b")
    assert content(tmp_path / "b") == content(tmp_path / "a")
    often = 1000
    write(tmp_path, {"a/report.html": "newest"})
    with pytest.raises(StorageFailed, match="was changed whenever it was pushed"):
        driver.push()
    # Of an upload that was given up, bytes may still arrive.
    assert len(set(keys)) == len(keys)


def test_critiques_that_are_added_while_a_run_is_pushed_are_in_the_next_push(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, name = begin(url, tmp_path / "a"), "critiques/000001.jsonl"
    write(tmp_path, {f"a/{name}": "one\n"})
    put = Objects.write

    def meanwhile(self: Objects, pieces: Any, **options: Any) -> None:
        put(self, pieces, **options)
        with (tmp_path / "a" / name).open("a") as file:
            file.write("more\n")

    monkeypatch.setattr(Objects, "write", meanwhile)
    for known in ("one\n", "one\nmore\n", "one\nmore\nmore\n"):  # the first as a whole
        driver.push()
        fetch(url, tmp_path / f"{len(known)}")
        assert (tmp_path / f"{len(known)}" / name).read_text() == known


def test_critiques_that_are_replaced_while_a_run_is_pushed_are_not_mixed(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, path = begin(url, tmp_path / "a"), tmp_path / "a" / "critiques" / "000001.jsonl"
    write(tmp_path, {"a/critiques/000001.jsonl": "one\n"})
    put = Objects.write

    def meanwhile(self: Objects, pieces: Any, **options: Any) -> None:
        put(self, pieces, **options)
        path.with_name("other").write_text("others, and more\n")
        path.with_name("other").replace(path)

    monkeypatch.setattr(Objects, "write", meanwhile)
    with pytest.raises(StorageFailed, match="was changed whenever it was pushed"):
        driver.push()


def test_who_is_stopped_while_a_thread_pushes_does_not_write_the_next_head_beside_it(
    url: str, tmp_path: Path
) -> None:
    said: list[str] = []
    driver = begin(url, tmp_path / "a")
    driver.say = said.append
    write(tmp_path, {"a/x": "1"})
    driver.push()
    with driver._lock:  # as a push has it
        driver.let_go()
    assert not newest(Objects(url)).ended  # type: ignore[union-attr]
    assert "will listen" in said[0]
    driver.let_go()
    assert newest(Objects(url)).ended  # type: ignore[union-attr]
    assert len(said) == 1


def test_critiques_that_are_added_while_they_are_read_do_not_spoil_what_is_sent(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, path = begin(url, tmp_path / "a"), tmp_path / "a" / "critiques" / "000001.jsonl"
    write(tmp_path, {"a/critiques/000001.jsonl": "one\n"})
    driver.push()
    read = changes.fsio.read_bytes

    def meanwhile(file: Path, *, start: int = 0) -> bytes:
        if file == path:
            with path.open("a") as grown:
                grown.write("three\n")
        return read(file, start=start)

    with path.open("a") as file:
        file.write("two\n")
    with monkeypatch.context() as patch:
        patch.setattr(changes.fsio, "read_bytes", meanwhile)
        driver.push()
    fetch(url, tmp_path / "b")  # checks every hash
    assert (tmp_path / "b" / "critiques" / "000001.jsonl").read_text() == "one\ntwo\n"
