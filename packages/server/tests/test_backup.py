"""A backup is made while the service runs, and a service is made of it."""

import json
import threading
from dataclasses import replace

import numpy as np
import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from ml_debugger.core.errors import InputError, StoreError
from ml_debugger.core.store import Scope
from ml_debugger.core.store.interchange import Incoming, to_part
from ml_debugger.server.app import create_app
from ml_debugger.server.backup import backup, restore
from ml_debugger.server.cli import app
from ml_debugger.server.objects import Objects
from ml_debugger.server.service import Service
from ml_debugger.server.settings import Settings

from .seeded import VERSION, evaluated, record, seeded
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
            get_tree(objects, folder)
            repository.write(run, batches)

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


def test_a_program_that_is_missing_or_fails_is_named(tmp_path, monkeypatch):
    settings = Settings(
        data=tmp_path, database="postgresql+psycopg://u:hidden@127.0.0.1:9/x", secret=SECRET
    )
    with pytest.raises(StoreError, match="pg_dump failed") as told:
        backup(settings, tmp_path / "backup")
    assert "hidden" not in str(told.value)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StoreError, match="pg_dump is needed"):
        backup(settings, tmp_path / "backup")
    assert list(tmp_path.iterdir()) == []


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
