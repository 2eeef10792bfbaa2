import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text
from sqlmodel import select
from starlette.testclient import TestClient

from ml_debugger.core.errors import SchemaError, StoreError
from ml_debugger.core.records import ModelVersion
from ml_debugger.core.store import Repository, schema
from ml_debugger.core.store.parts import Part
from ml_debugger.core.store.tables import ChunkRow
from ml_debugger.server.app import create_app
from ml_debugger.server.database import Database, UnavailableError, namespace_of
from ml_debugger.server.projects import Projects, ProjectStore
from ml_debugger.server.service import Service
from ml_debugger.server.settings import Settings
from ml_debugger.server.tables import Base, OrganizationRow, ProjectRow
from ml_debugger.testing import RepositoryContract

from .seeded import VERSION, migrate, record

COMMAND = Path(sys.executable).with_name("ml-debugger")
NUMBERS = count()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return record(tmp_path_factory.mktemp("sdk"))


@pytest.fixture(scope="module")
def url(postgres):
    """A database that is migrated, for tests that make projects of their own in it."""
    found = postgres.new_database()
    migrate(Settings(database=found))
    return found


@pytest.fixture(params=["sqlite", "postgres"])
def empty(request, tmp_path):
    """A database with nothing in it."""
    found = None
    if request.param == "postgres":
        found = request.getfixturevalue("postgres").new_database()
    database = Database(found, tmp_path / "data")
    yield database
    database.close()


def new_project():
    return f"{next(NUMBERS):032x}"


def tables_in(database, namespace=None):
    """Return what there is of each table: columns, keys and indices."""
    found = inspect(database.engine)
    return {
        name: (
            [(one["name"], str(one["type"]), one["nullable"]) for one in columns],
            sorted(
                (one["name"], one["column_names"], bool(one["unique"]))
                for one in found.get_indexes(name, namespace)
            ),
        )
        for (_, name), columns in found.get_multi_columns(namespace).items()
    }


# A project's store is as good as a local one


class TestPostgresAndFolder(RepositoryContract):
    @pytest.fixture(autouse=True)
    def machines(self, url):
        self.url, self.opened, self.projects = url, [], {}
        yield
        for one in self.opened:
            one.close()

    def open(self, folder: Path) -> Repository:
        database = Database(self.url, folder)
        project = self.projects.setdefault(folder, new_project())
        database.make_project(project)
        store = ProjectStore(folder / project, catalogue=database.catalogue(project))
        self.opened += [store, database]
        return store.register(
            ModelVersion("net", "v1"),
            task="classification",
            architecture=["Linear"],
            layers={"stem": "0"},
            fields=self.fields,
            label_fields=self.label_fields,
        )


# Tables


def test_tables_are_made_once(empty):
    assert empty.migrate()[0].startswith("the service's tables: nothing to ")
    empty.check()
    assert empty.migrate() == []


def test_migrations_make_what_the_models_say(empty):
    empty.migrate()
    with empty.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []
    empty_again = tables_in(empty)
    command.downgrade(empty._alembic(), "base")
    assert set(tables_in(empty)) == {"alembic_version"}
    empty.migrate()
    assert tables_in(empty) == empty_again


def test_what_is_not_up_to_date_is_refused(empty):
    with pytest.raises(SchemaError, match="is empty; run `ml-debugger service migrate`"):
        empty.check()
    empty.migrate()
    with empty.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaError, match="9999, which this version does not know; upgrade"):
        empty.check()


def test_numbers_that_the_models_take_fit_into_the_tables(empty):
    empty.migrate()
    most = (1 << 53) - 1
    with empty.writing() as session:
        given = dict.fromkeys(("max_models", "max_records", "max_bytes"), most)
        session.add(OrganizationRow(id="o", name="o", created_at=(1 << 63) - 1, **given))
    with empty.reading() as session:
        assert session.get(OrganizationRow, "o").max_models == most


MIGRATE = """
import sys
from pathlib import Path
from ml_debugger.server.database import Database
print("ready", flush=True)
for line in sys.stdin:
    database = Database(sys.argv[1] or None, Path(line.strip()))
    try:
        database.migrate()
        print("done", flush=True)
    except Exception as error:
        print(repr(error), flush=True)
    finally:
        database.close()
"""


@pytest.mark.parametrize("where", ["sqlite", "postgres"])
def test_several_processes_migrate_at_once(where, request, tmp_path):
    """A server and its workers may well be started at the same moment."""
    url = None
    if where == "postgres":
        url = request.getfixturevalue("postgres").new_database()
    folders = [tmp_path / str(k) for k in range(1 if url else 5)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    started = [
        subprocess.Popen([sys.executable, "-c", MIGRATE, url or ""], **pipes) for _ in range(3)
    ]
    for one in started:
        assert one.stdout.readline() == "ready\n"
    for folder in folders:
        for one in started:
            one.stdin.write(f"{folder}\n")
            one.stdin.flush()
        assert [one.stdout.readline() for one in started] == ["done\n"] * 3
        database = Database(url, folder)
        database.check()
        database.close()
    for one in started:
        one.communicate()
        assert one.returncode == 0


def test_projects_of_earlier_versions_are_brought_up_to_date(postgres, tmp_path):
    database = Database(postgres.new_database(), tmp_path)
    database.migrate()
    database.make_project("old")
    database.make_project("new")
    old, new = namespace_of("old"), namespace_of("new")
    with database.engine.begin() as connection:
        connection.execute(text(f"SET LOCAL search_path TO {old}"))
        for name in ("forgotten", "identity", "upload", "withdrawal"):
            connection.execute(text(f"DROP TABLE {name}"))
        connection.execute(text("ALTER TABLE chunk DROP COLUMN origin"))
        connection.execute(text("ALTER TABLE run DROP COLUMN settings"))
        connection.execute(text("UPDATE schema_number SET number = 1"))
    with pytest.raises(SchemaError, match="of schema 1, and .*; run `ml-debugger service migrate`"):
        database.check()
    assert database.migrate() == [f"{old}: schema 1 to {schema.SCHEMA}"]
    assert database.migrate() == []
    database.check()
    ours, theirs = (
        {name: (sorted(columns), indices) for name, (columns, indices) in tables.items()}
        for tables in (tables_in(database, old), tables_in(database, new))
    )
    assert ours == theirs
    with database.engine.begin() as connection:
        connection.execute(text(f"UPDATE {old}.schema_number SET number = 99"))
    with pytest.raises(SchemaError, match="of schema 99, which .*; upgrade ml-debugger-server"):
        database.check()
    database.close()


def test_serve_refuses_tables_that_nobody_made(postgres, tmp_path):
    url = postgres.new_database()
    options = ["--data", tmp_path / "data", "--database", url]

    def run(*words):
        given = [COMMAND, *words, *options]
        return subprocess.run(
            given, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"}
        )

    said = run("serve", "--port", "0")
    assert said.returncode != 0
    assert "the database is empty; run `ml-debugger service migrate` once" in said.stderr
    assert "Traceback" not in said.stderr
    said = run("service", "migrate")
    assert (said.returncode, said.stderr) == (0, "")
    assert "the service's tables: nothing to 0002" in said.stdout
    with Service(Settings(data=tmp_path / "data", database=url)):
        pass


def test_ready_looks_at_the_tables(tmp_path):
    """Somebody may have brought them to another version while this process runs."""
    with TestClient(create_app(Settings(data=tmp_path))) as client:
        assert client.get("/ready").status_code == 200
        with client.app.state.service.database.engine.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        answer = client.get("/ready")
    assert answer.status_code == 503
    assert "upgrade ml-debugger-server" in answer.json()["detail"]


@pytest.mark.parametrize(
    "wrong", ["mysql://u@h/d", "postgresql", "postgresql+nothing://u@h/d", "postgresql://u@h:x/d"]
)
def test_what_is_no_database_is_refused(wrong, tmp_path):
    with pytest.raises(StoreError, match="postgresql.psycopg://user@host/name"):
        Database(wrong, tmp_path)


def test_a_database_that_is_away_is_said_to_be(postgres, tmp_path):
    database = Database(postgres.new_database(), tmp_path)
    database.migrate()
    database.ping()
    postgres.stop()
    for act in (database.ping, database.check, database.migrate):
        with pytest.raises(UnavailableError, match="try again"):
            act()
    postgres.start()
    database.ping()
    database.close()


# Several at once


def parts_of(part, number):
    """Return the chunks of a part as other chunks, in a part each."""
    for k, (one, body) in enumerate(zip(part.header.chunks, part.bodies, strict=True)):
        origin = f"{number:032x}:{k}:{'0' * 16}"
        chunk = one.model_copy(update={"origin": origin})
        yield Part(part.header.model_copy(update={"chunks": [chunk]}), [body])


def test_many_record_into_one_project(url, recorded, tmp_path):
    """They register the same version, send the same chunks, and nothing is lost or doubled."""
    databases = [Database(url, tmp_path / str(k)) for k in range(2)]
    project = new_project()
    databases[0].make_project(project)
    stores = [
        ProjectStore(tmp_path / f"{k}" / project, catalogue=one.catalogue(project))
        for k, one in enumerate(databases)
    ]
    given = {k: v for k, v in recorded.version.items() if not k.endswith("_name")}
    senders, each = 8, 6
    stop, seen, wrong = threading.Event(), [], []

    def watch():
        while not stop.is_set():
            with stores[0]._catalogue.reading() as session:
                ids = sorted(session.exec(select(ChunkRow.id)))
            if ids[: len(seen)] != seen:
                wrong.append((list(seen), ids))
            seen[:] = ids

    def send(k):
        repository = stores[k % 2].register(VERSION, **given)
        added = 0
        for number in range(each):
            # each set of chunks is sent by two, at about the same time
            for one in parts_of(recorded.part, (k // 2) * each + number):
                added += repository.adopt(one)
        return added

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(senders) as pool:
        added = sum(pool.map(send, range(senders)))
    stop.set()
    watcher.join()
    assert wrong == []
    inputs = senders // 2 * each * recorded.part.inputs
    assert added == inputs
    (info,) = stores[1].versions()
    assert info.records == inputs
    (run,) = stores[1].open(VERSION).runs()
    assert run.records == inputs
    for one in stores + databases:
        one.close()


def test_projects_of_one_database_do_not_see_each_other(url, recorded, tmp_path):
    database = Database(url, tmp_path)
    projects = [new_project() for _ in range(2)]
    given = {k: v for k, v in recorded.version.items() if not k.endswith("_name")}
    stores = []
    for one in projects:
        database.make_project(one)
        stores.append(ProjectStore(tmp_path / one, catalogue=database.catalogue(one)))
    assert stores[0].register(VERSION, **given).adopt(recorded.part) == recorded.part.inputs
    assert stores[1].versions() == []
    assert stores[1].register(VERSION, **given).adopt(recorded.part) == recorded.part.inputs
    stores[0].open(VERSION).recreate()
    assert stores[1].versions()[0].records == recorded.part.inputs
    for name in ("a-b", "a.b", 'a"b', "", "é"):
        with pytest.raises(ValueError, match="no project id"):
            database.make_project(name)
    for one in [*stores, database]:
        one.close()


@pytest.mark.parametrize("where", ["sqlite", "postgres and s3"])
def test_a_deleted_project_leaves_nothing(where, request, recorded, tmp_path):
    settings = {"data": tmp_path / "data"}
    if where != "sqlite":
        s3 = request.getfixturevalue("s3")
        settings["database"] = request.getfixturevalue("postgres").new_database()
        settings["objects"] = s3.new_bucket()
        settings["objects_options"] = s3.storage_options
        migrate(Settings(**settings))
    given = {k: v for k, v in recorded.version.items() if not k.endswith("_name")}
    with Service(Settings(**settings)) as service:
        with service.database.writing() as session:
            session.add(OrganizationRow(id="o", name="o", created_at=0))
        projects: Projects = service.projects
        rows = [projects.make("o", name) for name in ("goes", "stays")]
        with pytest.raises(Exception, match="already"):
            projects.make("o", "goes")
        for row in rows:
            projects.store(row.id).register(VERSION, **given).adopt(recorded.part)

        def places():
            found = {one.name for one in (tmp_path / "data" / "projects").iterdir()}
            if where != "sqlite":
                with service.database.engine.connect() as connection:
                    query = text("SELECT nspname FROM pg_namespace WHERE nspname ~ '^project'")
                    found |= set(connection.execute(query).scalars())
                found |= {
                    one.split("/")[1] for one in projects.objects._fs.find(projects.objects.root)
                }
            return found

        both = {one.id for one in rows}
        expected = both if where == "sqlite" else both | {namespace_of(one) for one in both}
        assert places() == expected
        projects.delete(rows[0].id)
        assert places() == {one for one in expected if rows[0].id not in one}
        with service.database.reading() as session:
            assert [one.name for one in session.exec(select(ProjectRow))] == ["stays"]
        stays = projects.store(rows[1].id)
        assert stays.verify() == []
        assert stays.versions()[0].records == recorded.part.inputs
