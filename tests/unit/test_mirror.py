"""Does a run behind a URL outlive the machine it was worked on, and has it one driver?"""

import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from objectstore import object_store

from rlhf_ray.durable import mirror
from rlhf_ray.durable.attempts import Owner, TakenOver
from rlhf_ray.durable.head import Head, Kept, Piece, newest, numbered
from rlhf_ray.durable.mirror import Mirror, mirrored
from rlhf_ray.durable.objects import Objects
from rlhf_ray.durable.pull import fetch, tree
from rlhf_ray.errors import BadData, RecipeError, StorageFailed


@pytest.fixture
def url() -> str:
    return f"memory://runs/{uuid.uuid4().hex}"


def silent(text: str) -> None:
    raise AssertionError(f"nothing was to be said, but: {text}")


def content(folder: Path) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in tree(folder).items()}


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def begin(url: str, folder: Path, *, takeover: bool = True) -> Mirror:
    """A driver that never lets go, and that gives no sign of life any more."""
    made = Mirror(Objects(url), folder, takeover=takeover, say=silent)
    made.close()
    return made


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """All drivers of these tests are one process; each says that it is on a host of its own."""
    hosts = iter(range(1000))
    here = Owner.here()
    monkeypatch.setattr(Owner, "here", lambda: replace(here, host=f"host-{next(hosts)}"))


def test_what_was_pushed_is_there_on_another_machine(url: str, tmp_path: Path) -> None:
    with mirrored(url, tmp_path / "a", takeover=False, say=silent) as first:
        write(tmp_path / "a", {"journal/000001.jsonl": "one\n", "empty": "", "old": "old"})
        first.push()
        write(tmp_path / "a", {"journal/000001.jsonl": "one\ntwo\n", "samples/x": "x"})
        (tmp_path / "a" / "old").unlink()
    with mirrored(url, tmp_path / "b", takeover=False, say=silent) as second:
        assert content(tmp_path / "b") == content(tmp_path / "a")
        assert (second.head.attempt, len(content(tmp_path / "b"))) == (2, 3)
    assert newest(Objects(url)).ended


def test_what_was_not_pushed_is_gone_as_after_a_crash_a_moment_earlier(
    url: str, tmp_path: Path
) -> None:
    write(tmp_path, {"a/kept": "1"})
    first = begin(url, tmp_path / "a")
    write(tmp_path, {"a/kept": "1", "a/checkpoints/step-000001/weights": "w"})
    first.push()
    write(tmp_path, {"a/kept": "12", "a/more": "2", "a/checkpoints/step-000002/weights": "v"})
    begin(url, tmp_path / "a")
    assert content(tmp_path / "a") == {"kept": b"1", "checkpoints/step-000001/weights": b"w"}
    # An empty one would count as a damaged checkpoint.
    assert not (tmp_path / "a" / "checkpoints" / "step-000002").exists()


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
    tmp_path_factory: pytest.TempPathFactory, acts: list[tuple], most: int
) -> None:
    url, top = f"memory://runs/{uuid.uuid4().hex}", tmp_path_factory.mktemp("drivers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mirror, "MOST_PIECES", most)
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
        needed = driver.head.keys()
        assert needed <= set(driver.objects.names("files"))


def test_of_a_file_that_has_grown_only_its_end_is_sent(url: str, tmp_path: Path) -> None:
    driver = begin(url, tmp_path / "a")
    write(tmp_path, {"a/journal/000001.jsonl": "x" * 1000})
    driver.push()
    write(tmp_path, {"a/journal/000001.jsonl": "x" * 1000 + "yyy"})
    driver.push()
    pieces = driver.head.files["journal/000001.jsonl"].pieces
    assert [piece.size for piece in pieces] == [1000, 3]
    os.utime(tmp_path / "a" / "journal" / "000001.jsonl")  # read again, and found the same
    number = driver.head.number
    driver.push()
    assert driver.head.number == number


def test_what_concerns_one_machine_or_is_half_written_is_not_kept(url: str, tmp_path: Path) -> None:
    driver, own = begin(url, tmp_path / "a"), {"a/.lock": "", "a/scale.json": "{}"}
    half = {
        "a/checkpoints/.tmp-step-000001/w": "w",
        "a/.metrics.jsonl.tmp": "m",
        "a/logs/l.log": "l",
    }
    write(tmp_path, {"a/judges/.training-x/step-000010/w": "w", **own, **half})
    driver.push()
    assert list(driver.head.files) == ["judges/.training-x/step-000010/w"]
    begin(url, tmp_path / "a")
    assert (tmp_path / "a" / "scale.json").is_file()
    assert not (tmp_path / "a" / ".metrics.jsonl.tmp").exists()


def test_a_driver_that_was_taken_over_writes_no_more(url: str, tmp_path: Path) -> None:
    first = begin(url, tmp_path / "a")
    write(tmp_path, {"a/mine": "1"})
    first.push()
    second = begin(url, tmp_path / "b")
    write(tmp_path, {"a/mine": "2", "b/mine": "3"})
    second.push()
    with pytest.raises(TakenOver, match=r"host-\d+ has taken over memory://.* attempt 1"):
        first.push()
    for _ in range(5):  # heads between its own and the newest are gone: nothing refuses it there
        write(tmp_path, {"b/mine": "4" + (tmp_path / "b" / "mine").read_text()})
        second.push()
    assert numbered(second.objects)[0] > first.head.number + 1
    with pytest.raises(TakenOver):
        first.push()
    begin(url, tmp_path / "c")
    assert content(tmp_path / "c") == content(tmp_path / "b") == {"mine": b"444443"}


def test_of_two_drivers_that_begin_at_once_one_is_refused(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(url, tmp_path / "a")
    before = newest(Objects(url))
    begin(url, tmp_path / "b")
    monkeypatch.setattr(mirror, "newest", lambda objects: before)
    with pytest.raises(RecipeError, match="another driver has just begun"):
        begin(url, tmp_path / "c")


def test_a_second_driver_hears_the_first_and_is_refused(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "BEAT_S", 0.05)
    monkeypatch.setattr(mirror, "SILENT_S", 5.0)
    first = Mirror(Objects(url), tmp_path / "a", takeover=False, say=silent)
    said: list[str] = []
    with pytest.raises(RecipeError, match=r"another driver is running in memory://.*--takeover"):
        Mirror(Objects(url), tmp_path / "b", takeover=False, say=said.append)
    assert said[0].startswith("listening 5 s for process")
    first.push()  # it still has the run
    first.close()
    monkeypatch.setattr(mirror, "SILENT_S", 0.5)
    began = time.monotonic()
    Mirror(Objects(url), tmp_path / "b", takeover=False, say=said.append).close()
    assert time.monotonic() - began >= 0.5
    with pytest.raises(TakenOver):
        first.end()


def test_a_driver_that_ended_is_not_listened_for(url: str, tmp_path: Path) -> None:
    for error in (None, KeyboardInterrupt, BadData("x"), StorageFailed("y")):
        try:
            with mirrored(url, tmp_path / "a", takeover=False, say=silent) as one:
                write(tmp_path, {"a/x": str(one.head.attempt)})
                if error is not None:
                    raise error
        except (KeyboardInterrupt, BadData, StorageFailed):
            assert newest(Objects(url)).ended
    # What is stopped, or cannot write, does not push at last.
    begin(url, tmp_path / "b")
    assert content(tmp_path / "b") == {"x": b"3"}


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


def test_a_crash_at_any_request_leaves_the_state_before_or_after(tmp_path: Path) -> None:
    states, works = list[dict[str, bytes]](), 0
    while True:
        url = f"memory://runs/{uuid.uuid4().hex}"
        driver, folder = begin(url, tmp_path / f"{works}"), tmp_path / f"{works}"
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
    [piece] = driver.head.files["journal/1"].pieces
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
    assert set(second.objects.names("files")) == second.head.keys()


def test_a_store_that_does_not_answer_ends_the_wait_by_its_deadline(url: str) -> None:
    objects = Objects(url)
    objects._fs = type("Hangs", (), {"pipe_file": lambda *a, **k: time.sleep(30)})()
    began = time.monotonic()
    with pytest.raises(
        StorageFailed, match=r"cannot create x in memory://.*no answer within 0.2 s"
    ):
        objects.create("x", b"", timeout_s=0.2)
    assert time.monotonic() - began < 5


def test_a_store_that_overwrites_is_refused(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects, plain = Objects(url), Objects(url)._fs.pipe_file
    monkeypatch.setattr(
        type(objects._fs), "pipe_file", lambda self, path, data, mode="": plain(path, data)
    )
    with pytest.raises(RecipeError, match="does not refuse to create what is there already"):
        Mirror(objects, tmp_path / "a", takeover=False, say=silent)
    assert objects.names("") == []


@pytest.mark.parametrize("bad", ["ftp://host/x", "file:///x", "s3://", "://x"])
def test_a_url_that_two_drivers_could_write_behind_is_refused(bad: str) -> None:
    with pytest.raises(RecipeError, match=r"cannot be kept in '.*s3://BUCKET/PATH"):
        Objects(bad)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with object_store() as found:
        yield found


def test_s3_keeps_a_run_and_refuses_a_second_driver(bucket: str, tmp_path: Path) -> None:
    url = f"{bucket}/mine"
    first = begin(url, tmp_path / "a")
    write(tmp_path, {"a/journal/1": "one\n", "a/big": "x" * 200_000})
    first.push()
    write(tmp_path, {"a/journal/1": "one\ntwo\n"})
    first.push()
    assert not first.objects.create(first.head.key, b"of another")
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


def test_a_bucket_that_is_not_there_is_named(bucket: str, tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match=r"s3://nowhere-at-all/x: .*see whether it is"):
        begin("s3://nowhere-at-all/x", tmp_path / "a")
