"""Does a run behind a URL outlive the machine it was worked on?"""

import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mirrors import begin, content, head_of, silent, write

from rlhf_ray.durable import changes, mirror
from rlhf_ray.durable import objects as objects_module
from rlhf_ray.durable.attempts import Owner
from rlhf_ray.durable.head import Head, Kept, Piece, newest
from rlhf_ray.durable.mirror import mirrored
from rlhf_ray.durable.objects import Objects
from rlhf_ray.durable.pull import fetch, tree
from rlhf_ray.errors import BadData, StorageFailed


def test_what_was_pushed_is_there_on_another_machine(url: str, tmp_path: Path) -> None:
    with mirrored(url, tmp_path / "a", takeover=False, say=silent) as first:
        write(tmp_path / "a", {"journal/000001.jsonl": "one\n", "empty": "", "old": "old"})
        first.push()
        write(tmp_path / "a", {"journal/000001.jsonl": "one\ntwo\n", "samples/x": "x"})
        (tmp_path / "a" / "old").unlink()
    with mirrored(url, tmp_path / "b", takeover=False, say=silent) as second:
        assert content(tmp_path / "b") == content(tmp_path / "a")
        assert (head_of(second).attempt, len(content(tmp_path / "b"))) == (2, 3)
    assert newest(Objects(url)).ended


def test_what_was_not_pushed_is_known_on_this_machine_alone(url: str, tmp_path: Path) -> None:
    first = begin(url, tmp_path / "a")
    write(tmp_path, {"a/kept": "1", "a/checkpoints/step-000001/weights": "w"})
    first.push()
    write(tmp_path, {"a/kept": "12", "a/more": "2", "a/checkpoints/step-000002/weights": "v"})
    here = content(tmp_path / "a")
    begin(url, tmp_path / "a")
    assert content(tmp_path / "a") == here
    # Whoever goes on elsewhere takes the run from there; what was ahead of it is no part of it.
    pushed = {"kept": b"1", "checkpoints/step-000001/weights": b"w"}
    begin(url, tmp_path / "b")
    assert content(tmp_path / "b") == pushed
    begin(url, tmp_path / "a")
    assert content(tmp_path / "a") == pushed
    # An empty folder would count as a damaged checkpoint.
    assert not (tmp_path / "a" / "checkpoints" / "step-000002").exists()


def test_a_folder_that_was_cleared_is_fetched_again(url: str, tmp_path: Path) -> None:
    driver = begin(url, tmp_path / "a")
    write(tmp_path, {"a/journal/000001.jsonl": "one\n", "a/x": "1"})
    driver.push()
    for part in ("journal", "a"):  # `rm -r FOLDER/*` leaves the mark, `rm -r FOLDER` does not
        shutil.rmtree(tmp_path / "a" / part if part == "journal" else tmp_path / "a")
        begin(url, tmp_path / "a")
        assert content(tmp_path / "a") == {"journal/000001.jsonl": b"one\n", "x": b"1"}


def test_a_pull_that_was_broken_off_goes_on(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects_module, "BATCH_FILES", 2)
    driver, asked = begin(url, tmp_path / "a"), list[int]()
    write(tmp_path, {f"a/{number}": str(number) for number in range(7)})
    driver.push()

    download = Objects.download

    def third_fails(self: Objects, files: dict[str, Path], size: int) -> None:
        asked.append(len(files))
        if len(asked) == 3:
            raise StorageFailed("cable pulled")
        download(self, files, size)

    monkeypatch.setattr(Objects, "download", third_fails)
    with pytest.raises(StorageFailed):
        begin(url, tmp_path / "b")
    begin(url, tmp_path / "b")
    assert asked == [2, 2, 2, 2, 1]
    assert content(tmp_path / "b") == content(tmp_path / "a")
    assert not (tmp_path / "b" / ".fetched").exists()


NAMES = st.sampled_from(["a", "b/c", "b/d.jsonl", "e/f/g"])

ACTS = st.one_of(
    st.tuples(st.just("write"), NAMES, st.binary(max_size=20)),
    st.tuples(st.just("append"), NAMES, st.binary(max_size=20)),
    st.tuples(st.just("remove"), NAMES),
    st.tuples(st.just("push")),
    st.tuples(st.just("crash")),
)


@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(acts=st.lists(ACTS, max_size=25), most=st.integers(min_value=1, max_value=4))
def test_a_new_driver_finds_what_was_pushed_last_whatever_was_done(
    elsewhere: None, tmp_path_factory: pytest.TempPathFactory, acts: list[tuple], most: int
) -> None:
    url, top = f"memory://runs/{uuid.uuid4().hex}", tmp_path_factory.mktemp("drivers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(changes, "MOST_PIECES", most)
        driver, pushed, count = begin(url, top / "0"), dict[str, bytes](), 0
        for act, *told in [*acts, ("crash",)]:
            path = driver.folder / told[0] if told else driver.folder
            if act == "push":
                driver.push()
                pushed = content(driver.folder)
            elif act == "crash":
                count += 1
                driver = begin(url, top / str(count))
                assert content(driver.folder) == pushed
            elif act == "remove":
                path.unlink(missing_ok=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                before = path.read_bytes() if act == "append" and path.exists() else b""
                path.write_bytes(before + told[1])
        needed = head_of(driver).keys()
        assert needed <= set(driver.objects.names("files"))


def test_of_a_file_that_has_grown_only_its_end_is_sent(url: str, tmp_path: Path) -> None:
    driver = begin(url, tmp_path / "a")
    write(tmp_path, {"a/journal/000001.jsonl": "x" * 1000})
    driver.push()
    write(tmp_path, {"a/journal/000001.jsonl": "x" * 1000 + "yyy"})
    driver.push()
    pieces = head_of(driver).files["journal/000001.jsonl"].pieces
    assert [piece.size for piece in pieces] == [1000, 3]
    os.utime(tmp_path / "a" / "journal" / "000001.jsonl")  # read again, and found the same
    number = head_of(driver).number
    driver.push()
    assert head_of(driver).number == number


def test_what_concerns_one_machine_or_is_half_written_is_not_kept(url: str, tmp_path: Path) -> None:
    driver, own = begin(url, tmp_path / "a"), {"a/.lock": "", "a/scale.json": "{}"}
    half = {
        "a/checkpoints/.tmp-step-000001/w": "w",
        "a/.metrics.jsonl.tmp": "m",
        "a/logs/l.log": "l",
    }
    write(tmp_path, {"a/judges/.training-x/step-000010/w": "w", **own, **half})
    (tmp_path / "b" / "logs").mkdir(parents=True)
    write(tmp_path, {"b/scale.json": "{}", "b/.metrics.jsonl.tmp": "m"})
    driver.push()
    assert list(head_of(driver).files) == ["judges/.training-x/step-000010/w"]
    begin(url, tmp_path / "b")
    assert (tmp_path / "b" / "scale.json").is_file()
    assert (tmp_path / "b" / "logs").is_dir()
    assert not (tmp_path / "b" / ".metrics.jsonl.tmp").exists()


class _Failing:
    """A file system of which all calls fail from the k-th on."""

    def __init__(self, inner: object, works: int) -> None:
        self.inner, self.left = inner, works

    def __getattr__(self, name: str) -> Callable[..., object]:
        def call(*asked: object, **options: object) -> object:
            self.left -= 1
            if self.left < 0:
                raise ConnectionError("cable pulled")
            return getattr(self.inner, name)(*asked, **options)

        return call


def test_a_crash_at_any_request_leaves_the_state_before_or_after(
    elsewhere: None, tmp_path: Path
) -> None:
    states, works = list[dict[str, bytes]](), 0
    while True:
        url = f"memory://runs/{uuid.uuid4().hex}"
        folder, said = tmp_path / f"{works}", list[str]()
        driver = begin(url, folder, say=said.append)
        write(folder, {"journal/1": "one\n", "metrics": "m", "checkpoints/step-1/w": "w" * 99})
        driver.push()
        before = content(folder)
        write(folder, {"journal/1": "one\ntwo\n", "metrics": "n", "checkpoints/step-2/w": "v" * 99})
        shutil.rmtree(folder / "checkpoints" / "step-1")
        after = content(folder)
        driver.objects._fs = _Failing(driver.objects._fs, works)
        try:
            driver.push()
        except StorageFailed as error:
            assert "cable pulled" in str(error)  # noqa: PT017
            done = False
        else:
            done = True
        begin(url, tmp_path / f"{works}-next")
        states.append(content(tmp_path / f"{works}-next"))
        assert states[-1] in (before, after)
        if done:
            break
        works += 1
    assert states[0] == before
    assert states[-1] == after
    assert works >= 4


def test_a_damaged_object_is_found_and_named(url: str, tmp_path: Path) -> None:
    driver = begin(url, tmp_path / "a")
    write(tmp_path, {"a/journal/1": "one\n"})
    driver.push()
    [piece] = head_of(driver).files["journal/1"].pieces
    driver.objects.write({piece.key: b"One\n"})
    with pytest.raises(BadData, match=rf"'journal/1' is not as it was written.*{piece.key}"):
        begin(url, tmp_path / "b")


@pytest.mark.parametrize("data", [b"", b"[]", b'{"format": 1}', b'{"format": 1, "files": 3}'])
def test_a_damaged_head_is_found(url: str, tmp_path: Path, data: bytes) -> None:
    objects = Objects(url)
    objects.write({"heads/000000007.json": data})
    with pytest.raises(BadData, match=r"heads/000000007.json is no state of a run"):
        newest(objects)


def test_a_head_of_a_later_version_is_refused(url: str) -> None:
    objects = Objects(url)
    head = Head(1, 1, Owner.here(), files={"x": Kept("0" * 64, (Piece("files/x", 3),))})
    assert Head.of(head.to_bytes(), "here") == head
    later = json.loads(head.to_bytes()) | {"format": 2}
    objects.write({head.key: json.dumps(later).encode()})
    with pytest.raises(BadData, match="has format 2, this version of rlhf_ray reads 1"):
        newest(objects)


def test_no_more_is_kept_than_the_last_two_states_need(url: str, tmp_path: Path) -> None:
    driver = begin(url, tmp_path / "a")
    for number in range(12):
        write(tmp_path, {f"a/checkpoints/step-{number}/w": "w", "a/journal/1": "line\n" * number})
        if number:
            shutil.rmtree(tmp_path / "a" / "checkpoints" / f"step-{number - 1}")
        driver.push()
    assert len(driver.objects.names("heads")) == 2
    steps = [name for name in driver.objects.names("files") if "step-" in name]
    assert len(steps) == 2
    driver.objects.write({"files/000001/left@000000099": b"by an attempt that died"})
    second = begin(url, tmp_path / "b")
    assert set(second.objects.names("files")) == head_of(second).keys()


def test_a_key_is_no_pattern(url: str, tmp_path: Path) -> None:
    driver = begin(url, tmp_path / "a")
    write(tmp_path, {"a/a?": "1", "a/ab": "2", "a/[x]": "3", "a/x": "4", "a/ä b#%41": "5"})
    driver.push()
    for name in ("a?", "[x]"):
        (tmp_path / "a" / name).unlink()
    for text in ("6", "7", "8"):
        write(tmp_path, {"a/more": text})
        driver.push()
    begin(url, tmp_path / "b")
    assert content(tmp_path / "b") == content(tmp_path / "a")


@pytest.mark.parametrize("name", ["../out", "/etc/x", "a//b", "a/../b", "", "."])
def test_a_head_cannot_name_files_outside_the_folder(name: str, url: str, tmp_path: Path) -> None:
    objects = Objects(url)
    head = Head(1, 1, Owner.here(), files={name: Kept("0" * 64, (Piece("files/x", 3),))})
    objects.write({head.key: head.to_bytes(), "files/x": b"abc"})
    with pytest.raises(BadData, match="is no state of a run"):
        fetch(url, tmp_path / "f")


def test_a_push_reads_only_what_has_changed(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, read = begin(url, tmp_path / "a"), list[Path]()
    write(tmp_path, {"a/x": "1", "a/y": "2"})
    driver.push()
    sha = mirror.fsio.sha256_of
    monkeypatch.setattr(
        mirror.fsio, "sha256_of", lambda path, **how: read.append(path) or sha(path, **how)
    )
    driver.push()
    assert read == []
    write(tmp_path, {"a/y": "other"})
    driver.push()
    assert {path.name for path in read} == {"y"}


def test_what_was_damaged_here_is_fetched_again_and_nothing_else(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, fetched = begin(url, tmp_path / "a"), list[str]()
    write(tmp_path, {"a/x": "1", "a/y": "2"})
    driver.push()
    begin(url, tmp_path / "b")
    write(tmp_path, {"b/y": "3"})
    (tmp_path / "b" / ".head").unlink()
    download = Objects.download
    monkeypatch.setattr(
        Objects,
        "download",
        lambda self, files, size: fetched.extend(files) or download(self, files, size),
    )
    begin(url, tmp_path / "b")
    assert [key.partition("@")[0] for key in fetched] == ["files/000001/y"]
    assert content(tmp_path / "b") == content(tmp_path / "a")
    modes = {path.stat().st_mode & 0o777 for path in tree(tmp_path / "b").values()}
    assert 0o600 in modes


def test_fetched_files_are_their_owners_alone(url: str, tmp_path: Path) -> None:
    driver = begin(url, tmp_path / "a")
    write(tmp_path, {"a/x": "1", "a/d/y": "2"})
    driver.push()
    fetch(url, tmp_path / "f")
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "f").rglob("*")} == {0o600, 0o700}


def test_a_fetch_beside_a_driver_that_pushes_takes_a_newer_state(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, download = begin(url, tmp_path / "a"), Objects.download
    write(tmp_path, {"a/x": "1"})
    driver.push()

    def meanwhile(self: Objects, files: dict[str, Path], size: int) -> None:
        monkeypatch.setattr(Objects, "download", download)
        for number in range(4):
            write(tmp_path, {"a/x": f"{number} anew"})
            driver.push()
        download(self, files, size)

    monkeypatch.setattr(Objects, "download", meanwhile)
    fetch(url, tmp_path / "f")
    assert content(tmp_path / "f") == {"x": b"3 anew"}


def test_a_head_that_is_replaced_while_it_is_looked_for_is_looked_for_again(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(url, tmp_path / "a")
    objects, read = Objects(url), Objects.read
    answers: list[Any] = [None]
    monkeypatch.setattr(
        Objects, "read", lambda self, key: answers.pop() if answers else read(self, key)
    )
    assert newest(objects) is not None
    monkeypatch.setattr(Objects, "read", lambda self, key: None)
    with pytest.raises(BadData, match=f"{url}/heads changes faster"):
        newest(objects)
