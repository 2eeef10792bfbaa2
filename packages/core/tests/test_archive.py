import hashlib
import io
import json
import os
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml_debugger.core import archive as archive_module
from ml_debugger.core.archive import export_archive, import_archive
from ml_debugger.core.errors import (
    ArchitectureMismatchError,
    ArchiveError,
    InputError,
    SchemaError,
    StoreError,
)
from ml_debugger.core.records import Batch, ModelVersion, Units
from ml_debugger.core.store import Scope, Store, inspection

VERSION = ModelVersion("my net/β", "v 1")
FIELDS = [
    {"name": "camera", "type": "str", "nullable": True, "default": None},
    {"name": "taken", "type": "datetime", "nullable": True, "default": None},
    {"name": "score", "type": "float", "nullable": True, "default": None},
]
LABEL_FIELDS = [{"name": "by", "type": "str", "nullable": True, "default": None}]


def make(folder):
    store = Store(folder)
    repository = store.register(
        VERSION,
        task="detection",
        architecture=["a", "b"],
        layers={"head": "0"},
        fields=FIELDS,
        label_fields=LABEL_FIELDS,
    )
    return store, repository


def batch(ids, at=1, epoch=0, dataset="train", counts=None, value=0.0, labelled=True):
    n = len(ids)
    units = n if counts is None else sum(counts)
    tensor = None if counts is None else torch.tensor(counts, dtype=torch.int32)
    return Batch(
        ids,
        dataset,
        epoch,
        at,
        Units(
            {
                "label": torch.arange(units),
                "box": torch.full((units, 2, 2), value),
                "feature.head": torch.full((units, 3), value, dtype=torch.float16),
                "visible": torch.arange(units) % 2 == 0,
                "none": torch.zeros(units, 0),
            },
            tensor,
        ),
        Units({"label": torch.arange(n)}) if labelled else None,
        {"camera": [None, *ids[1:]], "taken": [datetime(2026, 1, 1, tzinfo=UTC)] * n},
        {"by": ids} if labelled else {},
    )


@pytest.fixture
def full(tmp_path):
    store, repository = make(tmp_path / "home")
    first = repository.start_run("training")
    second = repository.start_run("monitoring")
    repository.write(first, [batch(["a", "b", "c"], 1, counts=[2, 0, 1], value=1.5)])
    repository.write(first, [batch(["b"], 2, counts=[3], value=2.5)])
    repository.write(first, [batch(["a", "b"], 3, epoch=None, dataset="val")])
    repository.write(second, [batch(["é"], 4, labelled=False)])
    yield store, repository, tmp_path
    store.close()


def everything(repository, scope=None):
    """All that can be read, by key, so that the order of chunks does not matter."""
    found = {}
    for part in repository.records(scope or Scope()).parts():
        keys = zip(
            part.column("input/run").to_pylist(),
            part.column("input/n_epoch").to_pylist(),
            part.column("input/dataset_type").to_pylist(),
            part.ids().to_pylist(),
            strict=True,
        )
        fields = [n for n in part.names() if n.startswith(("input/", "label/"))]
        columns = {name: list(part.column(name).tolist()) for name in fields}
        sides = {}
        for side in ("predicted", "actual"):
            counts = part.counts(side)
            bounds = np.concatenate([[0], np.cumsum(counts)])
            own = [n for n in part.names() if n.startswith(side)]
            values = {n: part.column(n) for n in own if side in ("predicted",) or part.labelled}
            sides[side] = (bounds, values)
        for k, key in enumerate(keys):
            row = {name: values[k] for name, values in columns.items()}
            for bounds, values in sides.values():
                for name, array in values.items():
                    some = array[bounds[k] : bounds[k + 1]]
                    row[name] = (str(some.dtype), some.shape, some.tolist())
            found[key] = row
    return found


def test_an_export_comes_back_elsewhere(full):
    _, repository, folder = full
    path = export_archive(repository, Scope(), folder)
    assert path == folder / "my_net_β_v_1_extracted.zip"
    with Store(folder / "other") as other:
        done = import_archive(other, path)
        assert (done.version, done.task, done.inputs, done.skipped) == (VERSION, "detection", 6, 0)
        there = other.open(VERSION)
        assert everything(there) == everything(repository)
        assert there.architecture_hash == repository.architecture_hash
        assert there.fields == repository.fields
        assert there.layers == {"head": "0"}
        assert [r.purpose for r in there.runs()] == [r.purpose for r in repository.runs()]
        assert there.latest_epoch() is None
        again = import_archive(other, path)
        assert (again.inputs, again.skipped) == (0, 6)
        assert there.records().replaced == 0
        assert other.verify() == []


def test_the_settings_of_a_run_come_along_where_they_are_known(tmp_path):
    store, repository = make(tmp_path / "home")
    settings = {"score_thresh": 0.5, "iou_thresh": None, "most": 100}
    repository.write(repository.start_run("training", settings=settings), [batch(["a"])])
    path = export_archive(repository, Scope(), tmp_path)

    def forget(manifest):
        del manifest["runs"][0]["settings"]

    for name, archived, expected in (
        ("new", path, settings),
        ("old", rewritten(path, forget), {}),
    ):
        with Store(tmp_path / name) as other:
            import_archive(other, archived)
            assert other.open(VERSION).runs()[0].settings == expected
    repository.close()
    store.close()


def test_importing_where_it_came_from_changes_nothing(full):
    store, repository, folder = full
    path = export_archive(repository, Scope(), folder)
    before = everything(repository)
    repository.start_run("training")
    assert import_archive(store, path).inputs == 0
    assert everything(repository) == before


def test_newer_records_stay_and_older_ones_are_replaced(tmp_path):
    store, repository = make(tmp_path / "a")
    run = repository.start_run("training")
    repository.write(run, [batch(["a", "b"], 5, value=1)])
    path = export_archive(repository, Scope(), tmp_path / "old.zip")
    repository.write(run, [batch(["b", "c"], 9, value=2)])
    new = export_archive(repository, Scope(), tmp_path / "new.zip")
    assert import_archive(store, path).inputs == 0
    with Store(tmp_path / "b") as other:
        import_archive(other, path)
        done = import_archive(other, new)
        assert (done.inputs, done.skipped) == (2, 1)
        assert everything(other.open(VERSION)) == everything(repository)
    store.close()


def test_a_scope_is_exported(full):
    _, repository, folder = full
    path = export_archive(repository, Scope(n_epoch=None), folder / "one.zip")
    with Store(folder / "other") as other:
        assert import_archive(other, path).inputs == 2
        assert everything(other.open(VERSION)) == everything(repository, Scope(n_epoch=None))


def test_nothing_to_export_is_an_empty_archive(tmp_path):
    store, repository = make(tmp_path / "home")
    path = export_archive(repository, Scope(), tmp_path / "empty.zip")
    with Store(tmp_path / "other") as other:
        assert import_archive(other, path).inputs == 0
        assert other.open(VERSION).epochs() == []
    store.close()


def test_other_tools_read_the_tables(full):
    _, repository, folder = full
    path = export_archive(repository, Scope(n_epoch=0), folder)
    with zipfile.ZipFile(path) as file:
        file.extractall(folder / "out")
        manifest = json.loads(file.read("manifest.json"))
    assert manifest["rows"] == {"input": 4, "extracted_feature": 7, "ground_truth": 3}
    found = duckdb.sql(
        "SELECT input_id, camera, n_epoch, count(*), min(box[1]), epoch_ns(min(recorded_at)) "
        f"FROM read_parquet('{folder}/out/extracted_feature/*.parquet', union_by_name=true) "
        "GROUP BY ALL ORDER BY input_id"
    ).fetchall()
    assert found == [
        ("a", None, 0, 2, 1.5, 1),
        ("b", None, 0, 3, 2.5, 2),
        ("c", "c", 0, 1, 1.5, 1),
        ("é", None, 0, 1, 0.0, 4),
    ]
    names = pq.read_schema(folder / "out" / "extracted_feature" / "part-0000.parquet").names
    assert {"run", "dataset_type", "taken", "score", "feature.head", "visible"} <= set(names)
    truth = pq.read_table(folder / "out" / "ground_truth" / "part-0000.parquet")
    assert set(truth["by"].to_pylist()) == {"a", "b", "c"}


def test_a_field_that_is_called_like_a_column_keeps_apart(tmp_path):
    with Store(tmp_path) as store:
        repository = store.register(
            VERSION,
            task="t",
            architecture=["a"],
            layers={},
            fields=[{"name": "score", "type": "str"}],
        )
        run = repository.start_run("training")
        units = Units({"score": torch.tensor([0.5])})
        repository.write(run, [Batch(["a"], "t", 0, 1, units, None, {"score": ["x"]})])
        path = export_archive(repository, Scope(), tmp_path)
        with zipfile.ZipFile(path) as file:
            table = pq.read_table(io.BytesIO(file.read("extracted_feature/part-0000.parquet")))
        assert table["score"].to_pylist() == [0.5]
        assert table["input/score"].to_pylist() == ["x"]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_round_trip(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("a")
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive_module, "PART_BYTES", 1)
        store, repository = make(folder / "home")
        for _ in range(data.draw(st.integers(1, 2))):
            run = repository.start_run(data.draw(st.sampled_from(["training", "data_filter"])))
            for at in range(data.draw(st.integers(0, 4))):
                ids = data.draw(st.lists(text, min_size=1, max_size=4))
                counts = data.draw(
                    st.none() | st.lists(st.integers(0, 2), min_size=len(ids), max_size=len(ids))
                )
                epoch = data.draw(st.sampled_from([None, 3]))
                repository.write(
                    run, [batch(ids, at, epoch, counts=counts, labelled=data.draw(st.booleans()))]
                )
        path = export_archive(repository, Scope(), folder)
        with Store(folder / "other") as other:
            import_archive(other, path)
            assert everything(other.open(VERSION)) == everything(repository)
        store.close()


# Where an export goes


def test_paths_of_an_export(full, monkeypatch):
    _, repository, folder = full
    monkeypatch.chdir(folder)
    name = "my_net_β_v_1_extracted.zip"
    assert export_archive(repository, Scope()) == folder / name
    assert export_archive(repository, Scope(), "x.zip") == folder / "x.zip"
    (folder / "sub").mkdir()
    assert export_archive(repository, Scope(), "sub") == folder / "sub" / name
    (folder / "sub.zip").mkdir()
    assert export_archive(repository, Scope(), folder / "sub.zip") == folder / "sub.zip" / name
    for missing in ("none/x.zip", "none"):
        with pytest.raises(InputError, match="there is no folder"):
            export_archive(repository, Scope(), missing)
    assert not list(folder.rglob("*.tmp"))


def test_an_export_that_fails_leaves_nothing(full, monkeypatch):
    _, repository, folder = full
    path = folder / "x.zip"
    path.write_text("old")

    def refuse(*_args, **_more):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", refuse)
        with pytest.raises(StoreError, match=r"cannot write .*x.zip: No space left"):
            export_archive(repository, Scope(), path)
    assert path.read_text() == "old"
    assert not list(folder.glob(".*tmp"))
    with pytest.raises(StoreError, match="cannot write"):
        export_archive(repository, Scope(), "/proc/x.zip")


def test_damage_in_the_store_is_not_exported(full):
    store, repository, folder = full
    (segment,) = (store.home / "segments").iterdir()
    data = bytearray(segment.read_bytes())
    data[:64] = b"\xff" * 64
    segment.write_bytes(data)
    with pytest.raises(StoreError, match="have changed on disk"):
        export_archive(repository, Scope(), folder / "x.zip")
    assert not (folder / "x.zip").exists()


# What an import refuses


@pytest.fixture
def archive(full):
    _, repository, folder = full
    return export_archive(repository, Scope(), folder / "good.zip")


@pytest.fixture
def target(tmp_path):
    with Store(tmp_path / "target") as store:
        yield store
        assert store.versions() == []  # nothing may be written by an import that fails


def rewritten(path, change=None, replace=None, extra=(), compression=zipfile.ZIP_STORED):
    """Copy an archive with a changed manifest or members, hashes made to fit."""
    out = path.with_name("bad.zip")
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    manifest = json.loads(members.pop("manifest.json"))
    for name, data in (replace or {}).items():
        members[name] = data
        manifest["members"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    if change:
        change(manifest)
    with zipfile.ZipFile(out, "w", compression) as new:
        for name, data in [*members.items(), *extra]:
            new.writestr(name, data)
        new.writestr("manifest.json", json.dumps(manifest))
    return out


def parquet(table):
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


FIRST = "extracted_feature/part-0000.parquet"


def test_a_file_that_is_no_export(target, tmp_path):
    path = tmp_path / "x.zip"
    with pytest.raises(InputError, match="there is no file"):
        import_archive(target, path)
    with pytest.raises(InputError, match="there is no file"):
        import_archive(target, tmp_path)
    path.write_bytes(b"hello")
    with pytest.raises(ArchiveError, match="not a ZIP file"):
        import_archive(target, path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.txt", "a")
    with pytest.raises(ArchiveError, match=r"without manifest.json"):
        import_archive(target, path)
    for content, what in [
        ("{", "not JSON"),
        ("[]", "not an export"),
        ('{"kind": "other"}', "not an export"),
        (json.dumps({"kind": inspection.KIND, "format": 1}), "schema_number: Field required"),
    ]:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("manifest.json", content)
        with pytest.raises(ArchiveError, match=what):
            import_archive(target, path)


def test_a_truncated_file(target, archive):
    data = archive.read_bytes()
    for size in (len(data) - 10, len(data) // 2, 10, 0):
        archive.write_bytes(data[:size])
        with pytest.raises(ArchiveError, match="not a ZIP file, or it is cut short"):
            import_archive(target, archive)


def test_any_flipped_byte_is_noticed(target, archive):
    data = archive.read_bytes()
    start = data.index(b"PAR1")
    for at in range(start, len(data) // 2, 997):
        changed = bytearray(data)
        changed[at] ^= 0xFF
        archive.write_bytes(changed)
        with pytest.raises((ArchiveError, SchemaError)):
            import_archive(target, archive)


def test_a_future_format(target, archive):
    bad = rewritten(archive, lambda manifest: manifest.update(format=2))
    with pytest.raises(SchemaError, match="format 2.*upgrade"):
        import_archive(target, bad)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda m: m["members"].pop(FIRST), "does not fit its parts"),
        (lambda m: m["parts"].pop(), "does not fit its parts|does not belong"),
        (lambda m: m["members"][FIRST].update(sha256="0"), "has changed since"),
        (lambda m: m["members"][FIRST].update(bytes=5), "bytes instead of 5"),
        (lambda m: m["members"][FIRST].update(bytes=10**15), "claims to hold"),
        (lambda m: m["members"][FIRST].update(bytes=-1), "greater than or equal to 0"),
        (lambda m: m["parts"][0]["rows"].update(extracted_feature=3), "rows instead of 3"),
        (lambda m: m["parts"][0]["columns"][0].__setitem__(1, "<f8"), "expected double"),
        (lambda m: m["parts"][0]["columns"][0].__setitem__(1, "nonsense"), "cannot be read"),
        (lambda m: m["parts"][0]["columns"][0].__setitem__(1, "|O"), "type |O"),
        (lambda m: m["parts"][0]["columns"][0].__setitem__(2, [-5]), "damaged"),
        (lambda m: m["parts"][0]["columns"][0].__setitem__(0, "input/id"), "not a column"),
        (lambda m: m["parts"][0]["columns"][1].__setitem__(2, [10**12]), "would take|too large"),
        (lambda m: m["parts"][0].update(ragged=[]), "one row an input"),
        (lambda m: m["parts"][0]["members"].pop("input"), "damaged"),
        (lambda m: m["runs"].pop(0), "not in its manifest"),
        (lambda m: m["runs"][0].update(purpose="fun"), "runs.0.purpose"),
        (lambda m: m["runs"][0].update(settings={"x": float("nan")}), "runs.0.settings"),
        (lambda m: m.update(fields=[{"name": "x"}]), "declared field is malformed"),
        (lambda m: m.update(fields=[{"name": "x", "type": "f"}]), "declared field is malformed"),
        (lambda m: m.update(architecture=["x"]), "does not fit its hash"),
        (lambda m: m.update(model_name=""), "model_name"),
        (lambda m: m.update(rows="x"), "rows"),
    ],
)
def test_a_manifest_that_does_not_fit(target, archive, change, what):
    with pytest.raises(ArchiveError, match=what):
        import_archive(target, rewritten(archive, change))


def test_names_that_lead_elsewhere(target, archive, tmp_path):
    for name in ("../evil.parquet", "/etc/evil", "input/part-0000.parquet/../../x"):
        with pytest.raises(ArchiveError, match="does not belong in it"):
            import_archive(target, rewritten(archive, extra=[(name, b"x")]))

        def change(manifest, name=name):
            part = manifest["parts"][0]
            manifest["members"][name] = manifest["members"].pop(part["members"]["input"])
            part["members"]["input"] = name

        with zipfile.ZipFile(archive) as old:
            content = old.read("input/part-0000.parquet")
        with pytest.raises(ArchiveError, match=r"does not belong in it|not the name of a table"):
            import_archive(target, rewritten(archive, change, extra=[(name, content)]))
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_a_name_that_occurs_twice(target, archive):
    bad = rewritten(archive, extra=[(FIRST, b"x")])
    with pytest.raises(ArchiveError, match="same name"):
        import_archive(target, bad)


def test_a_missing_table(target, archive):
    bad = archive.with_name("missing.zip")
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(bad, "w") as new:
        for name in old.namelist():
            if name != FIRST:
                new.writestr(name, old.read(name))
    with pytest.raises(ArchiveError, match=f"{FIRST} is missing"):
        import_archive(target, bad)


def test_a_table_that_is_no_parquet_or_another_one(target, archive):
    for data, what in [
        (b"PAR1 no", "cannot be read"),
        (parquet(pa.table({"x": [1, 2, 3]})), "cannot be read"),
    ]:
        with pytest.raises(ArchiveError, match=what):
            import_archive(
                target,
                rewritten(
                    archive,
                    lambda m: m["parts"][0]["rows"].update(extracted_feature=3),
                    {FIRST: data},
                ),
            )


def test_a_bomb_of_zeros(target, archive):
    def change(manifest):
        manifest["members"][FIRST]["bytes"] = 50 << 20

    bad = rewritten(archive, change, {FIRST: bytes(50 << 20)}, compression=zipfile.ZIP_DEFLATED)
    assert bad.stat().st_size < 1 << 20
    with pytest.raises(ArchiveError, match="claims to hold"):
        import_archive(target, bad)


def test_a_bomb_of_text(target, archive, monkeypatch):
    """A short dictionary that spells out to more than a part may hold."""
    monkeypatch.setattr(inspection, "PART_BYTES", 1 << 20)
    with zipfile.ZipFile(archive) as old:
        table = pq.read_table(io.BytesIO(old.read("input/part-0000.parquet")))
    rows = 1000
    content = {name: table[name].take(pa.array([0] * rows)) for name in table.column_names}
    content["input/camera"] = pa.array(["x" * 10_000] * rows)
    content["predicted/#counts"] = content["actual/#counts"] = pa.array([0] * rows, pa.int32())
    data = parquet(pa.table(content))
    assert len(data) < 100_000

    def change(manifest):
        manifest["parts"][0]["rows"]["input"] = rows

    with pytest.raises(ArchiveError, match="would take 10,"):
        import_archive(target, rewritten(archive, change, {"input/part-0000.parquet": data}))


def test_no_room_to_unpack(target, archive, monkeypatch):
    monkeypatch.setattr(inspection.shutil, "disk_usage", lambda _path: os.statvfs_result and Free)
    with pytest.raises(StoreError, match="0 are free"):
        import_archive(target, archive)


class Free:
    free = 0


def test_another_architecture_under_the_same_name(archive, tmp_path):
    with Store(tmp_path / "target") as store:
        store.register(VERSION, task="detection", architecture=["z"], layers={})
        with pytest.raises(ArchitectureMismatchError, match="entry 0"):
            import_archive(store, archive)
        assert store.versions()[0].records == 0


def test_a_packed_again_archive_is_fine(archive, tmp_path):
    again = rewritten(archive, compression=zipfile.ZIP_DEFLATED, extra=[("input/", b"")])
    with Store(tmp_path / "target") as store:
        assert import_archive(store, again).inputs == 6


def test_a_part_at_a_time_is_in_memory(full, monkeypatch):
    """Pieces are as small as flushes, however many there are."""
    _, repository, folder = full
    monkeypatch.setattr(archive_module, "PART_BYTES", 1)
    path = export_archive(repository, Scope(), Path(folder) / "parts.zip")
    with zipfile.ZipFile(path) as file:
        assert sum(name.startswith("input/") for name in file.namelist()) == 4
