"""Does run state survive torn writes, flipped bytes, lost files and kills at any moment?"""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rlhf_ray.durable import fsio
from rlhf_ray.durable.checkpoint import Checkpoints
from rlhf_ray.durable.journal import Journal, decode_array, encode_array
from rlhf_ray.durable.manifest import _sealed, verify_manifest, write_manifest
from rlhf_ray.errors import BadData, StorageFailed


def _full_disk(fd: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_named_with_path_and_remedy_and_the_old_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsio.atomic_write(tmp_path / "a", b"older and longer")
    fsio.atomic_write(tmp_path / "a", b"old")
    assert _names(tmp_path) == ["a"]
    monkeypatch.setattr(os, "fsync", _full_disk)
    with pytest.raises(StorageFailed, match=r"cannot write .*/a: No space left.*free some space"):
        fsio.atomic_write(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"


def test_after_a_failed_append_a_line_file_takes_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = fsio.LineFile(tmp_path / "lines")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _full_disk)
        with pytest.raises(StorageFailed, match="append a line to"):
            lines.append(b"one\n")
    with pytest.raises(StorageFailed, match="an earlier append failed"):
        lines.append(b"two\n")


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _two_attempts(folder: Path) -> None:
    for waves in (["w0", "w1"], ["w2", "w3"]):
        journal = Journal(folder)
        for wave in waves:
            journal.append("wave", wave, {"loss": 0.5, "wave": wave})
        journal.close()


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("journal")
    _two_attempts(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@contextmanager
def _laid_out(files: dict[str, bytes]) -> Iterator[Path]:
    with TemporaryDirectory() as name:
        for file, data in files.items():
            (Path(name) / file).write_bytes(data)
        yield Path(name)


def _waves(journal: Journal) -> list[str]:
    return [key for key, _ in journal.all("wave")]


def test_each_attempt_writes_its_own_segment_and_reads_all_of_them(tmp_path: Path) -> None:
    _two_attempts(tmp_path)
    assert _names(tmp_path) == ["000001.jsonl", "000002.jsonl"]
    assert _waves(Journal(tmp_path)) == ["w0", "w1", "w2", "w3"]
    first = (tmp_path / "000001.jsonl").read_text().splitlines()[0]
    said = '"key":"w0","kind":"wave","prev":"0000000000000000","seq":0'
    assert re.search(said + r',"sum":"[0-9a-f]{16}"}$', first)


def test_a_record_done_again_wins_and_keeps_its_place(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for key, loss in [("w0", 1), ("w1", 2), ("w0", 3)]:
        journal.append("wave", key, {"loss": loss})
    journal.append("start", "w0", {})
    assert journal.all("wave") == [("w0", {"loss": 3}), ("w1", {"loss": 2})]
    assert [journal.find("wave", key) for key in ("w0", "w9")] == [{"loss": 3}, None]


def test_a_body_reads_the_same_before_and_after_a_restart(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append("wave", "w0", {"pair": (1, 2), "text": "é\n\u2028\ud800"})
    assert Journal(tmp_path).all("wave") == journal.all("wave")
    assert Journal(tmp_path).position == journal.position


def test_nan_is_refused_and_the_journal_goes_on(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with pytest.raises(BadData, match="'wave' of 'w0' cannot be written as JSON"):
        journal.append("wave", "w0", {"loss": float("nan")})
    journal.append("wave", "w0", {"loss": 1.0})
    assert Journal(tmp_path).position[0] == 0


def test_a_second_writer_of_the_same_attempt_is_stopped(tmp_path: Path) -> None:
    one, other = Journal(tmp_path), Journal(tmp_path)
    assert one.position == (-1, "0" * 16)
    assert _names(tmp_path) == []  # reading makes no segment
    one.append("wave", "w0", {})
    with pytest.raises(StorageFailed, match=r"000001\.jsonl.*end the other attempt"):
        other.append("wave", "w0", {})


def test_the_last_line_cut_at_any_byte_costs_that_line_only(segments: dict[str, bytes]) -> None:
    whole = segments["000002.jsonl"]
    start = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(start, len(whole)):
        with _laid_out({**segments, "000002.jsonl": whole[:cut]}) as folder:
            journal = Journal(folder)
            assert _waves(journal) == ["w0", "w1", "w2"]
            assert (folder / "000002.jsonl").read_bytes() == whole[:start]
            torn = folder / "torn-000002.txt"
            assert (torn.read_bytes() if torn.exists() else b"") == whole[start:cut]


def test_after_a_torn_line_the_next_attempt_goes_on_in_a_new_segment(tmp_path: Path) -> None:
    _two_attempts(tmp_path)
    _shorten(tmp_path / "000002.jsonl")
    Journal(tmp_path).append("wave", "w3", {"again": True})
    assert Journal(tmp_path).find("wave", "w3") == {"again": True}
    assert (tmp_path / "000003.jsonl").exists()


@settings(max_examples=400)
@given(draw=st.data())
def test_a_flipped_byte_before_the_last_line_is_found(
    segments: dict[str, bytes], draw: st.DataObject
) -> None:
    name = draw.draw(st.sampled_from(sorted(segments)))
    data = bytearray(segments[name])
    end = len(data) if name == "000001.jsonl" else data.rindex(b"\n", 0, -1) + 1
    data[draw.draw(st.integers(0, end - 1))] ^= draw.draw(st.integers(1, 255))
    with _laid_out({**segments, name: bytes(data)}) as folder:
        with pytest.raises(BadData, match=r"00000[12]\.jsonl:\d.*copy of the run folder"):
            Journal(folder)
        assert not list(folder.glob("torn-*"))


def test_every_flip_of_the_newline_before_the_last_line_is_found(tmp_path: Path) -> None:
    _two_attempts(tmp_path)
    path = tmp_path / "000002.jsonl"
    first, last = path.read_bytes().splitlines()
    for byte in set(range(256)) - {ord("\n")}:
        path.write_bytes(first + bytes([byte]) + last + b"\n")
        with pytest.raises(BadData, match=r"000002\.jsonl:1"):
            Journal(tmp_path)


@pytest.mark.parametrize("lost", ["000001.jsonl", "000002.jsonl"])
def test_a_lost_segment_before_the_last_is_found(segments: dict[str, bytes], lost: str) -> None:
    files = {**segments, "000003.jsonl": b""}
    del files[lost]
    with _laid_out(files) as folder, pytest.raises(BadData, match="2 segments must be 1 to 2"):
        Journal(folder)


_NUMBERS = st.sampled_from(["<f8", ">f4", "<f2", "<i8", ">u2", "u1", "?"])


@given(arrays.arrays(_NUMBERS, arrays.array_shapes(min_dims=0, min_side=0)))
def test_an_array_comes_back_bit_for_bit(array: np.ndarray[Any, Any]) -> None:
    encoded = json.loads(json.dumps(encode_array(array), allow_nan=False))
    decoded = decode_array(encoded)
    assert not encoded["dtype"].startswith(">")
    assert decoded.shape == array.shape
    assert decoded.dtype == array.dtype.newbyteorder("<")
    assert decoded.tobytes() == array.astype(decoded.dtype).tobytes()


def _fill(folder: Path, text: str) -> None:
    (folder / "learner").mkdir()
    (folder / "learner" / "weights").write_text(f"weights {text}")
    (folder / "bandit.json").write_text(f"bandit {text}")


def test_a_manifest_lists_files_sorted_and_gives_extra_back(tmp_path: Path) -> None:
    _fill(tmp_path, "0")
    write_manifest(tmp_path, {"step": 7, "position": [3, "ab"]})
    assert verify_manifest(tmp_path) == {"step": 7, "position": [3, "ab"]}
    manifest = json.loads((tmp_path / "MANIFEST.json").read_bytes())
    listed = [(entry["path"], entry["size"]) for entry in manifest["files"]]
    assert listed == [("bandit.json", 8), ("learner/weights", 9)]


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def test_a_file_nobody_listed_and_a_link_are_named(tmp_path: Path) -> None:
    write_manifest(tmp_path, {})
    (tmp_path / "stray").write_bytes(b"")
    with pytest.raises(BadData, match=r"stray: not in MANIFEST\.json"):
        verify_manifest(tmp_path)
    (tmp_path / "link").symlink_to("/etc/hostname")
    with pytest.raises(BadData, match="link: a link"):
        write_manifest(tmp_path, {})


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a/../../secret"])
def test_a_path_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    entry = {"path": name, "size": 0, "sha256": ""}
    (tmp_path / "MANIFEST.json").write_bytes(_sealed({"extra": {}, "files": [entry]}))
    with pytest.raises(BadData, match="outside the folder"):
        verify_manifest(tmp_path)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b'{"self": "0"}', b'{"extra": NaN}'])
def test_what_is_no_manifest_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "MANIFEST.json").write_bytes(data)
    with pytest.raises(BadData, match=r"MANIFEST\.json"):
        verify_manifest(tmp_path)


def test_every_flipped_byte_of_the_manifest_is_found(tmp_path: Path) -> None:
    write_manifest(tmp_path, {"step": 7})
    path = tmp_path / "MANIFEST.json"
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(BadData):
            verify_manifest(tmp_path)


def _commit(checkpoints: Checkpoints, step: int, text: str | None = None) -> Path:
    text = text or str(step)
    return checkpoints.commit(step, lambda folder: _fill(folder, text), {"text": text})


def _newest(folder: Path, keep: int = 2) -> str:
    """The text of the newest checkpoint, which must be whole."""
    path, extra = Checkpoints(folder, keep).newest() or (folder, {})
    assert (path / "bandit.json").read_text() == f"bandit {extra['text']}"
    return str(extra["text"])


def test_the_newest_checkpoints_are_kept_and_nothing_else(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.newest() is None
    paths = [_commit(checkpoints, step) for step in (1, 2, 10)]
    assert _names(tmp_path) == ["step-000002", "step-000010"]
    assert checkpoints.newest() == (paths[-1], {"text": "10"})


def test_a_step_committed_again_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    _commit(checkpoints, 7, "old")
    _commit(checkpoints, 7, "new")
    assert _names(tmp_path) == ["step-000007"]
    assert _newest(tmp_path) == "new"
    assert _commit(checkpoints, 5).exists()  # not pruned at once, though step 7 is newer


def test_only_left_overs_of_dead_attempts_are_cleared_away(tmp_path: Path) -> None:
    for name in (".tmp-step-000001", ".trash-step-000002", "mine", ".tmp-mine"):
        (tmp_path / name).mkdir()
    Checkpoints(tmp_path, keep=1)
    assert _names(tmp_path) == [".tmp-mine", "mine"]


@pytest.mark.parametrize("name", ["MANIFEST.json", "bandit.json", "learner/weights"])
@pytest.mark.parametrize(
    ("damage", "why"),
    [(Path.unlink, "missing"), (_shorten, "bytes|JSON|SHA"), (_flip, "SHA-256|JSON")],
)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(
    tmp_path: Path, name: str, damage: Callable[[Path], None], why: str
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    _commit(checkpoints, 1)
    damage(_commit(checkpoints, 2) / name)
    assert _newest(tmp_path) == "1"
    assert _names(tmp_path) == ["quarantine-step-000002", "step-000001"]
    reason = (tmp_path / "quarantine-step-000002" / "REASON.txt").read_text()
    assert re.search(f"{name}: .*({why})", reason)
    damage(_commit(checkpoints, 2) / name)
    assert _newest(tmp_path) == "1"
    assert "quarantine-step-000002-again" in _names(tmp_path)


def test_a_run_whose_checkpoints_are_all_damaged_never_starts_over(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2):
        _flip(_commit(checkpoints, step) / "bandit.json")
    for _ in range(2):
        with pytest.raises(BadData, match=r"quarantine-step-000001, quarantine-step-000002;"):
            Checkpoints(tmp_path, keep=2).newest()


class Killed(BaseException):
    """Nothing handles it, as nothing handles a kill."""


_DISK_WORK = "make_dir atomic_write truncate rename_dir remove_dir fsync_dir fsync_tree sha256_of"


def _killed(act: Callable[[], object], calls: int) -> bool:
    """Run `act` and kill it after `calls` disk operations; False when it has no more."""
    left = iter(range(calls))

    def dying(operation: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            if next(left, None) is not None:
                return operation(*args)
            if operation.__name__ == "remove_dir":  # a deletion is killed half-way
                (args[0] / "MANIFEST.json").unlink(missing_ok=True)
            raise Killed

        return run

    with pytest.MonkeyPatch.context() as patch:
        for name in _DISK_WORK.split():
            patch.setattr(fsio, name, dying(getattr(fsio, name)))
        try:
            act()
        except Killed:
            return True
    return False


def _kills(start: Path, act: Callable[[Path], object]) -> Iterator[Path]:
    """Copies of `start` as `act` leaves them when it is killed at each of its disk operations."""
    for calls in count():
        folder = start.with_name(f"{start.name}-{calls}")
        shutil.copytree(start, folder)
        if not _killed(partial(act, folder), calls):
            assert calls >= 3
            return
        yield folder


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("step", [2, 3])
def test_a_commit_killed_anywhere_leaves_old_or_new(tmp_path: Path, keep: int, step: int) -> None:
    for old in (1, 2):
        _commit(Checkpoints(tmp_path / "run", keep), old)
    seen = []
    for folder in _kills(tmp_path / "run", lambda at: _commit(Checkpoints(at, keep), step, "new")):
        seen.append(_newest(folder, keep))
        assert all(verify_manifest(path) for path in folder.iterdir())  # no half-deleted step
        _commit(Checkpoints(folder, keep), step, "after")
        assert _newest(folder, keep) == "after"
    assert seen == sorted(seen)  # "2", and from one operation on "new"
    assert set(seen) == {"2", "new"}


def test_clearing_up_killed_anywhere_can_be_done_again(tmp_path: Path) -> None:
    _commit(Checkpoints(tmp_path / "run", 1), 1)
    (tmp_path / "run" / "step-000001").rename(tmp_path / "run" / ".replaced-step-000001")
    (tmp_path / "run" / ".tmp-step-000001").mkdir()
    for folder in _kills(tmp_path / "run", lambda at: Checkpoints(at, 1)):
        assert _newest(folder) == "1"


def test_cutting_a_torn_line_killed_anywhere_can_be_done_again(tmp_path: Path) -> None:
    _two_attempts(tmp_path / "run")
    _shorten(tmp_path / "run" / "000002.jsonl")
    for folder in _kills(tmp_path / "run", Journal):
        assert _waves(Journal(folder)) == ["w0", "w1", "w2"]
        assert '"key":"w3"' in (folder / "torn-000002.txt").read_text()


def test_a_write_that_fails_leaves_the_old_checkpoint_and_no_trace(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    _commit(checkpoints, 1)
    with pytest.raises(StorageFailed, match=r"cannot write the checkpoint .*No such file"):
        checkpoints.commit(2, lambda folder: (folder / "nowhere" / "half").touch(), {})
    assert _newest(tmp_path) == "1"
    assert _names(tmp_path) == ["step-000001"]
