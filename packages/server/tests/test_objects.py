import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlmodel import select

from ml_debugger.core.errors import InputError, StoreError
from ml_debugger.core.evaluation.method import evaluate
from ml_debugger.core.records import ModelVersion
from ml_debugger.core.service.client import MOST_BYTES
from ml_debugger.core.store import Repository, segments
from ml_debugger.core.store.parts import Part
from ml_debugger.core.store.tables import SegmentRow
from ml_debugger.server import objects as module
from ml_debugger.server import picking
from ml_debugger.server.api import results
from ml_debugger.server.api.models import PickOut
from ml_debugger.server.database import Database
from ml_debugger.server.objects import Objects
from ml_debugger.server.projects import ProjectStore
from ml_debugger.server.settings import Settings
from ml_debugger.testing import RepositoryContract

from .machines import Cut
from .seeded import VERSION, compressed, evaluated, migrate, record, seeded
from .serving import Server

NUMBERS = count()
PLENTY = 1 << 30


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return record(tmp_path_factory.mktemp("sdk"))


@pytest.fixture(scope="module")
def bucket(s3):
    return s3.new_bucket()


def impatient(options):
    """Have the client of an object store give up soon."""
    return {**options, "config_kwargs": {"retries": {"max_attempts": 1}, "connect_timeout": 5}}


def anywhere(s3):
    """Return options that name no region: s3fs makes no bucket in the one of the tests."""
    return {**s3.storage_options, "client_kwargs": {"endpoint_url": s3.endpoint}}


class Opener:
    """Opens stores over one bucket, and closes them; a folder is a process's."""

    def __init__(self, s3, bucket, recorded):
        self.objects = Objects(bucket, impatient(s3.storage_options))
        self.recorded = recorded
        self.opened = []
        self.name = f"p{next(NUMBERS)}"

    def store(self, folder, catalogue=None, cache_bytes=PLENTY, objects=None):
        given = {"objects": objects or self.objects, "name": self.name, "cache_bytes": cache_bytes}
        self.opened.append(ProjectStore(folder, catalogue=catalogue, **given))
        return self.opened[-1]

    def register(self, store):
        given = {k: v for k, v in self.recorded.version.items() if not k.endswith("_name")}
        return store.register(VERSION, **given)

    def filled(self, folder, parts=6, **more):
        """Open a store and put chunks into it, an object for each."""
        store = self.store(folder, **more)
        repository = self.register(store)
        for number in range(parts):
            repository.adopt(numbered(self.recorded.part, number))
        return store


@pytest.fixture
def opener(s3, bucket, recorded):
    one = Opener(s3, bucket, recorded)
    yield one
    for store in one.opened:
        store.close()


def numbered(part, number):
    """Return a part as one of other chunks, in a data set of its own."""
    chunks = [
        one.model_copy(
            update={"origin": f"{number:032x}:{k}:{'0' * 16}", "dataset_type": f"d{number}"}
        )
        for k, one in enumerate(part.header.chunks)
    ]
    return Part(part.header.model_copy(update={"chunks": chunks}), part.bodies)


def everything(store):
    """Read every value of a version; return a hash."""
    records = store.open(VERSION).records()
    found = hashlib.sha256()
    for name in sorted(records.names()):
        column = records.column(name)
        found.update(
            repr(column.tolist() if hasattr(column, "tolist") else column.to_pylist()).encode()
        )
    return found.hexdigest()


def cached(store):
    return sorted((store.home / "segments").glob("*.seg"))


def listed(opener, what="segments"):
    found = opener.objects._fs.find(f"{opener.objects.root}/{opener.name}/{what}")
    return {one.rpartition("/")[2] for one in found}


class ObjectsContract(RepositoryContract):
    __test__ = False

    @pytest.fixture(autouse=True)
    def machines(self, s3, bucket, request):
        self.s3, self.bucket, self.opened, self.projects = s3, bucket, [], {}
        self.url = request.getfixturevalue("url") if self.postgres else None
        yield
        for one in self.opened:
            one.close()

    def open(self, folder: Path) -> Repository:
        project = self.projects.setdefault(folder, f"{next(NUMBERS):032x}")
        database = Database(self.url, folder)
        database.make_project(project)
        store = ProjectStore(
            folder / project,
            catalogue=database.catalogue(project),
            objects=Objects(f"{self.bucket}/contract", self.s3.storage_options),
            name=project,
            cache_bytes=0,
        )
        self.opened += [store, database]
        return store.register(
            ModelVersion("net", "v1"),
            task="classification",
            architecture=["Linear"],
            layers={"stem": "0"},
            fields=self.fields,
            label_fields=self.label_fields,
        )


class TestPostgresAndObjects(ObjectsContract):
    __test__ = True
    postgres = True


class TestSqliteAndObjects(ObjectsContract):
    __test__ = True
    postgres = False


@pytest.fixture(scope="module")
def url(postgres):
    found = postgres.new_database()
    migrate(Settings(database=found))
    return found


@pytest.mark.parametrize("wrong", ["/tmp/x", "file:///tmp/x", "bucket", "nothing://x", ""])
def test_what_is_no_object_store_is_refused(wrong):
    with pytest.raises(InputError, match="objects"):
        Objects(wrong)


# The cache


def test_a_client_of_s3_gives_up_soon_unless_it_is_told_otherwise(s3, bucket):
    mine = {**s3.storage_options, "config_kwargs": {"read_timeout": 7, "retries": {}}}
    assert Objects(bucket, s3.storage_options)._fs.config_kwargs == module.S3_CONFIG
    told = Objects(bucket, mine)._fs.config_kwargs
    assert told == {"connect_timeout": 5, "read_timeout": 7, "retries": {}}
    Objects("memory://place", {})  # which takes no such options


def test_the_cache_is_bounded(opener, tmp_path):
    store = opener.filled(tmp_path / "a")
    want = everything(store)
    sizes = [one.stat().st_size for one in cached(store)]
    assert len(sizes) == 6
    small = opener.store(tmp_path / "a", cache_bytes=2 * max(sizes))
    for one in cached(store):
        one.unlink()
    for _ in range(2):
        assert everything(small) == want
        assert 1 <= len(cached(small)) <= 2
        # what was deleted is not kept open either: it would take as much space
        files = small._segments._files
        assert segments._opened.names(files._number) <= {one.stem for one in cached(small)}


def test_many_read_through_a_cache_for_one(opener, tmp_path):
    store = opener.filled(tmp_path / "a", parts=8)
    want = everything(store)
    # two stores of one folder, as a server and its worker are
    small = [opener.store(tmp_path / "b", store._catalogue, cache_bytes=0) for _ in range(2)]
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda k: everything(small[k % 2]), range(32))) == {want}
    assert len(cached(small[0])) <= 3
    assert not list((small[0].home / "segments").glob(".*"))
    assert all(not one._segments._fetching and not one._segments._needs for one in small)


def test_a_copy_that_was_cut_short_is_fetched_again(opener, tmp_path):
    store = opener.filled(tmp_path / "a", parts=1)
    want = everything(store)
    (file,) = cached(store)
    whole = file.read_bytes()
    for size in (0, 1, len(whole) // 2):
        os.truncate(file, size)
        fresh = opener.store(tmp_path / "a")
        assert everything(fresh) == want
        assert file.read_bytes() == whole


def test_what_is_wrong_in_the_object_store_is_found(opener, tmp_path):
    store = opener.filled(tmp_path / "a", parts=2)
    everything(store)
    assert store.verify() == []
    (name, *_) = sorted(listed(opener))
    place = f"{opener.objects.root}/{opener.name}/segments/{name}"
    content = opener.objects._fs.cat(place)
    opener.objects._fs.pipe(place, compressed(b"x" * 500_000))
    assert len(store.verify()) > 0  # which looks past the cache
    opener.objects._fs.rm(place)
    assert any("missing" in one for one in store.verify())
    opener.objects._fs.pipe(place, content)
    assert store.verify() == []


def test_half_a_fetch_leaves_nothing(s3, opener, tmp_path):
    store = opener.filled(tmp_path / "a", parts=1)
    want = everything(store)
    with Cut(s3.port) as wire:
        far = Objects(
            opener.objects.url, impatient(s3.storage_options_at(wire.through(s3.endpoint)))
        )
        other = opener.store(tmp_path / "b", store._catalogue, objects=far)
        wire.refuse()
        with pytest.raises(StoreError, match="cannot read s3://.*try again"):
            everything(other)
        assert not list((other.home / "segments").iterdir())
        wire.restore()
        wire.cut(1_000, answers=True)
        try:
            assert everything(other) == want  # fsspec has asked again
        except StoreError:
            assert not list((other.home / "segments").iterdir())
        assert wire.cuts == 1
        assert everything(other) == want


# What nobody needs


def test_only_what_is_dead_is_collected(opener, tmp_path, monkeypatch):
    store = opener.filled(tmp_path / "a", parts=4)
    want_of = {one: store.open(VERSION).records() for one in ("all",)}
    assert want_of["all"].inputs > 0
    before = listed(opener)
    assert len(before) == 4
    assert store.compact() == 0
    with pytest.raises(RuntimeError), store._segments.appended([memoryview(b"never entered")]):
        raise RuntimeError
    assert len(listed(opener)) == 5
    assert store.compact() == 0  # it may be about to be entered
    # a part whose chunks are all here leaves no object
    assert store.open(VERSION).adopt(numbered(opener.recorded.part, 0)) == 0
    assert len(listed(opener)) == 5
    everything(store)
    draft = store.home / "segments" / ".left"
    draft.touch()
    origins = [one.origin for one in numbered(opener.recorded.part, 1).header.chunks]
    assert store.open(VERSION).forget(origins) == len(origins)
    assert store.compact() == 1
    assert len(listed(opener)) == 4
    assert len(cached(store)) == 3
    assert draft.exists()
    monkeypatch.setattr(module, "ORPHAN_SECONDS", -10.0)
    assert store.compact() == 1
    assert not draft.exists()
    assert listed(opener) < before
    assert len(listed(opener)) == 3
    assert store.verify() == []


def test_any_number_is_collected_at_once(opener, url, tmp_path, monkeypatch):
    """More than PostgreSQL takes values in one statement."""
    database, project = Database(url, tmp_path), f"{next(NUMBERS):032x}"
    database.make_project(project)
    catalogue = database.catalogue(project)
    objects, removed = Objects("memory://many"), []
    store = opener.filled(tmp_path / "a", 1, catalogue=catalogue, objects=objects)
    want = everything(store)
    with catalogue.writing() as session:
        (living,) = session.exec(select(SegmentRow.name))
        dead = "INSERT INTO segment (name) SELECT md5(n::text) FROM generate_series(1, 65536) AS n"
        session.execute(text(dead))
    monkeypatch.setattr(objects, "remove", removed.append)  # one by one it takes seconds
    assert store.compact() == len(removed) == 65536
    with catalogue.reading() as session:
        assert list(session.exec(select(SegmentRow.name))) == [living]
    assert everything(store) == want
    database.close()


# When it refuses


def test_a_bucket_that_is_not_there_is_named(s3, tmp_path):
    objects = Objects(f"s3://bucket-to-be-{next(NUMBERS)}/deep/down", anywhere(s3))
    (tmp_path / "file").touch()
    for act in (
        objects.ping,
        lambda: objects.write("a", [memoryview(b"a")]),
        lambda: objects.put_folder(tmp_path, "folder"),
        lambda: objects.put_tree(tmp_path),
    ):
        with pytest.raises(StoreError, match="a bucket.* is not there; `ml-debugger service mig"):
            act()
    objects.remove("a")
    assert (objects.listed(), objects.ages("a")) == ([], {})
    objects.make()
    objects.ping()  # nothing lies under its prefix yet
    with pytest.raises(FileNotFoundError):
        objects.fetch("a", tmp_path / "a")
    objects.write("a", [memoryview(b"a")])
    objects.ping()
    Objects("memory://place").ping()


def test_a_service_whose_bucket_is_gone_is_not_ready(s3, recorded, tmp_path):
    settings = Settings(
        data=tmp_path / "data", objects=s3.new_bucket(), objects_options=anywhere(s3)
    )
    digest, content = numbered(recorded.part, 1).pack()
    with seeded(settings, recorded) as found:
        objects = found.service.projects.objects
        objects._fs.rm(objects.root, recursive=True)
        assert found.client.get("/ready").status_code == 503
        assert found.put(compressed(content), digest).status_code == 503
        objects.make()
        assert found.client.get("/ready").status_code == 200
        assert found.put(compressed(content), digest).json()["records"] > 0


def test_a_service_on_sqlite_makes_its_bucket(s3, tmp_path):
    url = f"s3://bucket-to-be-{next(NUMBERS)}/deep"
    given = {"objects": url, "objects_options": anywhere(s3)}
    with Server(Settings(data=tmp_path / "data", **given)):
        Objects(url, anywhere(s3)).write("a", [memoryview(b"a")])


def test_a_service_starts_while_its_object_store_is_away(s3, tmp_path):
    with Cut(s3.port) as wire:
        wire.refuse()
        options = impatient(s3.storage_options_at(wire.through(s3.endpoint)))
        given = {"objects": "s3://some-bucket/deep", "objects_options": options}
        with Server(Settings(data=tmp_path / "data", **given)) as server:
            assert "cannot make s3://some-bucket/deep" in server.log
            assert "ml-debugger service migrate" in server.log


@pytest.fixture(params=["sqlite", "postgres"])
def apart(request, s3, recorded, tmp_path):
    """A service whose object store is behind a wire that can be cut."""
    given = {"data": tmp_path / "data", "objects": s3.new_bucket()}
    if request.param == "postgres":
        given["database"] = request.getfixturevalue("postgres").new_database()
    with Cut(s3.port) as wire:
        options = impatient(s3.storage_options_at(wire.through(s3.endpoint)))
        with seeded(Settings(**given, objects_options=options), recorded) as found:
            yield found, wire


def test_what_cannot_be_stored_is_not_entered(apart, recorded):
    found, wire = apart
    store = found.service.projects.store(found.ids["project_id"])
    number = evaluated(found)
    digest, content = numbered(recorded.part, 1).pack()
    wire.refuse()
    wire.cut()
    before = store.versions()
    answer = found.put(compressed(content), digest)
    assert answer.status_code == 503
    assert answer.headers["Retry-After"].isdigit()
    assert "s3" not in answer.text
    assert store.versions() == before
    assert list((found.service.settings.data / "incoming").iterdir()) == []
    assert found.client.get("/ready").status_code == 503
    assert found.client.get("/health").status_code == 200
    # what needs no object is answered
    assert found.client.get(f"{found.project}/versions", headers=found.key).status_code == 200
    with pytest.raises(StoreError):
        evaluate(store, VERSION, result_name="second")
    assert [one.number for one in store.results()] == [number]
    wire.restore()
    assert found.client.get("/ready").status_code == 200
    assert found.put(compressed(content), digest).json()["records"] > 0
    assert evaluate(store, VERSION, result_name="second").result_name == "second"


def test_what_cannot_be_deleted_now_nobody_sees_and_goes_later(apart, recorded):
    found, wire = apart
    objects = found.service.projects.objects
    assert objects._fs.find(objects.root)
    wire.refuse()
    wire.cut()
    assert found.client.delete(found.project, headers=found.operator).status_code == 204
    assert found.client.get(found.project, headers=found.operator).status_code == 404
    wire.restore()
    found.service.projects.sweep()
    assert objects._fs.find(objects.root)  # somebody might be at it
    for mark in (found.service.settings.data / "unfinished").iterdir():
        os.utime(mark, (time.time() - 2 * module.ORPHAN_SECONDS,) * 2)
    found.service.projects.sweep()
    assert objects._fs.find(objects.root) == []
    assert list((found.service.settings.data / "unfinished").iterdir()) == []


# Results


FETCH = """
import hashlib, json, sys
from pathlib import Path
from ml_debugger.server.service import Service
from ml_debugger.server.settings import Settings
settings, project, name = json.loads(sys.stdin.read())
with Service(Settings(**settings)) as service:
    folder = service.projects.store(project).result_folder(name)
    for one in sorted(folder.iterdir()):
        print(one.name, hashlib.sha256(one.read_bytes()).hexdigest())
"""


def hashes(folder):
    return {one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in folder.iterdir()}


def test_results_are_found_by_processes_elsewhere(postgres, s3, recorded, tmp_path):
    given = {
        "data": tmp_path / "data",
        "database": postgres.new_database(),
        "objects": s3.new_bucket() + "/deep/down",
        "objects_options": s3.storage_options,
    }
    with seeded(Settings(**given), recorded) as found:
        number = evaluated(found)
        store = found.service.projects.store(found.ids["project_id"])
        name = store.result_numbered(number).name
        elsewhere = {**given, "data": str(tmp_path / "elsewhere")}
        said = subprocess.run(
            [sys.executable, "-c", FETCH],
            input=json.dumps([elsewhere, found.ids["project_id"], name]),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        theirs = dict(line.split() for line in said.splitlines())
        assert theirs == hashes(store.result_folder(name))
        assert {"result.json", "units.parquet"} <= theirs.keys()


def test_a_result_made_anew_is_not_served_as_it_was(opener, tmp_path):
    here = opener.filled(tmp_path / "a", parts=2)
    there = opener.store(tmp_path / "b", here._catalogue)
    evaluate(here, VERSION, result_name="r")
    first = hashes(there.result_folder("r"))
    assert first == hashes(here.result_folder("r"))
    here.delete_result("r")
    assert listed(opener, "results") == set()
    evaluate(here, VERSION, result_name="r", options={"seed": 7})
    second = hashes(here.result_folder("r"))
    assert second != first
    assert hashes(there.result_folder("r")) == second
    # several fetch at once
    other = [opener.store(tmp_path / "c", here._catalogue) for _ in range(2)]
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda k: hashes(other[k % 2].result_folder("r")), range(8)))
    assert all(one == second for one in folders)
    assert [one.name for one in (other[0].home / "results").iterdir()] == [
        here.result_folder("r").name
    ]


QUERY = {"n_data": 5, "strategy": "high_error_proba", "dataset_type": "val", "n_epoch": 1}


def test_a_query_of_a_result_without_its_files(apart, monkeypatch):
    found, _ = apart
    number = evaluated(found)
    store = found.service.projects.store(found.ids["project_id"])
    path = f"{found.project}/results/{number}"

    def query():
        return found.client.post(f"{path}/query", json=QUERY, headers=found.key)

    shutil.rmtree(store.result_folder(store.result_numbered(number).name))
    found.service.projects.objects.remove(f"{store._name}/results")
    assert query().status_code == 503

    def deleted_meanwhile(*_):
        assert found.client.delete(path, headers=found.operator).status_code == 204
        raise FileNotFoundError

    monkeypatch.setattr(results, "pick", deleted_meanwhile)
    assert query().status_code == 404


def test_clients_can_read_what_a_query_answers(recorded, tmp_path, monkeypatch):
    around = len('{"picks":[],"job":null,"inputs":10000000}')
    usual = PickOut(input_id="0" * 36)  # as a UUID is
    size = len(usual.model_dump_json()) + 1
    assert around + picking.MOST_PICKS * size < MOST_BYTES
    told = {"rank_value": -1 / 3 * 1e-300, "estimated_code": "c" * 100, "reason": "r" * 1000}
    explained = PickOut(input_id="0" * 4096, zone="z" * 100, **told)
    size = len(explained.model_dump_json()) + 1
    assert around + picking.MOST_EXPLAINED * size < MOST_BYTES
    with seeded(Settings(data=tmp_path / "data"), recorded) as found:
        path = f"{found.project}/results/{evaluated(found)}/query"
        whole = found.client.post(path, json=QUERY, headers=found.key)
        assert len(whole.json()["picks"]) == 5
        assert whole.json()["job"] is None
        size = len(whole.content)
        monkeypatch.setattr(results, "MOST_BYTES", size)  # as if ids were long
        assert found.client.post(path, json=QUERY, headers=found.key).content == whole.content
        answer = found.client.post(path, json={**QUERY, "n_data": 6}, headers=found.key)
        assert answer.status_code == 422
        assert f"clients read {size} at most; ask for fewer" in answer.json()["detail"]
