"""A backup is made while the service runs, and a service is made of it."""

import json
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
from sqlalchemy import make_url
from starlette.testclient import TestClient
from typer.testing import CliRunner

from ml_debugger.core.errors import InputError, StoreError
from ml_debugger.core.store import Scope
from ml_debugger.core.store.interchange import Incoming, to_part
from ml_debugger.server.app import create_app
from ml_debugger.server.backup import _copy_values, backup, restore
from ml_debugger.server.cli import app
from ml_debugger.server.objects import Objects
from ml_debugger.server.people import first_login
from ml_debugger.server.service import Service
from ml_debugger.server.settings import Settings

from .seeded import VERSION, evaluated, migrate, record, seeded
from .serving import content, project_store

SECRET = "a secret of more than thirty-two characters"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return record(tmp_path_factory.mktemp("recorded"))


@pytest.fixture(params=["sqlite and files", "postgres and objects"])
def kinds(request, tmp_path):
    """Return the settings of a service, and of one that it is to be restored to."""
    if request.param == "sqlite and files":
        return [Settings(data=tmp_path / name) for name in ("old", "new")]
    postgres, s3 = map(request.getfixturevalue, ("postgres", "s3"))
    return [
        Settings(
            data=tmp_path / name,
            database=postgres.new_database(),
            objects=f"{s3.new_bucket()}/records",
            objects_options=s3.storage_options,
            secret=SECRET,
        )
        for name in ("old", "new")
    ]


def test_what_is_restored_is_what_was_there(kinds, recorded, tmp_path):
    old, new = kinds
    with seeded(old, recorded) as there:
        evaluated(there)
        before = content(project_store(there.service), VERSION)
        files = there.client.get(
            f"{there.project}/results/{there.ids['result_id']}/files", headers=there.key
        ).json()
        backup(old, tmp_path / "backup")
        key = there.login.key
    assert (tmp_path / "backup").stat().st_mode & 0o077 == 0
    restore(new, tmp_path / "backup")
    with Service(new) as service:
        assert project_store(service).verify() == []
        assert content(project_store(service), VERSION) == before
    with TestClient(create_app(new), base_url="https://testserver") as client:
        headers = {"Authorization": f"Bearer {key}"}
        path = f"{there.project}/results/{there.ids['result_id']}/files"
        assert client.get(path, headers=headers).json() == files


def test_a_backup_is_of_one_moment_while_others_write(recorded, tmp_path):
    """Epochs come and go, and segments are compacted; what the copy names, it has."""
    settings = Settings(data=tmp_path / "service")
    with seeded(settings, recorded) as there:
        store, stop = project_store(there.service), threading.Event()

        def churn():
            repository = store.open(VERSION)
            run = repository.start_run("training")
            batches = _batches(store)
            while not stop.is_set():
                repository.write(run, batches)
                repository.delete_epoch(7)
                store.compact()

        thread = threading.Thread(target=churn)
        thread.start()
        try:
            for number in range(4):
                backup(settings, tmp_path / f"backup{number}")
        finally:
            stop.set()
            thread.join()
    for number in range(4):
        restore(restored := Settings(data=tmp_path / f"new{number}"), tmp_path / f"backup{number}")
        with Service(restored) as service:
            assert project_store(service).verify() == []
            assert project_store(service).versions()[0].records >= 120


def test_a_copy_of_an_earlier_attempt_does_not_stand_in_for_what_has_grown_and_gone(tmp_path):
    source, target = tmp_path / "projects", tmp_path / "copy"
    segments = source / "p" / "segments"
    segments.mkdir(parents=True)
    for name in ("kept", "gone"):
        (segments / name).write_bytes(b"begun")
    _copy_values(source, target)
    (segments / "kept").write_bytes(b"begun, and more")
    (segments / "gone").unlink()
    _copy_values(source, target)
    copies = {one.name: one.read_bytes() for one in (target / "p" / "segments").iterdir()}
    assert copies == {"kept": b"begun, and more"}


def test_what_arrives_while_objects_are_copied_is_not_named_without_them(
    recorded, tmp_path, s3, monkeypatch
):
    """With SQLite and an object store: the catalogues are copied before the objects."""
    given = {"objects_options": s3.storage_options, "secret": SECRET}
    old, new = (
        Settings(data=tmp_path / name, objects=f"{s3.new_bucket()}/records", **given)
        for name in ("old", "new")
    )
    with seeded(old, recorded) as there:
        store, get_tree = project_store(there.service), Objects.get_tree
        repository = store.open(VERSION)
        run, batches = repository.start_run("training"), _batches(store)

        def late(objects, folder):
            gone = get_tree(objects, folder)
            repository.write(run, batches)
            return gone

        monkeypatch.setattr(Objects, "get_tree", late)
        backup(old, tmp_path / "backup")
        monkeypatch.undo()
    restore(new, tmp_path / "backup")
    with Service(new) as service:
        assert project_store(service).verify() == []
        assert project_store(service).versions()[0].records == 120


def _batches(store):
    records = store.open(VERSION).records(Scope(n_epoch=1))
    incoming = Incoming(to_part(next(records.parts())))
    return [replace(one, n_epoch=7) for one in incoming.batches(np.arange(records.inputs))]


def test_nothing_is_overwritten(kinds, recorded, tmp_path):
    old, new = kinds
    with seeded(old, recorded):
        backup(old, tmp_path / "backup")
        with pytest.raises(InputError, match="must be a new folder"):
            backup(old, tmp_path / "backup")
        with pytest.raises(InputError, match="must be a new folder"):
            backup(old, tmp_path / "nowhere" / "backup")
        with pytest.raises(InputError, match="must be empty"):
            restore(old, tmp_path / "backup")
    with pytest.raises(InputError, match="is no backup"):
        restore(new, tmp_path)
    if new.database is None:
        wrong = Settings(data=new.data, database="postgresql+psycopg://u:p@127.0.0.1:9/x")
    else:
        wrong = Settings(data=new.data)
    with pytest.raises(InputError, match=r"restore it alike"):
        restore(wrong, tmp_path / "backup")
    assert not new.data.exists()


def test_a_place_in_which_there_is_something_is_refused(recorded, tmp_path, postgres, s3):
    given = {"objects_options": s3.storage_options, "secret": SECRET}
    old, new = (
        Settings(
            data=tmp_path / name,
            database=postgres.new_database(),
            objects=f"{s3.new_bucket()}/records",
            **given,
        )
        for name in ("old", "new")
    )
    with seeded(old, recorded) as there:
        backup(old, tmp_path / "backup")
        project = there.ids["project_id"]
    for name, found in (
        ("database", "the database .* must be empty.*; there is .*alembic_version"),
        ("objects", f"object store's .* must be empty.*; there is {project}"),
    ):
        wrong = new.model_copy(update={name: getattr(old, name)})
        with pytest.raises(InputError, match=found):
            restore(wrong, tmp_path / "backup")
    assert not new.data.exists()

    # and what cannot be read leaves nothing that could be taken for a service
    (tmp_path / "backup" / "database.dump").write_bytes(b"PGDMP and nothing more")
    with pytest.raises(StoreError, match="pg_restore failed"):
        restore(new, tmp_path / "backup")
    with pytest.raises(StoreError, match="was not restored to the end"):
        Service(new)


def test_what_is_deleted_while_objects_are_copied_is_not_named(
    recorded, tmp_path, postgres, s3, monkeypatch
):
    old, new = (
        Settings(
            data=tmp_path / name,
            database=postgres.new_database(),
            objects=f"{s3.new_bucket()}/records",
            objects_options=s3.storage_options,
            secret=SECRET,
        )
        for name in ("old", "new")
    )
    with seeded(old, recorded) as there:
        store, get_tree = project_store(there.service), Objects.get_tree

        def late(objects, folder):
            store.open(VERSION).delete_epoch(1)
            store.compact()
            return get_tree(objects, folder)

        monkeypatch.setattr(Objects, "get_tree", late)
        backup(old, tmp_path / "backup")
    restore(new, tmp_path / "backup")
    with Service(new) as service:
        assert project_store(service).verify() == []
        assert project_store(service).versions()[0].records == 0


def test_what_is_deleted_while_files_are_copied_is_not_named(recorded, tmp_path, monkeypatch):
    old, new = (Settings(data=tmp_path / name) for name in ("old", "new"))
    with seeded(old, recorded) as there:
        evaluated(there)
        store, copy2 = project_store(there.service), shutil.copy2

        def late(source, target):
            if "results" in source.parts:
                for one in store.results():
                    store.delete_result(one.name)
            return copy2(source, target)

        monkeypatch.setattr(shutil, "copy2", late)
        backup(old, tmp_path / "backup")
        monkeypatch.undo()
    restore(new, tmp_path / "backup")
    with Service(new) as service:
        assert project_store(service).results() == []
        assert project_store(service).verify() == []


def test_the_secret_is_told_from_another(tmp_path):
    """One that was set is not in the backup, and has to be set again."""
    with Service(Settings(data=tmp_path / "old", secret=SECRET)) as service:
        first_login(service)
        backup(service.settings, tmp_path / "backup")
    files = [one for one in (tmp_path / "backup").rglob("*") if one.is_file()]
    assert not [one for one in files if SECRET.encode() in one.read_bytes()]
    assert restore(Settings(data=tmp_path / "same", secret=SECRET), tmp_path / "backup")
    assert not restore(Settings(data=tmp_path / "else", secret=SECRET[::-1]), tmp_path / "backup")
    command = ["service", "restore", str(tmp_path / "backup"), "--data", str(tmp_path / "none")]
    assert "all API keys and logins are void" in CliRunner().invoke(app, command).output


def test_how_to_reach_the_database_is_all_of_its_url(tmp_path, postgres):
    """What stands behind the question mark, too: whether to encrypt, for example."""
    given = [make_url(postgres.new_database()) for _ in range(2)]
    old, new = (
        Settings(
            data=tmp_path / str(number),
            database=one._replace(
                host=None, port=None, query={"host": one.host, "port": str(one.port)}
            ).render_as_string(hide_password=False),
            secret=SECRET,
        )
        for number, one in enumerate(given)
    )
    migrate(old)
    backup(old, tmp_path / "backup")
    assert restore(new, tmp_path / "backup")
    with Service(new):
        pass


def test_a_program_that_is_missing_is_named(tmp_path, postgres, monkeypatch):
    settings = Settings(data=tmp_path / "data", database=postgres.new_database(), secret=SECRET)
    migrate(settings)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StoreError, match="pg_dump is needed"):
        backup(settings, tmp_path / "backup")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_database_is_said_to_be(tmp_path):
    (tmp_path / "service.db").write_bytes(b"nothing that SQLite knows" * 1000)
    with pytest.raises(StoreError, match="cannot back up to .*: file is not a database"):
        backup(Settings(data=tmp_path, secret=SECRET), tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


def test_by_the_command_line(recorded, tmp_path):
    data = str(tmp_path / "service")
    with seeded(Settings(data=data), recorded) as there:
        email, key = there.login.email, there.login.key

    def run(*command, data=data):
        done = CliRunner().invoke(app, ["service", *command, "--data", data])
        assert done.exit_code == 0, done.output
        return done.output.strip()

    made = run("key", "another")
    password = run("password", email.upper())
    assert run("migrate") == "everything is up to date"
    assert run("tidy") == "0 epochs dropped"
    run("backup", str(tmp_path / "backup"))
    run("restore", str(tmp_path / "backup"), data=str(tmp_path / "new"))
    assert "openapi" in json.loads(CliRunner().invoke(app, ["service", "openapi"]).output)
    settings = Settings(data=tmp_path / "new")
    with TestClient(create_app(settings), base_url="https://testserver") as client:
        for one in (key, made):
            headers = {"Authorization": f"Bearer {one}"}
            assert client.get("/api/v1/me", headers=headers).status_code == 200
        who = {"email": email, "password": password}
        assert client.post("/api/v1/login", json=who).status_code == 200
    for wrong in (["key", "x", "--project", "none"], ["key", "x", "--role", "admin"]):
        assert isinstance(
            CliRunner().invoke(app, ["service", *wrong, "--data", data]).exception, InputError
        )
    nobody = CliRunner().invoke(app, ["service", "password", "x@y", "--data", data])
    assert isinstance(nobody.exception, InputError)
