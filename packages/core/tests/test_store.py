import json
import os
import sqlite3
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlmodel import select

from ml_debugger.core.errors import (
    ArchitectureMismatchError,
    InputError,
    NothingToEvaluateError,
    ResultNotFoundError,
    SchemaError,
    StoreError,
)
from ml_debugger.core.records import Batch, ModelVersion, Units
from ml_debugger.core.store import (
    LocalRepository,
    Repository,
    Scope,
    Store,
    catalogue,
    home,
    local,
    repository,
    schema,
)
from ml_debugger.core.store.catalogue import SqliteCatalogue
from ml_debugger.core.store.tables import ChunkRow

VERSION = ModelVersion("net", "v1")
FIELDS = [
    {"name": "camera", "type": "str", "nullable": True},
    {"name": "speed", "type": "float", "nullable": True},
    {"name": "lane", "type": "int", "nullable": True},
    {"name": "night", "type": "bool", "nullable": True},
    {"name": "taken", "type": "datetime", "nullable": True},
    {"name": "extra", "type": "json", "nullable": True},
]


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "home") as store:
        yield store


def register(store, version=VERSION, **options):
    given = {"task": "classification", "architecture": ["Linear", "w 2 3"], "layers": {"a": "0"}}
    return store.register(version, **(given | options))


@pytest.fixture
def repo(store):
    return register(store)


@pytest.fixture
def run(repo):
    return repo.start_run("training")


def batch(ids, *, epoch=0, dataset="train", values=None, at=1, actual=True, **columns):
    n = len(ids)
    values = range(n) if values is None else values
    columns = columns or {"score": torch.tensor(list(values), dtype=torch.float32)}
    truth = Units({"label": torch.arange(n)}) if actual else None
    return Batch([str(i) for i in ids], dataset, epoch, at, Units(columns), truth)


# Registering


def test_a_version_is_made_once_and_opened_again(tmp_path):
    with Store(tmp_path) as store:
        first = register(store, fields=FIELDS)
        assert isinstance(first, LocalRepository)
        assert (first.version, first.task, first.layers) == (VERSION, "classification", {"a": "0"})
        assert first.architecture == ("Linear", "w 2 3")
    with Store(tmp_path) as store:
        again = store.open(VERSION)
        assert again.architecture_hash == first.architecture_hash
        assert again.fields == tuple(FIELDS)
        assert register(store, layers={"b": "1"}).layers == {"b": "1"}
        (info,) = store.versions()
        assert info.version == VERSION
        assert (info.records, info.epochs, info.bytes, info.last_written) == (0, (), 0, None)


def test_an_unknown_version_is_told_with_what_is_near(store):
    with pytest.raises(NothingToEvaluateError, match="the store is empty"):
        store.open(VERSION)
    register(store)
    with pytest.raises(LookupError, match="nearest are: net/v1"):
        store.open(ModelVersion("net", "v2"))


def test_another_architecture_is_refused_and_says_where_it_differs(store, repo, run):
    with pytest.raises(ArchitectureMismatchError, match="entry 1 is 'w 9 9', it was 'w 2 3'"):
        register(store, architecture=["Linear", "w 9 9"])
    with pytest.raises(ValueError, match="entry 1 is 'missing'"):
        register(store, architecture=["Linear"])
    repo.write(run, [batch("a")])
    changed = register(store, architecture=["Conv"], recreate=True)
    assert changed.architecture == ("Conv",)
    assert changed.records().inputs == 0


def test_recreate_leaves_other_versions_their_architecture(store, repo, run):
    repo.write(run, [batch("a")])
    other = ModelVersion("net", "v2")
    with pytest.raises(ArchitectureMismatchError, match="version 'v1' has records.*new model_name"):
        register(store, other, architecture=["Conv"], recreate=True)


def test_task_and_fields_must_agree(store):
    register(store, fields=[{"name": "camera", "type": "str"}])
    with pytest.raises(InputError, match="task 'classification', not 'detection'"):
        register(store, task="detection")
    with pytest.raises(InputError, match="'camera'.*type 'str', not 'int'"):
        register(store, fields=[{"name": "camera", "type": "int"}])
    with pytest.raises(InputError, match="type 'image', expected str"):
        register(store, fields=[{"name": "x", "type": "image"}])
    with pytest.raises(InputError, match="kept for the store"):
        register(store, fields=[{"name": "run", "type": "str"}])
    more = register(store, fields=[{"name": "lane", "type": "int"}])
    assert [one["name"] for one in more.fields] == ["camera", "lane"]
    with pytest.raises(InputError, match="must not be empty"):
        register(store, ModelVersion("", "v"))


# Writing and reading


def test_what_was_written_is_read(repo, run):
    repo.write(run, [batch("ab", values=[1, 2]), batch("c", values=[3], actual=False)])
    repo.write(run, [batch("d", epoch=None, dataset="val", values=[4])])
    records = repo.records()
    assert (records.inputs, records.units, records.replaced, len(records)) == (4, 4, 0, 4)
    assert records.runs == (run,)
    assert records.n_epochs == (0, None)
    assert records.dataset_types == ("train", "val")
    assert records.ids().to_pylist() == ["a", "b", "c", "d"]
    assert records.column("predicted/score").tolist() == [1, 2, 3, 4]
    assert records.column("input/dataset_type").to_pylist() == ["train"] * 3 + ["val"]
    assert records.column("input/n_epoch").to_pylist() == [0, 0, 0, None]
    assert records.column("input/run").to_pylist() == [run] * 4
    assert records.column("input/id").to_pylist() == ["a", "b", "c", "d"]
    assert records.column("input/recorded_at").tolist() == [1] * 4
    assert records.column("actual/label").tolist() == [0, 1, 0]
    assert records.counts("actual").tolist() == [1, 1, 0, 1]
    assert records.counts("predicted").tolist() == [1] * 4
    assert records.column("input/n_epoch", np.array([3, 0])).to_pylist() == [None, 0]


def test_scopes(repo, run):
    second = repo.start_run("monitoring")
    repo.write(run, [batch("a", epoch=0), batch("b", epoch=1), batch("c", epoch=1, dataset="val")])
    repo.write(second, [batch("d", epoch=None)])

    def ids(**scope):
        return repo.records(Scope(**scope)).ids().to_pylist()

    assert ids() == ["a", "b", "c", "d"]
    assert ids(n_epoch=1) == ["b", "c"]
    assert ids(n_epoch=None) == ["d"]
    assert ids(dataset_types=("val", "test")) == ["c"]
    assert ids(runs=(second,)) == ["d"]
    assert ids(runs=()) == []
    assert ids(n_epoch=7) == []


def test_an_empty_reading_has_everything_empty(repo):
    records = repo.records()
    assert (records.inputs, records.units, records.replaced, records.runs) == (0, 0, 0, ())
    assert records.ids().to_pylist() == []
    assert records.find(["a"]).tolist() == [-1]
    assert records.counts("actual").tolist() == []
    assert list(records.parts()) == []
    assert records.missing_estimates("r") is None
    assert records.estimates("r", "p").shape == (0,)
    assert records.column("input/dataset_type").to_pylist() == []
    assert records.column("predicted/score").shape == (0,)


def test_records_never_change(store, repo, run):
    repo.write(run, [batch("ab")])
    before, unread = repo.records(), repo.records()
    assert before.inputs == 2
    repo.write(run, [batch("bc", values=[8, 9])])
    assert before.ids().to_pylist() == unread.ids().to_pylist() == ["a", "b"]
    assert repo.records().ids().to_pylist() == ["a", "b", "c"]
    assert repo.records().column("predicted/score").tolist() == [0, 8, 9]
    assert unread.column("predicted/score").tolist() == [0, 1]
    repo.delete_epoch(0)
    assert before.column("predicted/score").tolist() == [0, 1]


def test_ready_is_waited_for(repo, run):
    values = torch.zeros(1)
    ready = Batch(
        ["a"], "train", 0, 1, Units({"score": values}), ready=lambda: values.fill_(5) and None
    )
    repo.write(run, [ready])
    assert repo.records().column("predicted/score").tolist() == [5]


@pytest.mark.parametrize(
    "dtype",
    ["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"],
)
def test_dtypes_are_kept(repo, run, dtype):
    values = torch.tensor([[0, 1, 2], [3, 4, 5]]).to(getattr(torch, dtype))
    repo.write(run, [batch("ab", logits=values)])
    read = repo.records().column("predicted/logits")
    assert read.dtype == np.dtype(dtype)
    assert read.tolist() == values.tolist()


def test_narrow_floats_are_widened_and_others_refused(repo, run):
    values = torch.tensor([[1.5, -2.0]]).to(torch.bfloat16)
    repo.write(run, [batch("a", logits=values)])
    read = repo.records().column("predicted/logits")
    assert (read.dtype, read.tolist()) == (np.float32, [[1.5, -2.0]])
    with pytest.raises(InputError, match=r"complex64, which cannot be stored"):
        repo.write(run, [batch("a", logits=torch.zeros(1, 2, dtype=torch.complex64))])


def test_tensors_of_any_make_are_stored(repo, run):
    odd = torch.arange(12.0).reshape(3, 4).T  # not contiguous
    repo.write(run, [batch("abcd", logits=odd)])
    repo.write(run, [batch("efgh", logits=odd.clone().requires_grad_())])
    assert repo.records().column("predicted/logits").tolist() == odd.tolist() * 2


def test_values_may_have_any_shape(repo, run):
    repo.write(run, [batch("ab", box=torch.arange(8).reshape(2, 2, 2), none=torch.zeros(2, 0))])
    records = repo.records()
    assert records.column("predicted/box").tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    assert records.column("predicted/none").shape == (2, 0)
    assert records.column("predicted/box", np.array([1])).tolist() == [[[4, 5], [6, 7]]]


def test_a_batch_that_does_not_fit_is_refused_whole(repo, run):
    good = batch("ab")
    for bad, what in [
        (batch("ab", score=torch.zeros(3)), r"'score' has shape \(3,\), expected 2 values"),
        (batch("ab", score=torch.zeros(())), "expected 2 values"),
        (
            Batch(["a"], "t", 0, 1, Units({"x": torch.zeros(1)}, torch.tensor([2]))),
            "expected 2 values",
        ),
        (
            Batch(["a"], "t", 0, 1, Units({"x": torch.zeros(1)}, torch.tensor([-1]))),
            "one count >= 0",
        ),
        (
            Batch(["a"], "t", 0, 1, Units({"x": torch.zeros(1)}), fields={"camera": ["c"]}),
            "'camera' was not declared",
        ),
        (Batch(["a", 5], "t", 0, 1, Units({"x": torch.zeros(2)})), "input/id cannot be stored"),
    ]:
        with pytest.raises(InputError, match=what):
            repo.write(run, [good, bad])
    assert repo.records().inputs == 0
    with pytest.raises(InputError, match="not started here"):
        repo.write("other", [good])
    repo.write(run, [])
    repo.write(run, [batch("")])
    assert repo.records().inputs == 0


def test_fields_come_back_with_their_nulls(store):
    repo = register(store, fields=FIELDS, label_fields=[{"name": "by", "type": "str"}])
    run = repo.start_run("training")
    taken = datetime(2026, 2, 3, 4, 5, 6, 7, UTC)
    values = {
        "camera": ["ü", None],
        "speed": [1.5, None],
        "lane": [2**62, None],
        "night": [True, None],
        "taken": [taken, None],
        "extra": [json.dumps({"a": [1]}), None],
    }
    units = Units({"x": torch.zeros(2)})
    repo.write(run, [Batch(["a", "b"], "t", 0, 1, units, units, values, {"by": ["me", "you"]})])
    repo.write(run, [Batch(["c", "d"], "t", 0, 1, units, None)])
    repo = register(store, fields=[{"name": "new", "type": "int"}])
    records = repo.records()
    for name, expected in values.items():
        assert records.column(f"input/{name}").to_pylist() == [*expected, None, None]
        assert records.column(f"input/{name}", np.array([3, 0])).to_pylist() == [None, expected[0]]
    assert records.column("label/by").to_pylist() == ["me", "you", None, None]
    assert records.column("input/new").to_pylist() == [None] * 4
    assert {"input/camera", "label/by", "input/new"} <= set(records.names())
    with pytest.raises(InputError, match="input/lane cannot be stored as int"):
        run = repo.start_run("training")
        repo.write(
            run, [Batch(["a"], "t", 0, 1, Units({"x": torch.zeros(1)}), None, {"lane": ["x"]})]
        )
    with pytest.raises(InputError, match="'lane' has 2 values for 1 inputs"):
        repo.write(
            run, [Batch(["a"], "t", 0, 1, Units({"x": torch.zeros(1)}), None, {"lane": [1, 2]})]
        )


def test_columns_that_not_all_chunks_have(repo, run):
    other = repo.start_run("training")
    repo.write(run, [batch("a", logits=torch.zeros(1, 3), feature=torch.zeros(1, 2))])
    repo.write(other, [batch("b", logits=torch.zeros(1, 4))])
    records = repo.records()
    assert "predicted/feature" not in records.names()
    with pytest.raises(InputError, match=f"recorded in run {run}, but not in all.*{other}"):
        records.column("predicted/feature")
    with pytest.raises(InputError, match=f"shape .3,. in run {run} and .4,. in run {other}"):
        records.column("predicted/logits")
    with pytest.raises(InputError, match="nearest are: predicted/logits"):
        records.column("predicted/logit")
    assert repo.records(Scope(runs=(run,))).column("predicted/feature").shape == (1, 2)
    assert len(list(records.parts())) == 2


def test_dtypes_that_differ_are_promoted(repo, run):
    repo.write(run, [batch("a", x=torch.tensor([1.5], dtype=torch.float16))])
    repo.write(run, [batch("b", x=torch.tensor([2.5], dtype=torch.float64))])
    read = repo.records().column("predicted/x")
    assert (read.dtype, read.tolist()) == (np.float64, [1.5, 2.5])


def ragged(ids, counts, start=0, truth=None):
    n = sum(counts)
    boxes = torch.arange(start, start + n, dtype=torch.float32)
    actual = None
    if truth is not None:
        actual = Units({"label": torch.arange(sum(truth))}, torch.tensor(truth))
    units = Units({"box": boxes[:, None].repeat(1, 4), "n": boxes}, torch.tensor(counts))
    return Batch(ids, "train", 0, 1, units, actual)


def test_ragged_units(repo, run):
    repo.write(run, [ragged(["a", "b", "c"], [2, 0, 1], truth=[0, 1, 1])])
    repo.write(run, [ragged(["d", "a"], [1, 2], start=10, truth=[2, 1])])
    records = repo.records()
    assert records.ids().to_pylist() == ["b", "c", "d", "a"]
    assert records.counts("predicted").tolist() == [0, 1, 1, 2]
    assert records.counts("actual").tolist() == [1, 1, 2, 1]
    assert (records.inputs, records.units, records.replaced) == (4, 4, 1)
    assert records.column("predicted/n").tolist() == [2, 10, 11, 12]
    assert records.column("predicted/n", np.array([3, 0, 3])).tolist() == [12, 2, 12]
    assert records.column("actual/label").tolist() == [0, 1, 0, 1, 2]
    assert records.ragged == ("predicted", "actual")


def test_rows_out_of_range_are_refused(repo, run):
    repo.write(run, [batch("ab")])
    records = repo.records()
    for rows in ([2], [-1], [0.5], [True]):
        with pytest.raises(InputError, match="rows"):
            records.column("predicted/score", np.array(rows))
    assert records.column("predicted/score", np.array([], np.int64)).shape == (0,)
    assert records.ids(np.array([], np.int64)).to_pylist() == []


def test_order_is_kept_between_batches_of_different_columns(repo, run):
    """A record must not be overtaken by an older one that only has other columns."""
    narrow, wide = torch.zeros(1, 2), torch.zeros(1, 3)
    repo.write(
        run,
        [
            batch("x", at=1, logits=narrow),
            batch("x", at=2, logits=wide),
            batch("x", at=3, logits=narrow),
        ],
    )
    assert repo.records().column("input/recorded_at").tolist() == [3]


def test_large_writes_become_several_chunks(repo, run, monkeypatch):
    monkeypatch.setattr(repository, "CHUNK_BYTES", 1000)
    repo.write(run, [batch([k], logits=torch.full((1, 100), float(k))) for k in range(10)])
    records = repo.records()
    assert records.column("predicted/logits")[:, 0].tolist() == list(range(10))
    parts = list(records.parts(max_bytes=2000))
    assert len(parts) > 2
    assert [i for part in parts for i in part.ids().to_pylist()] == [str(k) for k in range(10)]


# Properties

text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)
BATCHES = st.lists(
    st.tuples(
        st.lists(st.sampled_from(["a", "b", "c", "d", "é", "日本", ""]), min_size=1, max_size=5),
        st.sampled_from(["train", "val"]),
        st.sampled_from([None, 0, 1]),
        st.integers(0, 1),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(batches=BATCHES, cuts=st.sets(st.integers(0, 12)), seen=st.sets(st.integers(0, 12)))
def test_the_later_record_counts_whatever_the_order(batches, cuts, seen, tmp_path_factory):
    """Against a dictionary that is assigned to in the order of writing."""
    with Store(tmp_path_factory.mktemp("home")) as store:
        repo = register(store)
        runs = [repo.start_run("training"), repo.start_run("training")]
        model, waiting, number = {}, [], 0
        for k, (ids, dataset, epoch, run) in enumerate(batches):
            units = Units({"n": torch.arange(number, number + len(ids))})
            for i in ids:
                model.pop((epoch, dataset, i), None)
                model[epoch, dataset, i] = number
                number += 1
            repo.write(runs[run], [*waiting, Batch(ids, dataset, epoch, k, units)])
            if k in seen:
                assert repo.records().inputs == len(model)  # what was seen is extended later
            if k in cuts:
                register(store)
        records = repo.records()
        keys = zip(
            records.column("input/n_epoch").to_pylist(),
            records.column("input/dataset_type").to_pylist(),
            records.ids().to_pylist(),
            strict=True,
        )
        values = records.column("predicted/n").tolist()
        assert dict(zip(keys, values, strict=True)) == model
        assert values == sorted(values)
        assert records.replaced == number - len(model)
        fresh = store.open(VERSION).records()
        assert fresh.column("predicted/n").tolist() == values


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_everything_comes_back_as_it_was(data, tmp_path_factory):
    with Store(tmp_path_factory.mktemp("home")) as store:
        fields = [{"name": "t", "type": "str"}, {"name": "x", "type": "float"}]
        repo = register(store, fields=fields)
        run = repo.start_run("monitoring")
        ids = data.draw(st.lists(text, min_size=1, max_size=30, unique=True))
        n = len(ids)
        counts = data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
        texts = data.draw(st.lists(st.none() | text, min_size=n, max_size=n))
        floats = data.draw(st.lists(st.none() | st.floats(), min_size=n, max_size=n))
        dtype = data.draw(st.sampled_from([np.float16, np.float32, np.int64, np.uint8, np.bool_]))
        width = data.draw(st.integers(0, 4))
        units = sum(counts)
        matrix = np.random.default_rng(0).integers(0, 100, (units, width)).astype(dtype)
        cuts = sorted({0, n, *data.draw(st.lists(st.integers(0, n), max_size=3))})
        bounds = np.concatenate([[0], np.cumsum(counts)])
        batches = [
            Batch(
                ids[a:b],
                "pool",
                3,
                a,
                Units(
                    {"m": torch.from_numpy(matrix[bounds[a] : bounds[b]])},
                    torch.tensor(counts[a:b], dtype=torch.int32),
                ),
                fields={"t": texts[a:b], "x": floats[a:b]},
            )
            for a, b in pairwise(cuts)
        ]
        for group in (batches[:1], batches[1:]):
            repo.write(run, group)
        records = repo.records()
        assert records.ids().to_pylist() == ids
        assert records.counts("predicted").tolist() == counts
        assert records.column("input/t").to_pylist() == texts
        assert records.column("input/x").equals(pa.array(floats, pa.float64())) or any(
            value != value for value in floats
        )
        read = records.column("predicted/m")
        assert read.dtype == dtype
        assert np.array_equal(read, matrix)
        rows = np.array(data.draw(st.lists(st.integers(0, max(units - 1, 0)), max_size=9)), int)
        rows = rows[:0] if not units else rows
        assert np.array_equal(records.column("predicted/m", rows), matrix[rows])
        some = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=9)), int)
        assert records.ids(some).to_pylist() == [ids[k] for k in some]
        assert records.column("input/t", some).to_pylist() == [texts[k] for k in some]
        wanted = [*[ids[k] for k in some], "not there at all"]
        assert records.find(wanted).tolist() == [*some.tolist(), -1]


def test_some_rows_of_large_chunks(repo, run):
    matrix = torch.arange(20_000.0).reshape(2000, 10).repeat(1, 100)
    repo.write(run, [batch(range(2000), m=matrix)])
    repo.write(run, [batch(range(1000, 3000), m=matrix)])
    records = repo.records()
    expected = np.concatenate([matrix.numpy()[:1000], matrix.numpy()])
    assert records.replaced == 1000
    rng = np.random.default_rng(0)
    for size in (1, 7, 300, 3000):
        rows = rng.integers(0, 3000, size)
        assert np.array_equal(records.column("predicted/m", rows), expected[rows])
    assert np.array_equal(records.column("predicted/m"), expected)


def test_a_scan_in_several_threads(repo, run, monkeypatch):
    from ml_debugger.core.store import gather

    monkeypatch.setattr(gather, "PARALLEL_BYTES", 1)
    monkeypatch.setattr(gather, "THREADS", 3)
    for k in range(7):
        repo.write(run, [batch([f"{k}.{n}" for n in range(k + 1)], values=[k] * (k + 1))])
    expected = [k for k in range(7) for _ in range(k + 1)]
    assert repo.records().column("predicted/score").tolist() == expected


# Epochs and runs


def test_latest_is_what_training_wrote_last(repo):
    assert repo.latest_epoch() is None
    assert repo.epochs() == []
    logger = repo.start_run("monitoring")
    repo.write(logger, [batch("a", epoch=9)])
    assert repo.latest_epoch() == 9
    trainer = repo.start_run("training")
    repo.write(trainer, [batch("a", epoch=5), batch("b", epoch=0)])
    repo.write(logger, [batch("c", epoch=8)])
    assert repo.latest_epoch() == 0
    repo.write(trainer, [batch("c", epoch=None)])
    assert repo.latest_epoch() is None
    repo.write(trainer, [batch("d", epoch=5, dataset="val")])
    assert repo.latest_epoch() == 5
    epochs = repo.epochs()
    assert [one.n_epoch for one in epochs] == [9, 0, 8, None, 5]
    assert epochs[-1].records == {"train": 1, "val": 1}
    assert epochs[-1].runs == (trainer,)
    now = datetime.now(UTC)
    assert now - timedelta(minutes=5) < epochs[-1].last_written <= now


def test_ranks_share_a_run(repo):
    run = repo.start_run("training", world_size=2)
    assert repo.start_run("training", run=run, rank=1, world_size=2) == run
    assert repo.start_run("training", run=run) == run
    repo.write(run, [batch("a")])
    (info,) = repo.runs()
    assert (info.run, info.purpose, info.world_size, info.records) == (run, "training", 2, 1)
    with pytest.raises(InputError, match="is of purpose 'training'"):
        repo.start_run("monitoring", run=run)
    with pytest.raises(InputError, match="purpose 'fun', expected"):
        repo.start_run("fun")


def test_runs_that_wrote_the_same_ids(repo):
    first, second = repo.start_run("training"), repo.start_run("training")
    repo.write(first, [batch("ab", values=[1, 2])])
    repo.write(second, [batch("b", values=[3])])
    both = repo.records()
    assert both.runs == (first, second)
    assert both.replaced == 1
    assert both.column("predicted/score").tolist() == [1, 3]
    assert repo.records(Scope(runs=(first,))).column("predicted/score").tolist() == [1, 2]


def test_deleting_an_epoch_counts_units_by_table(repo, run):
    assert repo.delete_epoch(4) == {"extracted_feature": 0}
    repo.write(run, [ragged(["a", "b"], [2, 1], truth=[1, 3]), batch("c", epoch=1)])
    repo.write(run, [ragged(["a"], [4], truth=[1])])
    assert repo.delete_epoch(4) == {"extracted_feature": 0, "ground_truth": 0}
    assert repo.delete_epoch(0) == {"extracted_feature": 5, "ground_truth": 4}
    assert repo.records().ids().to_pylist() == ["c"]
    assert repo.delete_epoch(None)["extracted_feature"] == 0


def test_deleting_what_two_runs_wrote_counts_both(repo):
    for _ in range(2):
        repo.write(repo.start_run("monitoring"), [batch("ab", actual=False)])
    assert repo.delete_epoch(0) == {"extracted_feature": 4}


def test_recreate_and_go_on(store, repo, run):
    other = register(store, ModelVersion("net", "v2"))
    other.write(other.start_run("training"), [batch("z")])
    repo.write(run, [batch("ab")])
    repo.recreate()
    assert repo.records().inputs == 0
    assert repo.runs() == []
    repo.write(run, [batch("c")])
    assert repo.records().ids().to_pylist() == ["c"]
    assert other.records().inputs == 1
    repo.close()
    repo.close()


def test_versions_tell_what_they_hold(store, repo, run):
    repo.write(run, [batch("ab"), batch("b", epoch=None)])
    repo.write(run, [batch("b")])
    register(store, ModelVersion("another", "v"))
    first, second = store.versions()
    assert (first.records, set(first.epochs), second.records) == (4, {0, None}, 0)
    assert first.bytes > 0
    assert first.last_written is not None


# Results and estimates


def add(store, name, version=VERSION, **more):
    at = datetime(2026, 1, 2, tzinfo=UTC)
    store.add_result(
        name=name,
        version=version,
        method="m",
        n_epoch="all",
        options={"a": 1},
        created_at=at,
        completed_at=at,
        **more,
    )


def test_results(store, repo):
    with pytest.raises(ResultNotFoundError, match="there are none yet"):
        store.result("r1")
    add(store, "r1")
    add(store, "r2")
    info = store.result("r1")
    assert (info.version, info.task, info.n_epoch) == (VERSION, "classification", "all")
    assert info.options == {"a": 1}
    assert info.created_at == datetime(2026, 1, 2, tzinfo=UTC)
    with pytest.raises(InputError, match="'r1' already"):
        add(store, "r1")
    with pytest.raises(InputError, match="no model version"):
        add(store, "r3", ModelVersion("x", "y"))
    with pytest.raises(LookupError, match="nearest are: r"):
        store.result("r")
    assert [one.name for one in store.results(VERSION)] == ["r1", "r2"]
    assert store.results(ModelVersion("x", "y")) == []
    store.drop_result("r1")
    with pytest.raises(ResultNotFoundError):
        store.drop_result("r1")
    (second,) = store.results()
    assert second.name == "r2"
    store.drop_result("r2")
    add(store, "r2")
    assert store.result("r2").number > second.number  # numbers are not used again


def drafted(store, name):
    draft = store.result_folder(name).with_name(".draft.tmp")
    draft.mkdir()
    (draft / "result.json").write_text(name)
    return draft


def test_the_files_of_a_result_go_with_it_and_not_before(store, repo, monkeypatch):
    add(store, "r", draft=drafted(store, "r"))
    folder, rmtree = store.result_folder("r"), local.shutil.rmtree

    def enter_another(path, **options):
        monkeypatch.undo()
        add(store, "r", draft=drafted(store, "r"))
        rmtree(path, **options)

    monkeypatch.setattr(local.shutil, "rmtree", enter_another)
    store.drop_result("r")
    assert (folder / "result.json").exists()  # of the other, which was entered meanwhile
    monkeypatch.setattr(local.os, "utime", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        store.drop_result("r")
    assert (folder / "result.json").exists()  # it is listed, so it is there
    monkeypatch.undo()
    store.drop_result("r")
    assert list(folder.parent.iterdir()) == []


def test_a_fence_is_held_from_the_last_step_until_the_commit(store, repo):
    seen = []

    @contextmanager
    def fence():
        with ThreadPoolExecutor(1) as other:
            seen.append(other.submit(store.results).result())
            yield
            seen.append([one.name for one in other.submit(store.results).result()])

    store.fence = fence
    add(store, "r", draft=drafted(store, "r"))
    assert seen == [[], ["r"]]
    with pytest.raises(InputError, match="'r' already"):
        add(store, "r")
    assert len(seen) == 2  # what cannot be entered takes nobody's time


def test_a_result_of_records_that_were_deleted_is_not_entered(store, repo, run):
    repo.write(run, [batch("ab", epoch=1)])
    repo.write(run, [batch("c", epoch=2)])
    judged = [(repo.records(), {"p": np.zeros(3)})]
    repo.delete_epoch(1)
    add(store, "r1", estimates=judged)  # some are there
    repo.recreate()
    repo.write(run, [batch("d", epoch=1)])
    with pytest.raises(InputError, match="deleted meanwhile"):
        add(store, "r2", estimates=judged)
    assert [one.name for one in store.results()] == ["r1"]


@given(name=st.text())
def test_a_result_folder_is_one_folder_in_the_store(name):
    assert home.folder_name(name) == home.folder_name(name)
    assert "/" not in home.folder_name(name)
    assert home.folder_name(name) not in ("", ".", "..")
    assert len(home.folder_name(name)) < 120


def test_result_folders_differ(store):
    names = ["a/b", "a-b", "a b", "../a", "..", ".", "", "a", "A", "ä", "x" * 300, "x" * 301]
    names.append(home.folder_name("a/b"))
    folders = {store.result_folder(name) for name in names}
    assert len(folders) == len(names)
    assert {folder.parent for folder in folders} == {store.home / "results"}
    assert store.result_folder("my_result.v1").name == "my_result.v1"


def test_estimates_are_kept_beside_the_records(store, repo, run):
    repo.write(run, [ragged(["a", "b"], [2, 1])])
    records = repo.records()
    assert records.missing_estimates("r").units == 3
    columns = {
        "p": np.array([0.1, 0.2, 0.3], np.float32),
        "zone": np.array([1, 2, 3], np.int8),
        "v": np.arange(6.0).reshape(3, 2),
    }
    records.write_estimates("r", columns)
    assert records.missing_estimates("r") is None
    for name, values in columns.items():
        read = records.estimates("r", name)
        assert read.dtype == values.dtype
        assert np.array_equal(read, values)
    with pytest.raises(ResultNotFoundError, match="no 'q' for 3 of 3"):
        records.estimates("r", "q")
    repo.write(run, [ragged(["c"], [1])])
    both = repo.records()
    missing = both.missing_estimates("r")
    assert missing.ids().to_pylist() == ["c"]
    with pytest.raises(ResultNotFoundError, match="for 1 of 4"):
        both.estimates("r", "p")
    missing.write_estimates("r", {"p": np.array([0.4], np.float32)})
    assert both.estimates("r", "p").tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    both.write_estimates("r", {"p": np.zeros(4)})
    with pytest.raises(ResultNotFoundError):
        both.estimates("r", "zone")
    add(store, "r")
    store.drop_result("r")
    assert both.missing_estimates("r").inputs == 3


def test_estimates_of_replaced_rows_are_not_taken_for_known(repo):
    first, second = repo.start_run("training"), repo.start_run("training")
    repo.write(first, [batch("abc")])
    repo.write(second, [batch("b")])
    both = repo.records()
    both.write_estimates("r", {"p": np.array([1.0, 2.0, 3.0])})  # a, c, b
    assert both.missing_estimates("r") is None
    alone = repo.records(Scope(runs=(first,)))
    assert alone.missing_estimates("r").ids().to_pylist() == ["a", "b", "c"]
    with pytest.raises(ResultNotFoundError, match="3 of 3"):
        alone.estimates("r", "p")
    alone.write_estimates("r", {"p": np.array([1.0, 9.0, 2.0])})
    assert alone.estimates("r", "p").tolist() == [1, 9, 2]
    assert both.missing_estimates("r") is None
    assert both.estimates("r", "p").tolist() == [1, 2, 3]


def test_estimates_that_do_not_fit(repo, run):
    repo.write(run, [batch("ab")])
    records = repo.records()
    for columns, what in [
        ({"p": np.zeros(3)}, "expected 2 values"),
        ({"p": np.array(["a", None], object)}, "cannot be stored"),
        ({}, "no column"),
    ]:
        with pytest.raises(InputError, match=what):
            records.write_estimates("r", columns)
    repo.delete_epoch(0)
    records.write_estimates("r", {"p": np.zeros(2)})
    assert repo.records().missing_estimates("r") is None


def test_estimates_of_many_chunks(repo, run):
    for k in range(1100):
        repo.write(run, [batch([k])]) if k < 3 else None
    repo.write(run, [b for k in range(3, 1100) for b in (batch([k], epoch=k),)])
    records = repo.records()
    records.write_estimates("r", {"p": np.arange(1100)})
    assert records.missing_estimates("r") is None
    assert records.estimates("r", "p").tolist() == list(range(1100))


# Space


def segments(store):
    return sorted(path.name for path in (store.home / "segments").iterdir())


def test_compaction_gives_space_back_and_readers_do_not_notice(store, repo, run):
    repo.write(run, [batch(range(1000), epoch=e) for e in range(4)])
    repo.write(run, [batch(["x"], epoch=9, values=[7])])
    reading = repo.records(Scope(n_epoch=9))
    deleted = repo.records(Scope(n_epoch=0))
    for epoch in range(4):
        repo.delete_epoch(epoch)
    before = segments(store)
    freed = store.compact()
    assert freed > 4 * 4000
    assert segments(store) != before
    assert len(segments(store)) == 1
    assert reading.column("predicted/score").tolist() == [7]
    assert repo.records().ids().to_pylist() == ["x"]
    assert store.verify() == []
    assert store.compact() == 0
    with Store(store.home) as other:
        assert other.open(VERSION).records().column("predicted/score").tolist() == [7]
    store._segments._reader.close()
    with pytest.raises(StoreError, match="deleted while they were read"):
        deleted.column("predicted/score")


def test_compaction_leaves_full_segments_and_open_ones_alone(store, repo, run, tmp_path):
    repo.write(run, [batch(range(100))])
    with Store(store.home) as other:
        second = register(other)
        second.write(second.start_run("training"), [batch(range(100), epoch=1)])
        second.delete_epoch(1)
        assert store.compact() == 0
        assert len(segments(store)) == 2
        second.write(second.start_run("training"), [batch("ab", epoch=2)])
    assert store.compact() > 0
    assert sorted(repo.records(Scope(n_epoch=2)).ids().to_pylist()) == ["a", "b"]


def test_a_segment_that_no_chunk_names_is_removed(store, repo, run):
    torn = store.home / "segments" / "torn.seg"
    torn.write_bytes(b"x" * 1000)
    repo.write(run, [batch("a")])
    assert repo.records().inputs == 1
    assert store.compact() == 1000
    assert not torn.exists()
    assert repo.records().ids().to_pylist() == ["a"]


def test_compaction_beside_a_writer_and_a_reader(store, repo, run):
    stop = threading.Event()
    problems = []

    def write():
        with Store(store.home) as mine:
            writer = register(mine)
            number = writer.start_run("training")
            for k in range(40):
                writer.write(number, [batch([f"k{k}"], epoch=100), batch(range(200), epoch=k)])
                writer.delete_epoch(k)
                if k % 5 == 4:
                    mine._segments.end()

    def read():
        with Store(store.home) as mine:
            reader = mine.open(VERSION)
            while not stop.is_set():
                records = reader.records(Scope(n_epoch=100))
                mine._segments._reader.close()
                if records.column("predicted/score").shape != (records.inputs,):
                    problems.append(records.inputs)

    threads = [threading.Thread(target=write), threading.Thread(target=read)]
    for thread in threads:
        thread.start()
    while threads[0].is_alive():
        store.compact()
    stop.set()
    threads[1].join()
    store.compact()
    assert problems == []
    assert repo.records(Scope(n_epoch=100)).ids().to_pylist() == [f"k{k}" for k in range(40)]
    assert store.verify() == []


def test_compaction_waits_for_what_is_written_but_not_entered_yet(store, repo, run, monkeypatch):
    """A thread that has written, and not yet told the catalogue, must not lose its file."""
    insert, inside, go_on = LocalRepository._insert, threading.Event(), threading.Event()

    def slow(*args):
        inside.set()
        go_on.wait()
        insert(*args)

    monkeypatch.setattr(LocalRepository, "_insert", slow)
    writing = threading.Thread(target=repo.write, args=(run, [batch("a", values=[5])]))
    writing.start()
    inside.wait()
    compacting = threading.Thread(target=store.compact)
    compacting.start()
    compacting.join(0.1)
    go_on.set()
    writing.join()
    compacting.join()
    assert repo.records().column("predicted/score").tolist() == [5]
    assert store.verify() == []


def test_verify_finds_damage(store, repo, run):
    repo.write(run, [batch(range(100))])
    assert store.verify() == []
    (name,) = segments(store)
    path = store.home / "segments" / name
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)
    (problem,) = store.verify()
    assert "has changed on disk" in problem
    assert "100 inputs" in problem
    repo.delete_epoch(5)
    path.write_bytes(data[:100])
    assert "ends before byte" in store.verify()[0]
    path.unlink()
    assert "is missing" in store.verify()[0]
    fresh = Store(store.home)
    with pytest.raises(StoreError, match="is missing; restore it"):
        fresh.open(VERSION).records().column("predicted/score")
    fresh.close()


def test_compaction_does_not_copy_damage(store, repo, run):
    repo.write(run, [batch(range(100)), batch(range(1000), epoch=1)])
    repo.delete_epoch(1)
    (name,) = segments(store)
    path = store.home / "segments" / name
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match="left as it is"):
        store.compact()
    assert path.exists()


# The folder


def test_the_folder_is_private_and_can_be_moved(tmp_path):
    with Store(tmp_path / "a" / "b") as store:
        repo = register(store)
        repo.write(repo.start_run("training"), [batch("a")])
        assert store.home.stat().st_mode & 0o777 == 0o700
    (tmp_path / "a" / "b").rename(tmp_path / "c")
    with Store(tmp_path / "c") as store:
        assert store.open(VERSION).records().column("predicted/score").tolist() == [0]


def test_a_home_that_cannot_be(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(StoreError, match=r"file.*is not a folder.*MLD_HOME"):
        Store(file)
    with pytest.raises(StoreError, match=r"cannot make the folder"):
        Store(file / "below")
    with pytest.raises(OSError, match=r"cannot make the folder /proc/mld"):
        Store("/proc/mld")


def test_a_home_that_cannot_be_written(tmp_path, monkeypatch):
    def refuse(*_args, **_more):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StoreError, match=r"cannot write in .*Permission denied.*MLD_HOME"):
        Store(tmp_path)


def test_a_connection_that_outlasts_the_store_is_closed_when_it_is_given_back(tmp_path):
    catalogue = SqliteCatalogue(tmp_path / "catalogue.db")
    with catalogue.reading() as session:
        raw = session.connection().connection.dbapi_connection
        catalogue.close()
        assert raw.execute("SELECT number FROM schema_number").fetchone()  # still in use
    with pytest.raises(sqlite3.ProgrammingError, match="closed database"):
        raw.execute("SELECT number FROM schema_number")


def test_a_damaged_or_foreign_catalogue(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "catalogue.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(StoreError, match=r"catalogue.db.*not a database.*backup"):
        Store(tmp_path / "a")
    (tmp_path / "b").mkdir()
    with sqlite3.connect(tmp_path / "b" / "catalogue.db") as raw:
        raw.execute("CREATE TABLE other (x)")
    raw.close()
    with pytest.raises(StoreError, match="database of something else"):
        Store(tmp_path / "b")


def test_a_newer_schema_is_refused(tmp_path):
    Store(tmp_path).close()
    with sqlite3.connect(tmp_path / "catalogue.db") as raw:
        raw.execute("UPDATE schema_number SET number = 99")
    raw.close()
    with pytest.raises(SchemaError, match="has schema 99, this ml-debugger reads up to"):
        Store(tmp_path)


def test_an_older_schema_is_migrated_in_one_go(tmp_path, monkeypatch):
    Store(tmp_path).close()

    def step(connection):
        connection.exec_driver_sql("CREATE TABLE more (x)")

    def broken(connection):
        connection.exec_driver_sql("CREATE TABLE half (x)")
        connection.exec_driver_sql("SELECT * FROM nowhere")

    now = schema.SCHEMA
    monkeypatch.setattr(schema, "SCHEMA", now + 2)
    monkeypatch.setattr(schema, "MIGRATIONS", {now: step, now + 1: broken})
    with pytest.raises(StoreError):
        Store(tmp_path)
    monkeypatch.setattr(schema, "MIGRATIONS", {now: step, now + 1: lambda _connection: None})
    Store(tmp_path).close()
    raw = sqlite3.connect(tmp_path / "catalogue.db")
    assert raw.execute("SELECT number FROM schema_number").fetchall() == [(now + 2,)]
    assert raw.execute("SELECT name FROM sqlite_master WHERE name = 'half'").fetchall() == []
    raw.close()


def _undo_sync(raw):
    """Make a catalogue what it was before schema 3."""
    raw.execute("DROP INDEX chunk_origin")
    raw.execute("ALTER TABLE chunk DROP COLUMN origin")
    for table in ("identity", "upload", "withdrawal", "forgotten"):
        raw.execute(f"DROP TABLE {table}")
    raw.execute("UPDATE schema_number SET number = 2")


def test_chunks_of_a_store_of_the_second_schema_can_be_sent(tmp_path):
    with Store(tmp_path) as store:
        repo = register(store)
        repo.write(repo.start_run("training"), [batch("ab")])
    with sqlite3.connect(tmp_path / "catalogue.db") as raw:
        _undo_sync(raw)
    raw.close()
    with Store(tmp_path) as store:
        outbox = store.open(VERSION).outbox("there")
        assert outbox.pending() == (1, 2, repo_bytes(store))
        part, numbers = outbox.next_part()
        assert part.inputs == 2
        outbox.saved(numbers)
        assert outbox.pending().chunks == 0


def repo_bytes(store):
    return store.versions()[0].bytes


def test_runs_of_a_store_of_the_first_schema_have_no_known_settings(tmp_path):
    with Store(tmp_path) as store:
        repo = register(store)
        repo.write(repo.start_run("training", settings={"score_thresh": 0.5}), [batch("ab")])
        assert repo.runs()[0].settings == {"score_thresh": 0.5}
    with sqlite3.connect(tmp_path / "catalogue.db") as raw:
        _undo_sync(raw)
        raw.execute("ALTER TABLE run DROP COLUMN settings")
        raw.execute("UPDATE schema_number SET number = 1")
    raw.close()
    with Store(tmp_path) as store:
        repo = register(store)
        assert repo.runs()[0].settings == {}
        run = repo.start_run("training", settings={"iou_thresh": None, "most": 3})
        repo.write(run, [batch("cd")])
        assert repo.runs()[1].settings == {"iou_thresh": None, "most": 3}


def test_the_catalogue_is_as_decided(store):
    with store._catalogue.reading() as session:
        raw = session.connection()
        pragmas = ["journal_mode", "synchronous", "page_size", "foreign_keys", "busy_timeout"]
        found = [raw.exec_driver_sql(f"PRAGMA {name}").scalar() for name in pragmas]
    assert found == ["wal", 2, 16384, 1, 30_000]


MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
server:/x /data nfs4 rw 0 0
//smb/y /data/my\\040disk cifs rw 0 0
tmpfs /data/tmp tmpfs rw 0 0
me@host:/z /remote fuse.sshfs rw 0 0
"""


def test_network_file_systems_are_known(tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS)
    for path, expected in [
        ("/home/me", None),
        ("/data/home", "nfs4"),
        ("/database", None),
        ("/data/my disk/h", "cifs"),
        ("/data/tmp/h", None),
        ("/remote/h", "fuse.sshfs"),
    ]:
        assert home.network_file_system(home.Path(path), mounts) == expected
    assert home.network_file_system(home.Path("/"), tmp_path / "none") is None


def test_a_network_home_is_warned_of_once(tmp_path, monkeypatch):
    monkeypatch.setattr(home, "network_file_system", lambda _path: "nfs4")
    with pytest.warns(UserWarning, match="network file system .nfs4.*MLD_HOME"):
        Store(tmp_path).close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Store(tmp_path).close()


def test_a_failed_commit_leaves_nothing_and_can_be_tried_again(store, repo, run, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(LocalRepository, "_insert", lambda *_: (_ for _ in ()).throw(OSError(5, "x")))
        with pytest.raises(OSError, match="x"):
            repo.write(run, [batch("a", values=[1])])
    assert repo.records().inputs == 0
    repo.write(run, [batch("a", values=[2])])
    assert repo.records().column("predicted/score").tolist() == [2]
    assert store.verify() == []


def test_a_locked_catalogue_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "BUSY_SECONDS", 0)
    with Store(tmp_path) as store:
        repo = register(store)
        run = repo.start_run("training")
        raw = sqlite3.connect(tmp_path / "catalogue.db", isolation_level=None)
        raw.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked.*try again"):
            repo.write(run, [batch("a")])
        assert repo.records().inputs == 0
        raw.execute("ROLLBACK")
        raw.close()
        repo.write(run, [batch("a")])
        assert repo.records().inputs == 1


def test_several_threads_write_and_read(store, repo):
    def work(name):
        run = repo.start_run("training")
        for k in range(20):
            repo.write(run, [batch([f"{name}.{k}"])])
            assert f"{name}.{k}" in repo.records().ids().to_pylist()

    failed = []

    def guarded(name):
        try:
            work(name)
        except BaseException as error:  # noqa: BLE001  # asserted on below
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert repo.records().inputs == 80


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_reads_and_may_not_write(store, repo, run):
    repo.write(run, [batch("ab")])
    records = repo.records()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            assert records.ids().to_pylist() == ["a", "b"]
            assert repo.records().column("predicted/score").tolist() == [0, 1]
            try:
                repo.write(run, [batch("c")])
            except StoreError:
                code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    repo.write(run, [batch("d")])
    assert repo.records().inputs == 3


def test_readers_do_not_wait_for_each_other_nor_a_writer(store, repo):
    inside = threading.Barrier(4)  # nobody passes before all are in a transaction

    def read():
        with store._catalogue.reading():
            inside.wait(30)

    with ThreadPoolExecutor(3) as pool, store._catalogue.writing():
        readers = [pool.submit(read) for _ in range(3)]
        inside.wait(30)
    for one in readers:
        one.result()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_waits_for_transactions_of_other_threads(store, repo, run):
    repo.write(run, [batch("ab")])
    inside, leave, order = threading.Event(), threading.Event(), []

    def read():
        with store._catalogue.reading() as session:
            inside.set()
            leave.wait(30)
            order.append(session.exec(select(ChunkRow.inputs)).one())
            order.append("read")

    def let():
        time.sleep(0.1)  # for the fork to begin
        leave.set()

    threads = [threading.Thread(target=one) for one in (read, let)]
    for one in threads:
        one.start()
    inside.wait(30)
    pid = os.fork()
    if not pid:
        os._exit(0 if order == [2, "read"] and repo.records().inputs == 2 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    for one in threads:
        one.join()
    assert repo.records().inputs == 2


def test_users_of_sqlmodel_do_not_see_our_tables():
    from sqlmodel import SQLModel

    assert not {"model", "version", "chunk"} & set(SQLModel.metadata.tables)


def test_the_contract_is_implemented(repo):
    contract: Repository = repo
    assert contract.version == VERSION


def test_a_store_is_opened_while_another_process_writes(tmp_path, monkeypatch):
    Store(tmp_path / "home").close()
    monkeypatch.setattr(catalogue, "BUSY_SECONDS", 0.01)
    writer = sqlite3.connect(tmp_path / "home" / "catalogue.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    with Store(tmp_path / "home") as store:
        assert store.versions() == []
        with pytest.raises(StoreError, match="kept it locked"):
            register(store)
    writer.close()
