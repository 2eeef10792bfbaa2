import errno
import fcntl
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_debugger.core.errors import StoreError
from ml_debugger.core.store import segments
from ml_debugger.core.store.segments import (
    ALIGNMENT,
    SUFFIX,
    SegmentReader,
    SegmentWriter,
    as_bytes,
    checksum,
)


def piece(*values):
    return as_bytes(np.array(values, np.uint8))


def append(writer, pieces):
    with writer.appended(pieces) as place:
        return place


def read(folder, name, offset, size):
    out = np.empty(size, np.uint8)
    SegmentReader(folder).read(name, offset, as_bytes(out))
    return out.tobytes()


def test_pieces_lie_one_after_the_other_at_aligned_offsets(tmp_path):
    writer = SegmentWriter(tmp_path)
    first = append(writer, [piece(1, 2), piece(3)])
    second = append(writer, [piece(4)])
    assert first[0] == second[0]
    assert first[1] == 0
    assert second[1] == ALIGNMENT
    assert read(tmp_path, *first, 3) == b"\1\2\3"
    assert read(tmp_path, *second, 1) == b"\4"
    writer.close()


def test_a_full_segment_is_followed_by_another(tmp_path):
    writer = SegmentWriter(tmp_path, limit=129)
    names = [append(writer, [as_bytes(np.full(80, k, np.uint8))])[0] for k in range(3)]
    assert names[0] == names[1] != names[2]
    writer.close()


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=40), most=st.integers(1, 60))
def test_short_writes_and_long_lists_are_completed(sizes, most, tmp_path_factory):
    folder = tmp_path_factory.mktemp("segments")
    pieces = [as_bytes(np.full(size, k, np.uint8)) for k, size in enumerate(sizes)]
    whole = os.pwritev

    def short(fd, buffers, offset):
        data = b"".join(bytes(one) for one in buffers)[:most]
        return whole(fd, [data], offset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwritev", short)
        patch.setattr(segments, "IOV_MAX", 3)
        writer = SegmentWriter(folder)
        name, offset = append(writer, pieces)
        writer.close()
    assert read(folder, name, offset, sum(sizes)) == b"".join(bytes(one) for one in pieces)


def test_more_pieces_than_one_call_takes(tmp_path):
    writer = SegmentWriter(tmp_path)
    pieces = [piece(k % 251) for k in range(3000)]
    name, offset = append(writer, pieces)
    assert read(tmp_path, name, offset, 3000) == b"".join(map(bytes, pieces))
    writer.close()


def test_a_full_disk_is_told_and_leaves_what_was_written(tmp_path, monkeypatch):
    writer = SegmentWriter(tmp_path)
    name, offset = append(writer, [piece(7)])
    whole = os.pwritev

    def full(fd, buffers, offset):
        whole(fd, [b"torn"], offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", full)
        with pytest.raises(StoreError, match="No space left.*Free some space"):
            append(writer, [piece(8)])
    assert read(tmp_path, name, offset, 1) == b"\7"
    again = append(writer, [piece(9)])
    assert read(tmp_path, *again, 1) == b"\x09"
    writer.close()


def test_no_segment_can_be_made(tmp_path):
    with pytest.raises(StoreError, match="cannot create a file"):
        append(SegmentWriter(tmp_path / "missing"), [piece(1)])


def test_the_open_segment_is_locked_and_the_closed_one_is_not(tmp_path):
    writer = SegmentWriter(tmp_path)
    name, _ = append(writer, [piece(1)])
    with (tmp_path / (name + SUFFIX)).open("rb") as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        writer.close()
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_segment_stays_locked_until_what_was_written_is_entered(tmp_path):
    writer = SegmentWriter(tmp_path, limit=1)
    closed = threading.Event()

    def other():
        append(writer, [piece(2)])  # needs a new segment
        writer.close()
        closed.set()

    with writer.appended([piece(1)]) as (name, _):
        thread = threading.Thread(target=other)
        thread.start()
        assert not closed.wait(0.1)
        with (tmp_path / (name + SUFFIX)).open("rb") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    thread.join()
    assert closed.is_set()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_may_not_write(tmp_path, fork):
    writer = SegmentWriter(tmp_path)
    append(writer, [piece(1)])

    def child():
        with pytest.raises(StoreError, match="forked child"):
            append(writer, [piece(2)])
        writer.close()  # does nothing to the parent's lock

    assert fork(child) == 0
    name, offset = append(writer, [piece(3)])
    assert offset == ALIGNMENT
    with (tmp_path / (name + SUFFIX)).open("rb") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    writer.close()


def test_a_segment_that_is_too_short_is_told(tmp_path):
    writer = SegmentWriter(tmp_path)
    name, _ = append(writer, [piece(1, 2, 3)])
    writer.close()
    with pytest.raises(StoreError, match="ends before byte 10"):
        read(tmp_path, name, 0, 10)
    with pytest.raises(FileNotFoundError):
        read(tmp_path, "none", 0, 1)


def test_an_open_file_outlives_its_name_and_few_stay_open(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "OPEN_FILES", 2)
    writer = SegmentWriter(tmp_path, limit=1)
    names = [append(writer, [piece(k)])[0] for k in range(4)]
    writer.close()
    reader = SegmentReader(tmp_path)
    out = np.empty(1, np.uint8)
    for k, name in enumerate(names):
        reader.read(name, 0, as_bytes(out))
        assert out[0] == k
    (tmp_path / (names[3] + SUFFIX)).unlink()
    reader.read(names[3], 0, as_bytes(out))
    assert out[0] == 3
    reader.close()
    with pytest.raises(FileNotFoundError):
        reader.read(names[3], 0, as_bytes(out))


def test_all_readers_together_keep_few_files_open(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "OPEN_FILES", 3)
    writer = SegmentWriter(tmp_path)
    name, _ = append(writer, [piece(1)])
    writer.close()

    def there():
        return len(list(Path("/proc/self/fd").iterdir()))

    before = there()
    readers = [SegmentReader(tmp_path) for _ in range(20)]
    for one in readers:
        one.read(name, 0, as_bytes(np.empty(1, np.uint8)))
    assert there() <= before + 3
    for one in readers:
        one.close()
    assert there() <= before


def test_checksum_does_not_depend_on_how_bytes_are_cut():
    data = np.arange(100, dtype=np.uint8)
    assert checksum([as_bytes(data)]) == checksum([as_bytes(data[:30]), as_bytes(data[30:])])


@pytest.fixture
def fork():
    def run(child):
        pid = os.fork()
        if pid:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        try:
            child()
        except BaseException:  # noqa: BLE001  # the parent asserts on the exit code
            os._exit(1)
        os._exit(0)

    return run
