import os
import shutil
import signal
import struct
import threading
from contextlib import nullcontext
from datetime import UTC, datetime
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch

from ml_debugger.core.errors import InputError, StoreError
from ml_debugger.core.records import Batch, ModelVersion, Units
from ml_debugger.core.store import Scope, Store, sending
from ml_debugger.core.store.chunks import ChunkSource
from ml_debugger.core.store.parts import HEADER_BYTES, Part
from ml_debugger.core.store.segments import SegmentWriter

VERSION = ModelVersion("net", "v1")
FIELDS = [
    {"name": name, "type": kind, "nullable": True}
    for name, kind in {
        "camera": "str",
        "speed": "float",
        "lane": "int",
        "night": "bool",
        "taken": "datetime",
        "extra": "json",
    }.items()
]
LABEL_FIELDS = [{"name": "by", "type": "str", "nullable": True}]


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "here") as store:
        yield store


@pytest.fixture
def far(tmp_path):
    """The store of a service."""
    with Store(tmp_path / "there") as store:
        yield store


def register(store, version=VERSION, **options):
    given = {"task": "classification", "architecture": ["Linear"], "layers": {"a": "0"}}
    given |= {"fields": FIELDS, "label_fields": LABEL_FIELDS}
    return store.register(version, **(given | options))


@pytest.fixture
def repo(store):
    return register(store)


@pytest.fixture
def run(repo):
    return repo.start_run("training")


def batch(ids, *, epoch=0, dataset="train", width=1, at=1):
    scores = torch.arange(float(len(ids) * width)).reshape(len(ids), width)
    return Batch([str(one) for one in ids], dataset, epoch, at, Units({"score": scores}))


def sent(outbox, n_epoch="all"):
    """Take every part there is, each time saying that it was saved; return the ids in each."""
    found = []
    while (pair := outbox.next_part(n_epoch)) is not None:
        outbox.saved(pair[1])
        found.append(ids_of(pair[0]))
    return found


def ids_of(part):
    """Return the ids in a part, read from its bytes alone."""
    ids = []
    for chunk, body in zip(part.header.chunks, part.bodies, strict=True):
        (first, size), (start, _) = chunk.spans[1], chunk.spans[2]
        ends = np.frombuffer(bytes(body[first : first + size]), np.int32)
        text = bytes(body[start:])
        ids.append("".join(text[a:b].decode() for a, b in pairwise(ends)))
    return ids


def move(outbox, target, n_epoch="all"):
    """Send everything to another store, as bytes; return how many inputs were new there."""
    added = 0
    while (pair := outbox.next_part(n_epoch)) is not None:
        _, content = pair[0].pack()
        added += target.adopt(Part.unpack(content))
        outbox.saved(pair[1])
    return added


def exactly(values):
    """Return a column as something that is equal only where every bit is."""
    if isinstance(values, np.ndarray):
        return values.dtype.str, values.shape, values.tobytes()
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    known = values.to_pylist()
    if pa.types.is_float64(values.type):
        known = [None if one is None else struct.pack("<d", one) for one in known]
    return str(values.type), known


def content(repo, scope=None):
    """Return all that can be read of a version; when it was written is each store's own."""
    records = repo.records() if scope is None else repo.records(scope)
    columns = {}
    for part in records.parts():
        for name in part.names():
            columns.setdefault(name, []).append(exactly(part.column(name)))
    counts = [records.counts(side).tolist() for side in ("predicted", "actual")]
    epochs = [(one.n_epoch, one.runs, one.records) for one in repo.epochs()]
    return columns, counts, records.replaced, repo.latest_epoch(), epochs, repo.runs()


def rows_of(store, table):
    with store._catalogue.reading() as session:
        return session.connection().exec_driver_sql(f"SELECT * FROM {table}").fetchall()


# What is sent, in which order, and how much at once


def test_parts_hold_the_oldest_chunks_and_no_more_than_may_be(repo, run, monkeypatch):
    for name in "abcde":
        repo.write(run, [batch(name)])
    outbox = repo.outbox("there")
    size = outbox.pending().nbytes // 5
    assert sent(repo.outbox("one part")) == [["a", "b", "c", "d", "e"]]
    monkeypatch.setattr(sending, "PART_CHUNKS", 2)
    assert sent(repo.outbox("by number")) == [["a", "b"], ["c", "d"], ["e"]]
    monkeypatch.setattr(sending, "PART_BYTES", 3 * size)
    monkeypatch.setattr(sending, "PART_CHUNKS", 256)
    assert sent(repo.outbox("by bytes")) == [["a", "b", "c"], ["d", "e"]]
    monkeypatch.setattr(sending, "PART_BYTES", 3 * size - 1)
    assert sent(outbox) == [["a", "b"], ["c", "d"], ["e"]]


def test_a_chunk_larger_than_a_part_goes_alone(repo, run, monkeypatch):
    monkeypatch.setattr(sending, "PART_BYTES", 4096)
    for name, width in (("a", 1), ("b", 2000), ("c", 1), ("d", 1)):
        repo.write(run, [batch(name, width=width)])
    assert sent(repo.outbox("there")) == [["a"], ["b"], ["c", "d"]]


def test_a_header_is_never_longer_than_may_be(repo, run):
    """Columns of inputs without units take no bytes, and yet their names do."""
    columns = {f"feature.{k:03}{'x' * 150}": torch.zeros(0) for k in range(60)}
    units = Units(columns, torch.tensor([0], dtype=torch.int32))
    repo.write(run, [Batch(["a"], "train", epoch, 1, units) for epoch in range(256)])
    outbox, found = repo.outbox("there"), []
    while (pair := outbox.next_part()) is not None:
        _, content = pair[0].pack()
        assert int.from_bytes(content[8:16], "little") <= HEADER_BYTES
        part = Part.unpack(content)
        part.check(*({one["name"]: one["type"] for one in k} for k in (FIELDS, LABEL_FIELDS)))
        found += [one.n_epoch for one in part.header.chunks]
        outbox.saved(pair[1])
    assert found == list(range(256))


@pytest.mark.parametrize(
    ("n_epoch", "expected"), [(0, "ac"), (1, "b"), (None, "d"), ("all", "abcd"), (7, "")]
)
def test_an_epoch_can_be_chosen(repo, run, n_epoch, expected):
    for name, epoch in (("a", 0), ("b", 1), ("c", 0), ("d", None)):
        repo.write(run, [batch(name, epoch=epoch)])
    outbox = repo.outbox("there")
    nbytes = outbox.pending().nbytes // 4 * len(expected)
    assert outbox.pending(n_epoch) == (len(expected), len(expected), nbytes)
    assert "".join(one for part in sent(outbox, n_epoch) for one in part) == expected
    assert outbox.pending(n_epoch) == (0, 0, 0)
    assert outbox.pending().chunks == 4 - len(expected)


def test_other_versions_are_not_sent(store, repo, run):
    other = register(store, ModelVersion("net", "v2"))
    other.write(other.start_run("training"), [batch("x")])
    repo.write(run, [batch("a")])
    assert sent(repo.outbox("there")) == [["a"]]
    assert other.outbox("there").pending().chunks == 1


def test_what_is_not_saved_is_sent_as_the_same_part(repo, run):
    repo.write(run, [batch("ab"), batch("c", epoch=1)])
    outbox = repo.outbox("there")
    first, numbers = outbox.next_part()
    again, same = repo.outbox("there").next_part()
    assert numbers == same
    assert first.inputs == 3
    assert first.pack() == again.pack()
    assert outbox.pending().inputs == 3
    outbox.saved(numbers[:1])
    rest, left = outbox.next_part()
    assert (left, ids_of(rest)) == (numbers[1:], ["c"])
    assert rest.header.chunks == first.header.chunks[1:]
    outbox.saved(left)
    assert outbox.next_part() is None
    assert outbox.pending() == (0, 0, 0)


def test_what_is_written_meanwhile_comes_after(repo, run):
    repo.write(run, [batch("a")])
    outbox = repo.outbox("there")
    _, numbers = outbox.next_part()
    repo.write(run, [batch("b")])
    outbox.saved(numbers)
    assert sent(outbox) == [["b"]]


def test_services_do_not_know_of_each_other(repo, run):
    repo.write(run, [batch("a")])
    one, other = repo.outbox("one"), repo.outbox("other")
    assert other.next_part() is not None  # marked, and never confirmed
    assert sent(one) == [["a"]]
    assert (one.pending().chunks, other.pending().chunks) == (0, 1)
    other.send_again()
    assert one.pending().chunks == 0
    assert sent(other) == [["a"]]
    one.send_again()
    assert other.pending().chunks == 0
    repo.delete_epoch(0)
    (origin,) = one.withdrawals()
    assert other.withdrawals() == [origin]
    one.withdrawn([origin])
    assert (one.withdrawals(), other.withdrawals()) == ([], [origin])


@pytest.mark.parametrize(("n_epoch", "expected"), [("all", "abc"), (0, "a"), (None, "c"), (5, "")])
def test_what_was_saved_can_be_sent_again(repo, run, n_epoch, expected):
    for name, epoch in (("a", 0), ("b", 1), ("c", None)):
        repo.write(run, [batch(name, epoch=epoch)])
    outbox = repo.outbox("there")
    first, numbers = outbox.next_part()
    outbox.saved(numbers)
    outbox.send_again(n_epoch)
    assert outbox.pending().chunks == len(expected)
    if n_epoch == "all":
        assert outbox.next_part()[0].pack() == first.pack()
    assert "".join(one for part in sent(outbox) for one in part) == expected


def test_compaction_changes_nothing_about_what_is_sent(store, repo, run):
    repo.write(run, [batch(range(500), epoch=0)])
    repo.write(run, [batch("a", epoch=1)])
    repo.write(run, [batch("b", epoch=1)])
    outbox = repo.outbox("there")
    before, _ = outbox.next_part(1)
    repo.delete_epoch(0)
    assert store.compact() > 0
    after, numbers = outbox.next_part()
    assert before.pack() == after.pack()
    outbox.saved(numbers)
    assert outbox.pending().chunks == 0
    assert outbox.withdrawals() == []


def test_what_has_changed_on_disk_is_not_sent(store, repo, run):
    repo.write(run, [batch("abcdef")])
    (path,) = (store.home / "segments").glob("*.seg")
    raw = bytearray(path.read_bytes())
    raw[-20] ^= 1
    path.write_bytes(raw)
    with pytest.raises(StoreError, match="changed on disk"):
        repo.outbox("there").next_part()
    assert rows_of(store, "upload") == []


def test_what_has_changed_on_disk_is_left_out_where_that_is_asked_for(store, repo, run):
    for epoch, name in enumerate("abcd"):
        repo.write(run, [batch(name, epoch=epoch)])
    (path,) = (store.home / "segments").glob("*.seg")
    raw = bytearray(path.read_bytes())
    offsets = [row[0] for row in rows_of(store, "(SELECT offset FROM chunk ORDER BY id)")]
    raw[offsets[1]] ^= 1
    raw[offsets[3]] ^= 1
    path.write_bytes(raw)
    outbox, damaged = repo.outbox("there"), {}
    part, numbers = outbox.next_part(damaged=damaged)
    assert (ids_of(part), numbers) == (["a", "c"], [1, 3])
    assert {k: (one.n_epoch, one.inputs) for k, one in damaged.items()} == {2: (1, 1), 4: (3, 1)}
    assert "changed on disk" in damaged[2].why
    assert outbox.next_part(after=3, damaged=damaged) is None
    assert outbox.pending(after=3).chunks == 1


def test_a_part_can_be_bounded(repo, run):
    for name in "abcd":
        repo.write(run, [batch(name)])
    outbox = repo.outbox("there")
    assert outbox.last() == 4
    assert outbox.next_part(most=2)[1] == [1, 2]
    assert outbox.next_part(after=1, last=3)[1] == [2, 3]
    assert outbox.next_part(after=3, last=3) is None
    assert outbox.pending(after=1, last=3).chunks == 2


# What is deleted here is withdrawn there


def _by_epoch(store, repo):
    repo.delete_epoch(0)


def _by_version(store, repo):
    repo.recreate()


def _by_registering(store, repo):
    register(store, recreate=True)


@pytest.mark.parametrize("delete", [_by_epoch, _by_version, _by_registering])
def test_deleting_withdraws_what_was_sent_and_nothing_else(store, repo, run, delete, monkeypatch):
    other = register(store, ModelVersion("net", "v2"))
    other.write(other.start_run("training"), [batch("x")])
    assert sent(other.outbox("there")) == [["x"]]
    monkeypatch.setattr(sending, "PART_CHUNKS", 1)
    for name in ("saved", "heard of", "kept here"):
        repo.write(run, [batch([name])])
    outbox = repo.outbox("there")
    saved, numbers = outbox.next_part()
    outbox.saved(numbers)
    unconfirmed, _ = outbox.next_part()
    assert outbox.withdrawals() == []
    delete(store, repo)
    expected = [saved.header.chunks[0].origin, unconfirmed.header.chunks[0].origin]
    assert outbox.withdrawals() == expected
    assert outbox.withdrawals(limit=1) == expected[:1]
    assert repo.outbox("elsewhere").withdrawals() == []
    assert other.outbox("there").withdrawals() == []
    assert outbox.next_part() is None
    assert rows_of(store, "upload") == [row for row in rows_of(store, "upload") if row[1] == 1]
    other.outbox("there").withdrawn(expected)
    repo.outbox("elsewhere").withdrawn(expected)
    assert outbox.withdrawals() == expected
    outbox.withdrawn(expected[:1])
    assert outbox.withdrawals() == expected[1:]
    outbox.withdrawn(expected)
    assert outbox.withdrawals() == []
    assert rows_of(store, "withdrawal") == []


def test_an_epoch_that_stays_is_not_withdrawn(repo, run):
    repo.write(run, [batch("a", epoch=0), batch("b", epoch=None), batch("c", epoch=1)])
    outbox = repo.outbox("there")
    part, numbers = outbox.next_part()
    outbox.saved(numbers)
    repo.delete_epoch(None)
    assert outbox.withdrawals() == [part.header.chunks[1].origin]
    repo.delete_epoch(1)
    assert outbox.withdrawals() == [one.origin for one in part.header.chunks[1:]]


def test_what_is_deleted_while_it_is_read_is_not_sent(repo, run, monkeypatch):
    """It is not marked any more, so that nobody would ever withdraw it."""
    repo.write(run, [batch("a", epoch=0), batch("b", epoch=1)])
    read, deleted = ChunkSource.read, []

    def slow(*arguments):
        read(*arguments)
        if not deleted:
            deleted.append(True)  # to delete reads too
            repo.delete_epoch(0)

    monkeypatch.setattr(ChunkSource, "read", slow)
    outbox = repo.outbox("there")
    part, numbers = outbox.next_part()
    assert ids_of(part) == ["b"]
    assert outbox.withdrawals() == []
    outbox.saved(numbers)
    repo.write(run, [batch("c", epoch=0)])
    deleted.clear()
    damaged = {}
    assert outbox.next_part(damaged=damaged) is None
    assert damaged == {}


# Another store adopts it


def many(store):
    """Write runs, ranks, epochs, ragged units and fields of every type, with odd values."""
    repo = register(store)
    first = repo.start_run("training", settings={"score_thresh": 0.1, "k": 3, "none": None})
    rank = repo.start_run("training", run="shared", rank=1, world_size=2)
    watching = repo.start_run("monitoring")
    taken = datetime(2026, 2, 3, 4, 5, 6, 7, UTC)
    fields = {
        "camera": ["", "日本 ü 🎥\0", None],
        "speed": [-0.0, float("nan"), None],
        "lane": [-(2**63), 2**63 - 1, None],
        "night": [True, False, None],
        "taken": [taken, datetime(1, 1, 1, tzinfo=UTC), None],
        "extra": ['{"a": [1, null]}', "null", None],
    }
    odd = torch.tensor([[float("nan"), -0.0], [float("inf"), 1e-30], [1.5, -2.5]])
    boxes = Units({"box": odd, "class": torch.tensor([1, 2, 3])}, torch.tensor([2, 0, 1]))
    truth = Units({"label": torch.tensor([7, 8])}, torch.tensor([0, 0, 2]))
    ids = ["a", "", "né 日本"]
    repo.write(first, [Batch(ids, "train", 0, 5, boxes, truth, fields, {"by": ["x", "", None]})])
    half = Units({"h": torch.tensor([1, 2], dtype=torch.float16), "flag": torch.tensor([1, 0]) > 0})
    repo.write(rank, [Batch(["a", "b"], "val", None, 6, half, half)])
    repo.write(first, [Batch(["c"], "train", 1, 7, Units({"m": torch.zeros(1, 0, 3)}))])
    repo.write(first, [Batch(ids[:2], "train", 0, 8, Units(boxes.columns, torch.tensor([3, 0])))])
    repo.start_run("training", run="shared", rank=0, world_size=2)
    repo.write("shared", [Batch(["r0"], "val", None, 9, Units({"h": half["h"][:1]}))])
    repo.write(watching, [Batch([f"w{k}" for k in range(999)], "pool", -3, 10, Units({}))])
    return repo


def test_records_are_the_same_to_the_last_bit_in_another_store(store, far, monkeypatch):
    monkeypatch.setattr(sending, "PART_CHUNKS", 2)
    repo, target = many(store), register(far)
    outbox = repo.outbox("there")
    total = outbox.pending().inputs
    assert move(outbox, target) == total == 3 + 2 + 1 + 2 + 1 + 999
    assert content(target) == content(repo)
    for epoch in (0, 1, None, -3):
        scope = Scope(n_epoch=epoch)
        assert content(target, scope) == content(repo, scope)
    assert [run.purpose for run in target.runs()] == ["training", "training", "monitoring"]
    assert far.verify() == []
    with Store(far.home) as again:
        assert content(again.open(VERSION)) == content(repo)


def test_what_was_adopted_is_sent_on_as_it_is(store, far, tmp_path):
    repo, target = many(store), register(far)
    move(repo.outbox("there"), target)
    with Store(tmp_path / "third") as third:
        last = register(third)
        move(target.outbox("third"), last)
        assert content(last) == content(repo)


def test_adopting_again_adds_nothing(store, far, monkeypatch):
    repo, target = many(store), register(far)
    outbox = repo.outbox("there")
    move(outbox, target)
    before, size = content(target), _bytes(far)
    outbox.send_again()
    assert move(outbox, target) == 0
    monkeypatch.setattr(sending, "PART_CHUNKS", 1)
    outbox.send_again()
    assert move(outbox, target) == 0
    assert (content(target), _bytes(far)) == (before, size)


def test_what_is_new_in_a_part_is_added(store, far, repo, run):
    repo.write(run, [batch("a"), batch("b", epoch=1)])
    target = register(far)
    outbox = repo.outbox("there")
    assert target.adopt(outbox.next_part(1)[0]) == 1
    assert target.adopt(outbox.next_part()[0]) == 1
    assert sorted(target.records().ids().to_pylist()) == ["a", "b"]
    assert far.verify() == []


def _bytes(store):
    return sum(path.stat().st_size for path in (store.home / "segments").iterdir())


def test_stores_that_adopt_the_same_at_once_adopt_it_once(store, far, monkeypatch):
    monkeypatch.setattr(sending, "PART_CHUNKS", 1)
    repo = many(store)
    register(far)
    outbox, parts = repo.outbox("there"), []
    while (pair := outbox.next_part()) is not None:
        parts.append(pair[0].pack()[1])
        outbox.saved(pair[1])
    added, failed = [], []
    together = threading.Barrier(4)

    def adopt(mine):
        target = mine.open(VERSION)
        try:
            for part in parts:
                together.wait()
                added.append(target.adopt(Part.unpack(part)))
        except BaseException as error:  # noqa: BLE001  # asserted on below
            failed.append(error)
            together.abort()

    with Store(far.home) as other:  # as another process would
        threads = [threading.Thread(target=adopt, args=(one,)) for one in (far, far, other, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failed == []
    assert sum(added) == 1008
    assert content(far.open(VERSION)) == content(repo)
    assert far.verify() == []


def test_a_writer_beside_one_that_adopts(store, far, repo, run, monkeypatch):
    """A chunk that another brings between the look and the writing is not entered twice."""
    repo.write(run, [batch("a"), batch("b", epoch=1)])
    target, outbox = register(far), repo.outbox("there")
    part, only = outbox.next_part()[0], outbox.next_part(0)[0]
    append, brought = SegmentWriter.appended, []

    def late(self, pieces):
        if not brought:
            brought.append(0)
            with Store(far.home) as other:
                brought.append(other.open(VERSION).adopt(only))
        return append(self, pieces)

    monkeypatch.setattr(SegmentWriter, "appended", late)
    assert target.adopt(part) == 1
    assert brought == [0, 1]
    assert sorted(target.records().ids().to_pylist()) == ["a", "b"]
    assert far.verify() == []


def test_a_copy_of_a_store_that_went_its_own_way_is_not_taken_for_it(store, far, repo, run):
    repo.write(run, [batch("a", at=1)])
    target = register(far)
    move(repo.outbox("there"), target)
    copy = store.home.with_name("copy")
    store.close()
    shutil.copytree(store.home, copy)
    repo.write(run, [batch("b", at=2)])
    with Store(copy) as other:
        twin = other.open(VERSION)
        twin.write(twin.start_run("training"), [batch("c", at=3)])
        assert rows_of(other, "identity") == rows_of(store, "identity")
        assert move(twin.outbox("there"), target) == 1
    assert move(repo.outbox("there"), target) == 1
    assert sorted(target.records().ids().to_pylist()) == ["a", "b", "c"]


def test_forgetting(store, far, repo, run):
    repo.write(run, [batch("a"), batch("b", epoch=1), batch("c", epoch=2)])
    target, other = register(far), register(far, ModelVersion("net", "v2"))
    part, numbers = repo.outbox("there").next_part()
    assert target.adopt(part) == 3
    origins = [one.origin for one in part.header.chunks]
    target.write(target.start_run("training"), [batch("d")])
    assert other.forget(origins) == 0
    assert target.forget([]) == 0
    unknown = f"{'0' * 32}:1:{'0' * 16}"
    assert target.forget([unknown]) == 0
    assert target.records().inputs == 4
    for wrong in ("unknown", "x" * 1000, f"{unknown}\n", ""):
        with pytest.raises(InputError, match="no chunk is called"):
            target.forget([*origins, wrong])
    assert target.records().inputs == 4
    assert target.forget([*origins[:2], unknown]) == 2
    assert target.forget(origins[:2]) == 0
    assert target.records().ids().to_pylist() == ["c", "d"]
    assert far.compact() == 0  # more than half of it is in use
    repo.outbox("there").saved(numbers)


def test_a_part_that_arrives_after_its_withdrawal_is_not_taken_in(store, far, repo, run):
    repo.write(run, [batch("ab", epoch=0), batch("cd", epoch=1)])
    late, _ = repo.outbox("there").next_part()  # another process sends it, slowly
    repo.delete_epoch(0)
    outbox, there = repo.outbox("there"), register(far)
    withdrawn = outbox.withdrawals()
    assert there.forget(withdrawn) == 0
    outbox.withdrawn(withdrawn)
    assert there.adopt(Part.unpack(late.pack()[1])) == 2
    assert there.records().ids().to_pylist() == ["c", "d"]
    assert there.forget(withdrawn) == 0  # once more does no harm


@pytest.mark.parametrize(
    "wrong", [{"rank": -1}, {"world_size": 0}, {"run": "r" * 101}, {"settings": {"x": np.nan}}]
)
def test_a_run_that_could_not_be_sent_is_not_begun(repo, wrong):
    with pytest.raises(InputError, match=f"a run cannot be like this: {next(iter(wrong))}"):
        repo.start_run("training", **wrong)


def test_deleting_here_deletes_there(store, far, repo, run):
    target, outbox = register(far), repo.outbox("there")
    for epoch in range(3):
        repo.write(run, [batch(f"a{epoch}", epoch=epoch)])
    move(outbox, target)
    repo.delete_epoch(1)
    repo.write(run, [batch("xyz", epoch=1)])
    move(outbox, target)
    origins = outbox.withdrawals()
    assert target.forget(origins) == 1
    outbox.withdrawn(origins)
    assert content(target) == content(repo)
    register(store, recreate=True)
    assert target.forget(outbox.withdrawals()) == 3
    assert target.records().inputs == 0


def test_a_version_declared_anew_meanwhile_takes_no_part_of_the_earlier_one(store, far, repo, run):
    target = register(far)
    repo.write(run, [batch("abc")])
    part, _ = repo.outbox("there").next_part()
    register(far, recreate="unfit", fields=[*FIELDS, {"name": "new", "type": "str"}])
    assert target.missing(part)
    assert target.adopt(part) == 3  # more fields change nothing
    with pytest.raises(InputError, match="recorded for task"):
        register(far, recreate="unfit", task="object_detection")
    assert target.records().inputs == 3  # it has records, so it stays what it is
    target.recreate()
    register(far, recreate="unfit", task="object_detection")
    with pytest.raises(StoreError, match="declared anew meanwhile"):
        target.adopt(part)
    assert target.records().inputs == 0


def test_an_admission_decides_in_the_transaction(store, far, repo, run):
    target = register(far)
    repo.write(run, [batch("abc")])
    part, _ = repo.outbox("there").next_part()
    seen = []

    def refuse(chunks):
        seen.append([one.inputs for one in chunks])
        raise InputError("full")

    with pytest.raises(InputError, match="full"):
        target.adopt(part, nullcontext(refuse))
    assert target.records().inputs == 0
    assert target.adopt(part) == 3
    assert target.adopt(part, nullcontext(refuse)) == 0  # nothing is added, nothing is asked
    assert seen == [[3]]


def test_what_cannot_be_believed_leaves_no_trace(store, far):
    repo, target = many(store), register(far)
    part, _ = repo.outbox("there").next_part()
    bodies = [bytearray(body) for body in part.bodies]
    bodies[-1][0] ^= 1
    damaged = Part(part.header, [memoryview(one) for one in bodies])
    with pytest.raises(InputError, match=r"chunk 5 of the part: .*checksum"):
        target.adopt(damaged)
    bare = far.register(
        ModelVersion("bare", "v"), task="classification", architecture=["L"], layers={}
    )
    with pytest.raises(InputError, match="chunk 0 of the part: input/camera was not declared"):
        bare.adopt(part)
    wrong = [{**one, "type": "str"} for one in FIELDS]
    other = register(far, ModelVersion("other", "v"), fields=wrong)
    with pytest.raises(InputError, match="input/speed has type 'float', expected 'str'"):
        other.adopt(part)
    for table in ("run", "chunk", "layout", "segment"):
        assert rows_of(far, table) == []
    assert _bytes(far) == 0


def test_chunks_belong_to_one_version(store, far, repo, run):
    repo.write(run, [batch("a")])
    part, _ = repo.outbox("there").next_part()
    assert register(far).adopt(part) == 1
    other = register(far, ModelVersion("net", "v2"))
    with pytest.raises(InputError, match="one of another version"):
        other.adopt(part)
    assert (other.records().inputs, register(far).adopt(part)) == (0, 0)


def test_a_run_has_one_purpose_and_is_described_once(store, far, repo):
    repo.start_run("training", run="r", settings={"k": 1})
    repo.write("r", [batch("a")])
    target = register(far)
    target.start_run("monitoring", run="r")
    with pytest.raises(InputError, match="run r is not of purpose 'training'"):
        target.adopt(repo.outbox("there").next_part()[0])
    assert target.records().inputs == 0
    other = register(far, ModelVersion("net", "v2"))
    other.start_run("training", run="r", settings={"k": 2})
    other.write("r", [batch("b")])
    assert other.adopt(repo.outbox("there").next_part()[0]) == 1
    (info,) = other.runs()
    assert (info.records, info.settings) == (2, {"k": 2})


# Processes that end at any moment


def _synchronise(home, far_home, left):
    """Send and withdraw, as a process that is killed before its `left`-th step."""

    def step():
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    with Store(home) as mine, Store(far_home) as service:
        outbox, target = mine.open(VERSION).outbox("there"), service.open(VERSION)
        step()
        while origins := outbox.withdrawals(limit=2):
            step()
            target.forget(origins)
            step()
            outbox.withdrawn(origins)
            step()
        while (pair := outbox.next_part()) is not None:
            step()
            target.adopt(Part.unpack(pair[0].pack()[1]))
            step()
            outbox.saved(pair[1])
            step()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_process_that_is_killed_loses_and_doubles_nothing(store, far, repo, run, monkeypatch):
    monkeypatch.setattr(sending, "PART_CHUNKS", 2)
    target = register(far)
    store._segments.end()
    killed = 0
    for k in range(12):
        repo.write(run, [batch([f"{k}.{j}"], epoch=k, at=10 * k + j) for j in range(3)])
        repo.write(run, [batch([f"{k}!"], epoch=k + 100)])
        if k % 3 == 2:
            repo.delete_epoch(k - 1)
            repo.delete_epoch(k + 99)
        pid = os.fork()
        if not pid:
            try:
                _synchronise(store.home, far.home, k)
            finally:
                os._exit(0)
        killed += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        assert set(target.records().ids().to_pylist()) <= {
            f"{i}{rest}" for i in range(k + 1) for rest in (".0", ".1", ".2", "!")
        }
    assert killed >= 6
    _synchronise(store.home, far.home, 1000)
    records, expected = target.records(), repo.records()
    assert records.ids().to_pylist() == expected.ids().to_pylist()
    assert content(target) == content(repo)
    assert (records.replaced, far.verify()) == (0, [])
    assert repo.outbox("there").pending().chunks == 0
    assert repo.outbox("there").withdrawals() == []
