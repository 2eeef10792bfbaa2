"""What a process has open of many projects, and what two of its threads do to one of them."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlmodel import select
from starlette.testclient import TestClient

from ml_debugger.core.errors import InputError, LicenseError, StoreError
from ml_debugger.core.evaluation import folder as files
from ml_debugger.core.locks import locked
from ml_debugger.core.store import Store
from ml_debugger.core.store.parts import Part
from ml_debugger.server import app, ingest, operations, picking, projects, quotas, retention
from ml_debugger.server.api import results
from ml_debugger.server.app import create_app
from ml_debugger.server.database import Database, namespace_of
from ml_debugger.server.people import first_login
from ml_debugger.server.problems import NoProjectError, Problem
from ml_debugger.server.service import Service
from ml_debugger.server.settings import Settings
from ml_debugger.server.tables import OrganizationRow, ProjectRow

from .seeded import VERSION, migrate, record, seeded
from .serving import until


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return record(tmp_path_factory.mktemp("recorded"))


@pytest.fixture
def service(tmp_path):
    with Service(Settings(data=tmp_path / "service")) as service:
        first_login(service)
        yield service


@pytest.fixture
def team(tmp_path, postgres, s3):
    settings = Settings(
        data=tmp_path / "service",
        database=postgres.new_database(),
        objects=f"{s3.new_bucket()}/records",
        objects_options=s3.storage_options,
    )
    migrate(settings)
    with Service(settings) as service:
        first_login(service)
        yield service


def organization(service):
    with service.database.reading() as session:
        return session.exec(select(OrganizationRow.id)).one()


def filled(service, recorded, name):
    """Make a project with one version; return its id."""
    made = service.projects.make(organization(service), name).id
    given = {k: v for k, v in recorded.version.items() if not k.endswith("_name")}
    repository = service.projects.store(made).register(VERSION, **given)
    repository.adopt(recorded.part)
    return made


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_what_is_open_does_not_grow_with_the_projects(service, recorded, monkeypatch):
    monkeypatch.setattr(projects, "OPEN_STORES", 3)
    made = [filled(service, recorded, f"p{k}") for k in range(4)]
    first = service.projects.store(made[0])
    records = first.repository_of(VERSION).records()
    before = open_files()
    made += [filled(service, recorded, f"q{k}") for k in range(12)]
    for one in made:
        store = service.projects.store(one)
        assert store.repository_of(VERSION).records().ids()
    assert open_files() <= before + 8
    assert len(service.projects._stores) == 3
    # whoever still used a store that was let go goes on
    assert records.column("predicted/score").shape == (120,)
    assert first.repository_of(VERSION).records().inputs == 120


def test_many_use_more_projects_than_stay_open(service, recorded, monkeypatch):
    monkeypatch.setattr(projects, "OPEN_STORES", 2)
    made = [filled(service, recorded, f"p{k}") for k in range(5)]

    def use(k):
        store = service.projects.store(made[k % 5])
        return store.repository_of(VERSION).records().column("predicted/score").sum()

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(use, range(60)))) == 1


def test_an_epoch_that_is_written_to_meanwhile_stays(service, recorded):
    store = service.projects.store(filled(service, recorded, "p"))
    repository = store.repository_of(VERSION)
    (epoch,) = repository.epochs()
    assert not store.drop_epoch(repository.number, epoch.n_epoch, epoch.last_written)
    assert repository.records().inputs == 120
    later = epoch.last_written + timedelta(seconds=1)
    assert not store.drop_epoch(repository.number, 7, later)  # there is none
    assert store.drop_epoch(repository.number, epoch.n_epoch, later)
    assert repository.records().inputs == 0


def test_only_few_are_explained_at_once(service, recorded, monkeypatch):
    monkeypatch.setattr(picking, "MOST_EXPLAINED", 100)
    store = service.projects.store(filled(service, recorded, "p"))
    at = datetime.now(UTC)
    given = {"method": "m", "n_epoch": 1, "options": {}, "created_at": at, "completed_at": at}
    store.add_result(name="r", version=VERSION, **given)
    query = {"n_data": 1000, "dataset_type": "val", "n_epoch": 1, "run": None}
    with pytest.raises(InputError, match=r"n_data is 1,000.* 100 inputs at most with explain; ask"):
        picking.pick(store, store.result("r"), {**query, "explain": True})
    assert picking.pick(store, store.result("r"), {**query, "explain": False}).inputs == 120


def test_two_parts_do_not_share_the_room_for_one(service, recorded, monkeypatch):
    made = [filled(service, recorded, name) for name in "ab"]
    mine = organization(service)
    for one in made:
        service.projects.store(one).repository_of(VERSION).delete_epoch(1)
    with service.database.writing() as session:
        row = session.get_one(OrganizationRow, mine)
        row.max_records = 120
        session.add(row)
    both = threading.Barrier(2)
    usage_of = quotas.usage_of

    def slow(*given):
        found = usage_of(*given)
        with suppress(threading.BrokenBarrierError):
            both.wait(0.5)  # the other has counted too, if it may
        return found

    monkeypatch.setattr(quotas, "usage_of", slow)

    def put(project):
        repository = service.projects.store(project).repository_of(VERSION)
        try:
            content = memoryview(recorded.part.pack()[1])
            return ingest._add(service, mine, repository, content, lambda: False)
        except LicenseError:
            return "refused"

    with ThreadPoolExecutor(2) as pool:
        assert sorted(map(str, pool.map(put, made))) == ["120", "refused"]


def test_a_slow_download_keeps_nobody_waiting(team, recorded, monkeypatch):
    store = team.projects.store(filled(team, recorded, "p"))
    at = datetime.now(UTC)
    given = {"method": "m", "n_epoch": 1, "options": {}, "created_at": at, "completed_at": at}
    for name in ("slow", "other"):
        with files.drafted(Store.result_folder(store, name)) as draft:
            (draft / "result.json").write_text("{}")
            store.add_result(name=name, version=VERSION, **given, draft=draft)
        (Store.result_folder(store, name) / "result.json").unlink()
    get_folder, begun, go_on = (
        team.projects.objects.get_folder,
        threading.Event(),
        threading.Event(),
    )

    def fetch(place, folder):
        if "/slow-" in place:
            begun.set()
            assert go_on.wait(30)
        get_folder(place, folder)

    monkeypatch.setattr(team.projects.objects, "get_folder", fetch)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(store.result_folder, "slow")
        assert begun.wait(30)
        assert (store.result_folder("other") / "result.json").exists()
        assert store.repository_of(VERSION).records().inputs == 120
        assert not slow.done()
        go_on.set()
        assert (slow.result() / "result.json").exists()


def test_what_is_left_of_the_deleted_is_swept(team, recorded, monkeypatch):
    gone, kept = (filled(team, recorded, name) for name in ("gone", "kept"))
    other = Service(team.settings.model_copy(update={"data": team.settings.data / "other machine"}))
    with other:
        copies = other.settings.data / "projects"
        for one in (gone, kept):
            store = other.projects.store(one)
            assert store.repository_of(VERSION).records().ids()
            (store.home / "results" / "deleted elsewhere").mkdir()
        objects = team.projects.objects
        objects.put_folder(team.settings.data / "projects" / kept, f"{kept}/results/never-entered")
        team.projects.delete(gone)
        assert not objects._fs.find(f"{objects.root}/{gone}")
        assert (copies / gone).is_dir()
        monkeypatch.setattr(projects, "ORPHAN_SECONDS", -1.0)
        retention.tidy(other)
        assert not (copies / gone).exists()
        assert not list((copies / kept / "results").iterdir())
        assert not objects._fs.find(f"{objects.root}/{kept}/results")
        assert other.projects.store(kept).repository_of(VERSION).records().ids()


def test_what_was_written_during_a_deletion_is_swept_too(team, recorded, monkeypatch):
    made = filled(team, recorded, "p")
    team.projects.delete(made)
    objects = team.projects.objects
    late = team.settings.data / "late"
    late.mkdir()
    (late / "result.json").write_text("{}")
    objects.put_folder(late, f"{made}/results/late")
    monkeypatch.setattr(projects, "ORPHAN_SECONDS", -1.0)
    retention.tidy(team)
    assert not objects._fs.find(f"{objects.root}/{made}")
    assert list((team.settings.data / "unfinished").iterdir()) == []


def test_a_switch_to_postgresql_deletes_nothing(postgres, s3, recorded, tmp_path):
    """The catalogues of a service on SQLite look like copies to one on PostgreSQL."""
    objects = {"objects": s3.new_bucket(), "objects_options": s3.storage_options}
    here = Settings(data=tmp_path / "service", **objects)
    there = here.model_copy(update={"database": postgres.new_database()})
    with Service(here) as before:
        first_login(before)
        made = filled(before, recorded, "p")
    for _ in range(2):
        with pytest.raises(StoreError, match="holds a service that runs on SQLite.*another folder"):
            Service(there)
        with pytest.raises(StoreError, match="another folder"):
            migrate(there)
    moved = tmp_path / "moved"
    (tmp_path / "service" / "service.db").rename(moved)
    migrate(there)
    with Service(there) as other:
        retention.tidy(other)
    moved.rename(tmp_path / "service" / "service.db")
    with Service(here) as before:
        assert before.projects.store(made).repository_of(VERSION).records().inputs == 120


def test_the_web_server_sweeps_its_own_copies(team, monkeypatch):
    """No worker may run on its machine."""
    monkeypatch.setattr(app, "SWEEP_EVERY", 0.01)
    project = team.projects.make(organization(team), "p").id
    copy = team.projects.store(project).home / "results" / "of a deleted result"
    gone = team.settings.data / "projects" / "0"
    for one in (copy, gone):
        one.mkdir(parents=True)
    with TestClient(app.create_app(team.settings)):
        while copy.exists() or gone.exists():
            time.sleep(0.01)
    assert copy.parent.is_dir()


def test_a_project_that_cannot_be_deleted_whole_is_gone_all_the_same(team, recorded, monkeypatch):
    made = filled(team, recorded, "p")

    def refuse(_):
        raise StoreError("the object store refused")

    monkeypatch.setattr(team.projects.objects, "remove", refuse)
    team.projects.delete(made)
    with team.database.reading() as session:
        assert session.get(ProjectRow, made) is None
    assert not (team.settings.data / "projects" / made).exists()


def with_quota(service, **given):
    with service.database.writing() as session:
        row = session.get_one(OrganizationRow, organization(service))
        for name, value in given.items():
            setattr(row, name, value)
        session.add(row)


def numbered(part, number):
    """Return a part as bytes, as one of other chunks."""
    chunks = [
        one.model_copy(update={"origin": f"{number:032x}:{k}:{'0' * 16}"})
        for k, one in enumerate(part.header.chunks)
    ]
    made = Part(part.header.model_copy(update={"chunks": chunks}), part.bodies)
    return memoryview(made.pack()[1])


def test_those_who_wait_for_a_quota_are_few_and_have_written_before(service, recorded):
    made, mine = filled(service, recorded, "p"), organization(service)
    store = service.projects.store(made)
    with_quota(service, max_records=1_000_000)
    before = sum(one.stat().st_size for one in store.home.glob("segments/*"))

    def put(number):
        content = numbered(recorded.part, number)
        repository = store.repository_of(VERSION)
        return ingest._add(service, mine, repository, content, lambda: False)

    with ThreadPoolExecutor(quotas.MOST_WAITING) as pool:
        with locked(service.settings.data / "quotas" / f"{mine}.lock"):
            waiting = [pool.submit(put, 1)]
            until(lambda: quotas._waiting._counts[mine] == 1, "the first to wait")
            assert sum(one.stat().st_size for one in store.home.glob("segments/*")) > before
            # the others write into the same file, one after the other
            waiting += [
                pool.submit(enter_turn, service, mine) for _ in range(quotas.MOST_WAITING - 1)
            ]
            until(
                lambda: quotas._waiting._counts[mine] == quotas.MOST_WAITING, "the others to wait"
            )
            with pytest.raises(Problem) as refused, quotas.counting(service, mine):
                pass
            assert refused.value.status_code == 503
            assert refused.value.headers == {"Retry-After": str(quotas.BUSY_SECONDS)}
        assert waiting[0].result() == 120
        assert [one.result() for one in waiting[1:]] == [True] * (quotas.MOST_WAITING - 1)
    assert not quotas._waiting._counts


def enter_turn(service, organization_id):
    with quotas.counting(service, organization_id) as found:
        return found.any


def test_an_organization_that_is_counted_may_get_projects(team, recorded):
    with_quota(team, max_records=1_000_000)
    with ThreadPoolExecutor(1) as pool, quotas.counting(team, organization(team)):
        assert pool.submit(team.projects.make, organization(team), "new").result(10)


@pytest.mark.parametrize("where", ["service", "team"])
def test_usage_opens_no_store(where, request, recorded):
    found = request.getfixturevalue(where)
    made = [filled(found, recorded, name) for name in "ab"]
    found.projects.make(organization(found), "unused")
    nbytes = sum(one.nbytes for one in recorded.part.header.chunks)
    assert quotas.usage_of(found, organization(found)) == (2, 240, 2 * nbytes)
    assert list(found.projects._stores) == made
    found.projects.store(made[0]).repository_of(VERSION).recreate()
    assert quotas.usage_of(found, organization(found)) == (1, 120, nbytes)


def test_a_project_that_opens_slowly_keeps_no_other_waiting(service, monkeypatch):
    slow, other = (service.projects.make(organization(service), name).id for name in "ab")
    begun, go_on, make = threading.Event(), threading.Event(), projects.ProjectStore

    def opened(home, **given):
        if home.name == slow:
            begun.set()
            assert go_on.wait(30)
        return make(home, **given)

    monkeypatch.setattr(projects, "ProjectStore", opened)
    with ThreadPoolExecutor(2) as pool:
        twice = [pool.submit(service.projects.store, slow) for _ in range(2)]
        assert begun.wait(30)
        assert service.projects.store(other).versions() == []
        go_on.set()
        assert len({id(one.result()) for one in twice}) == 1


@pytest.mark.parametrize("where", ["service", "team"])
def test_a_project_that_is_deleted_meanwhile_is_no_project(
    where, request, recorded, monkeypatch, caplog
):
    found = request.getfixturevalue(where)
    kept, gone = (filled(found, recorded, name) for name in ("kept", "gone"))
    store = found.projects.store(gone)
    sweep = found.projects.sweep

    def delete_it():
        sweep()
        found.projects.delete(gone)

    monkeypatch.setattr(found.projects, "sweep", delete_it)
    assert retention.tidy(found) == 0  # it has listed it, and finds it gone
    assert caplog.records == []
    for _ in range(2):
        with pytest.raises(NoProjectError, match="no such project"):
            found.projects.store(gone)
    assert not store.home.exists()
    with pytest.raises(NoProjectError):
        found.projects.delete(gone)
    with pytest.raises(StoreError if where == "service" else NoProjectError):
        store.versions()  # by a request that has passed its door before
    assert found.projects.store(kept).repository_of(VERSION).records().inputs == 120


@pytest.mark.parametrize("where", ["service", "team"])
def test_a_deletion_that_is_interrupted_is_finished(where, request, recorded, monkeypatch):
    found = request.getfixturevalue(where)
    kept, gone = (filled(found, recorded, name) for name in ("kept", "gone"))

    def die(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(projects.shutil, "rmtree", die)
        with pytest.raises(KeyboardInterrupt):
            found.projects.delete(gone)
    left = found.settings.data / "projects" / gone
    (found.settings.data / "unfinished" / kept).touch()  # killed before it took the row
    found.projects._sweep_copies = lambda: None
    retention.tidy(found)
    assert left.exists()  # somebody may be at it
    monkeypatch.setattr(projects, "ORPHAN_SECONDS", -1.0)
    retention.tidy(found)
    assert not left.exists()
    assert list((found.settings.data / "unfinished").iterdir()) == []
    if found.database.postgres:
        with found.database.engine.connect() as connection:
            assert namespace_of(gone) not in found.database.namespaces(connection)
        assert not found.projects.objects._fs.find(f"{found.projects.objects.root}/{gone}")
    assert found.projects.store(kept).repository_of(VERSION).records().ids()


def test_a_name_that_is_taken_leaves_nothing(team):
    for _ in range(2):
        with suppress(InputError):
            made = team.projects.make(organization(team), "same")
    assert list((team.settings.data / "unfinished").iterdir()) == []
    with team.database.engine.connect() as connection:
        assert namespace_of(made.id) in (names := team.database.namespaces(connection))
    assert len(names) == 2  # and that of the first login's


def test_ready_does_not_look_at_every_project_each_time(postgres, tmp_path, monkeypatch):
    settings = Settings(data=tmp_path, database=postgres.new_database())
    migrate(settings)
    looks = []
    with TestClient(create_app(settings)) as client:
        look = Database._check_projects
        monkeypatch.setattr(Database, "_check_projects", lambda self: looks.append(look(self)))
        assert [client.get("/ready").status_code for _ in range(3)] == [200] * 3
        assert looks == []  # it has looked when it began
        monkeypatch.setattr(operations, "CHECK_SECONDS", -1.0)
        assert client.get("/ready").status_code == 200
        assert looks == [None]


def test_a_result_that_is_deleted_meanwhile_is_not_found(recorded, tmp_path, monkeypatch):
    with seeded(Settings(data=tmp_path), recorded) as there:
        store = there.service.projects.store(there.ids["project_id"])
        at = datetime.now(UTC)
        given = {"method": "m", "n_epoch": 1, "options": {}, "created_at": at, "completed_at": at}
        with files.drafted(Store.result_folder(store, "r")) as draft:
            (draft / "result.json").write_text("{}")
            store.add_result(name="r", version=VERSION, **given, draft=draft)
        path = f"{there.project}/results/{store.result('r').number}/files"
        assert len(there.client.get(path, headers=there.key).json()) == 1
        hashed = results._sha256

        def meanwhile(*given):
            store.delete_result("r")
            hashed.cache_clear()
            return hashed(*given)

        monkeypatch.setattr(results, "_sha256", meanwhile)
        assert there.client.get(path, headers=there.key).status_code == 404
