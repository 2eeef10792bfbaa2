import errno
import gc
import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from ml_debugger.core import writer as module
from ml_debugger.core.errors import InputError, StoreError
from ml_debugger.core.records import Batch, ModelVersion, Units
from ml_debugger.core.store import Store
from ml_debugger.core.writer import BatchWriter, flush_all


def batch(name, rows=2, width=4):
    ids = [f"{name}-{k}" for k in range(rows)]
    return Batch(ids, "train", 0, 1, Units({"logits": torch.zeros(rows, width)}))


def full():
    return StoreError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Disk:
    """Where batches end up; refuses while `problem` is set, and waits while `gate` is closed."""

    def __init__(self):
        self.calls = []
        self.problem = None
        self.gate = threading.Event()
        self.gate.set()
        self.attempts = 0

    def __call__(self, batches):
        self.gate.wait()
        self.attempts += 1
        problem = self.problem(batches) if callable(self.problem) else self.problem
        if problem is not None:
            raise problem
        self.calls.append([one.input_ids[0] for one in batches])

    @property
    def names(self):
        return [name.partition("-")[0] for call in self.calls for name in call]


@pytest.fixture
def disk():
    return Disk()


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.005)


def test_flush_makes_everything_durable_in_order(disk):
    with BatchWriter(disk) as writer:
        for k in range(20):
            writer.put(batch(str(k)))
        assert writer.pending <= 40
        writer.flush()
        assert writer.pending == 0
        assert disk.names == [str(k) for k in range(20)]
        writer.flush()


def test_many_batches_go_in_one_write(disk):
    writer = BatchWriter(disk, flush_seconds=1000)
    for k in range(10):
        writer.put(batch(str(k)))
    writer.stop()
    assert len(disk.calls) == 1


def test_a_write_stays_below_flush_bytes(disk):
    one = batch("a")
    writer = BatchWriter(disk, flush_seconds=1000, flush_bytes=3 * one.nbytes)
    disk.gate.clear()
    for k in range(9):
        writer.put(batch(str(k)))
    disk.gate.set()
    writer.stop()
    assert max(map(len, disk.calls)) <= 3


@pytest.mark.parametrize("limit", [{"flush_rows": 4}, {"flush_bytes": 64}, {"flush_seconds": 0.01}])
def test_each_limit_starts_a_write(disk, limit):
    writer = BatchWriter(disk, **{"flush_seconds": 1000, **limit})
    writer.put(batch("a"))
    writer.put(batch("b"))
    until(lambda: writer.pending == 0)
    writer.stop()


def test_put_waits_while_memory_is_full(disk):
    one = batch("a")
    writer = BatchWriter(disk, max_bytes=2 * one.nbytes, flush_seconds=1000)
    disk.gate.clear()
    writer.put(one)
    writer.put(batch("b"))
    done = threading.Event()

    def third():
        writer.put(batch("c"))
        done.set()

    thread = threading.Thread(target=third)
    thread.start()
    assert not done.wait(0.1)
    disk.gate.set()
    thread.join()
    writer.stop()
    assert disk.names == ["a", "b", "c"]


def test_a_batch_larger_than_all_memory_is_let_through_alone(disk):
    writer = BatchWriter(disk, max_bytes=1)
    writer.put(batch("a", rows=100))
    writer.put(batch("b", rows=100))
    writer.stop()
    assert disk.names == ["a", "b"]


def test_a_failing_write_keeps_its_batches_and_flush_says_so(disk):
    disk.problem = full()
    writer = BatchWriter(disk)
    writer.put(batch("a"))
    writer.put(batch("b", rows=3))
    with pytest.raises(StoreError, match=r"5 rows are not saved.*No space left") as caught:
        writer.flush()
    assert isinstance(caught.value, OSError)
    assert writer.pending == 5
    with pytest.raises(StoreError):
        writer.stop()
    disk.problem = None
    writer.stop()
    assert disk.names == ["a", "b"]
    assert writer.pending == 0


def test_a_failing_write_is_tried_again_by_itself(disk, monkeypatch):
    monkeypatch.setattr(module, "FIRST_RETRY", 0.01)
    disk.problem = full()
    writer = BatchWriter(disk, flush_seconds=0)
    writer.put(batch("a"))
    until(lambda: disk.attempts >= 2)
    disk.problem = None
    until(lambda: writer.pending == 0)
    writer.stop()


def test_put_fails_when_writing_fails_and_memory_is_full(disk):
    one = batch("a")
    disk.problem = full()
    writer = BatchWriter(disk, max_bytes=one.nbytes, flush_seconds=0)
    writer.put(one)
    until(lambda: disk.attempts)
    with pytest.raises(StoreError, match="no more fit into memory"):
        writer.put(batch("b"))
    assert writer.pending == 2
    disk.problem = None
    writer.stop()
    assert disk.names == ["a"]


def test_put_fails_after_long_failing(disk):
    disk.problem = full()
    writer = BatchWriter(disk, flush_seconds=0, patience=0.0)
    writer.put(batch("a"))
    until(lambda: disk.attempts)
    with pytest.raises(StoreError, match="failing for"):
        until(lambda: writer.put(batch("b")))
    disk.problem = None
    writer.stop()


def test_a_batch_that_cannot_be_stored_does_not_keep_others_from_the_disk(disk):
    def problem(batches):
        bad = any(one.input_ids[0].startswith("bad") for one in batches)
        return InputError("bad dtype") if bad else None

    disk.problem = problem
    disk.gate.clear()
    writer = BatchWriter(disk)
    for name in ("a", "bad", "c"):
        writer.put(batch(name))
    disk.gate.set()
    with pytest.raises(StoreError, match="bad dtype"):
        writer.flush()
    until(lambda: writer.pending == 2)
    assert disk.names == ["a", "c"]
    with pytest.raises(StoreError, match="2 rows are not saved"):
        writer.flush()
    disk.problem = None
    writer.stop()
    assert disk.names == ["a", "c", "bad"]


def test_a_disk_that_fills_up_between_single_writes_keeps_the_order(disk):
    def problem(batches):
        if len(batches) > 1:
            return InputError("not together")
        return full() if len(disk.calls) == 1 else None

    disk.problem = problem
    disk.gate.clear()
    writer = BatchWriter(disk, flush_seconds=0)
    for name in ("x", "a", "b", "c"):
        writer.put(batch(name))
    disk.gate.set()
    with pytest.raises(StoreError):
        writer.flush()
    disk.problem = None
    writer.stop()
    assert disk.names == ["x", "a", "b", "c"]


def test_stop_is_idempotent_and_a_later_put_starts_again(disk):
    before = threading.enumerate()  # writers of other tests may wait to be garbage
    writer = BatchWriter(disk)
    writer.stop()
    writer.put(batch("a"))
    writer.stop()
    writer.stop()
    writer.put(batch("b"))
    writer.stop()
    assert disk.names == ["a", "b"]
    later = [one for one in threading.enumerate() if one not in before]
    assert not [one for one in later if one.name == "ml-debugger-writer"]


def test_several_threads_may_put_and_flush(disk):
    writer = BatchWriter(disk, max_bytes=2000, flush_rows=3)

    def work(name):
        for k in range(50):
            writer.put(batch(f"{name}.{k}", rows=1))
            if k % 10 == 0:
                writer.flush()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.stop()
    assert len(disk.names) == len(set(disk.names)) == 200
    for k in range(4):
        mine = [name for name in disk.names if name.startswith(f"{k}.")]
        assert mine == [f"{k}.{n}" for n in range(50)]


def test_a_writer_that_nobody_holds_is_flushed(disk):
    writer = BatchWriter(disk, flush_seconds=1000)
    writer.put(batch("a"))
    del writer
    gc.collect()
    assert disk.names == ["a"]


def test_flush_all_reaches_the_writers_of_a_home(disk, tmp_path):
    other = Disk()
    writer = BatchWriter(disk, flush_seconds=1000, home=tmp_path)
    another = BatchWriter(other, flush_seconds=1000, home=tmp_path / "other")
    writer.put(batch("a"))
    another.put(batch("b"))
    flush_all(tmp_path)
    assert disk.names == ["a"]
    assert other.names == []
    flush_all()
    assert other.names == ["b"]
    writer.stop()
    another.stop()


def test_flush_all_leaves_the_writers_of_other_versions_alone(disk, tmp_path):
    broken = Disk()
    broken.problem = ValueError("cannot be stored")
    mine, other = ModelVersion("net", "v1"), ModelVersion("net", "v2")
    with BatchWriter(disk, flush_seconds=1000, home=tmp_path, version=mine) as writer:
        another = BatchWriter(broken, flush_seconds=1000, home=tmp_path, version=other)
        writer.put(batch("a"))
        another.put(batch("b"))
        flush_all(tmp_path, mine)
        assert disk.names == ["a"]
        with pytest.raises(StoreError, match="cannot be stored"):
            flush_all(tmp_path, other)
    another.discard()
    another.stop()


def test_what_is_discarded_is_forgotten_and_writing_goes_on(disk):
    writer = BatchWriter(disk, flush_seconds=1000)
    disk.problem = ValueError("cannot be stored")
    writer.put(batch("a"))
    with pytest.raises(StoreError):
        writer.flush()
    writer.discard()
    assert writer.pending == 0
    disk.problem = None
    writer.put(batch("b"))
    writer.stop()
    assert disk.names == ["b"]


def test_ids_and_text_count_as_memory():
    long = Batch(["x" * 4000] * 10, "val", None, 0, Units({}), fields={"note": ["y" * 9000] * 10})
    assert long.nbytes >= 130_000


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_is_told(disk):
    writer = BatchWriter(disk, flush_seconds=1000)
    writer.put(batch("a"))
    pid = os.fork()
    if not pid:
        code = 1
        try:
            writer.put(batch("b"))
        except StoreError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    writer.stop()
    assert disk.names == ["a"]


EXIT = """
import torch, sys
from ml_debugger.core.records import Batch, ModelVersion, Units
from ml_debugger.core.store import Store
from ml_debugger.core.writer import BatchWriter
store = Store(sys.argv[1])
repository = store.register(ModelVersion("m", "v"), task="t", architecture=["a"], layers={})
run = repository.start_run("training")
writer = BatchWriter(lambda batches: repository.write(run, batches), flush_seconds=1000)
for k in range(5):
    writer.put(Batch([str(k)], "train", 0, k, Units({"x": torch.ones(1, 3)})))
"""


def test_the_end_of_the_interpreter_flushes(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", EXIT, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    with Store(tmp_path) as store:
        (info,) = store.versions()
        assert info.records == 5
