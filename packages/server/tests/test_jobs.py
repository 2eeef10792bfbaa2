"""The queue: who is served when, and how much one project may ask for."""

import os
import signal
import threading
from functools import partial
from multiprocessing import Pipe
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import text
from sqlmodel import select

from ml_debugger.core.errors import InputError
from ml_debugger.server import jobs, worker
from ml_debugger.server.database import Database
from ml_debugger.server.jobs import MOST_DEATHS, Watch
from ml_debugger.server.people import first_login
from ml_debugger.server.problems import OvertakenError, Problem
from ml_debugger.server.retention import tidy
from ml_debugger.server.service import Service
from ml_debugger.server.settings import Settings
from ml_debugger.server.tables import OrganizationRow
from ml_debugger.server.worker import Worker, _outcome

from . import serving
from .seeded import VERSION, migrate, record, seeded
from .serving import program, project_store, until


@pytest.fixture(params=["sqlite", "postgres"])
def service(request, tmp_path):
    settings = Settings(data=tmp_path, max_open_jobs=3)
    if request.param == "postgres":
        url = request.getfixturevalue("postgres").new_database()
        settings = settings.model_copy(update={"database": url})
        migrate(settings)
    with Service(settings) as service:
        first_login(service)
        yield service


def project(service, name):
    with service.database.reading() as session:
        organization = session.exec(select(OrganizationRow.id)).one()
    return service.projects.make(organization, name).id


def submit(service, project_id, name, **more):
    return service.queue.submit(
        project_id,
        "evaluation",
        model_name="net",
        version_name="v1",
        result_name=name,
        request={},
        created_by="somebody",
        **more,
    )


def test_projects_take_turns(service):
    busy, other = project(service, "busy"), project(service, "other")
    for name in "abc":
        submit(service, busy, name)
    submit(service, other, "d")
    taken = [service.queue.take("worker") for _ in range(4)]
    assert [one.result_name for one in taken] == ["a", "d", "b", "c"]
    assert service.queue.take("worker") is None


def test_a_queue_is_full_some_time(service):
    busy, other = project(service, "busy"), project(service, "other")
    for name in "abc":
        submit(service, busy, name)
    with pytest.raises(Problem, match="3 jobs that are not done") as told:
        submit(service, busy, "d")
    assert told.value.status_code == 429
    assert int(told.value.headers["Retry-After"]) > 0
    submit(service, other, "d")
    job = service.queue.take("worker")
    assert service.queue.end(job, "done")
    submit(service, busy, "d")


def test_what_many_ask_at_once_is_named_and_counted_one_by_one(service):
    """None is refused for a name that it did not choose, and no more come in than there may be."""
    mine, others = project(service, "busy"), threading.Barrier(6)
    found = []

    def choose(taken):
        return next(name for name in "abcdef" if name not in taken)

    def ask():
        others.wait()
        try:
            found.append(submit(service, mine, choose).result_name)
        except Problem as problem:
            found.append(problem.status_code)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(map(str, found)) == ["429", "429", "429", "a", "b", "c"]


def test_a_job_of_a_name_that_is_being_made(service):
    mine = project(service, "busy")
    first = submit(service, mine, "a")
    with pytest.raises(InputError, match="'a' is being made already; choose another"):
        submit(service, mine, "a")
    assert submit(service, mine, "a", shared=True).id == first.id
    assert submit(service, mine, "b", job_id=first.id).result_name == "a"
    service.projects.delete(mine)
    with pytest.raises(Problem, match="no such project"):
        submit(service, mine, "c")


def test_jobs_that_ended_long_ago_are_forgotten(service, monkeypatch):
    mine = project(service, "busy")
    for name in "ab":
        submit(service, mine, name)
    assert service.queue.end(service.queue.take("worker"), "done")
    tidy(service)
    assert len(service.queue.listed(mine, 9)) == 2
    monkeypatch.setattr(jobs, "KEPT", -1)
    tidy(service)
    assert [one.result_name for one in service.queue.listed(mine, 9)] == ["b"]


def test_a_job_does_not_tell_where_things_are(tmp_path):
    """Its message is for all who may see the job; the log is for the operator."""
    settings = Settings(data=tmp_path / "service")
    with seeded(settings, record(tmp_path / "home")) as there:
        version = f"{there.project}/versions/{there.ids['version_id']}"
        there.client.post(f"{version}/evaluations", json={}, headers=there.key)
        job = there.service.queue.take("worker")
        for one in settings.data.rglob("*.seg"):
            one.unlink()
        state, message = _outcome(settings, job.model_dump(), lambda _: None)
    assert state == "queued"
    assert message.startswith("StoreError")
    assert str(tmp_path) not in message


# Workers that die, or come back from the dead


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return record(tmp_path_factory.mktemp("recorded"))


@pytest.fixture
def there(request, tmp_path, recorded):
    settings = Settings(data=tmp_path / "service")
    if request.param != "sqlite and files":
        postgres, s3 = map(request.getfixturevalue, ("postgres", "s3"))
        settings = settings.model_copy(
            update={
                "database": postgres.new_database(),
                "objects": f"{s3.new_bucket()}/records",
                "objects_options": s3.storage_options,
            }
        )
    with seeded(settings, recorded) as found:
        yield found


def ask(there, name):
    path = f"{there.project}/versions/{there.ids['version_id']}/evaluations"
    answer = there.client.post(path, json={"result_name": name}, headers=there.key)
    assert answer.status_code == 202, answer.text
    return there.service.queue.take("a worker")


def do(there, job):
    """Do a job in this process; return how it ended."""
    mine, theirs = Pipe()
    with pytest.MonkeyPatch.context() as patch:  # what a process of its own may do
        patch.setattr(worker, "log_as_json", lambda: None)
        patch.setattr(worker, "_die_with_parent", lambda _: None)
        worker._child(there.service.settings, job.model_dump(), theirs)
    said = []
    while mine.poll():
        said.append(mine.recv())
    return said[-1][0]


def begun(there, job, point, end):
    """Have a process do a job until it kills or stops itself."""
    settings = there.service.settings.model_dump(mode="json", exclude_unset=True)
    arguments = {"settings": settings, "job": job.model_dump(), "point": point, "end": end}
    process = program("evaluate", **arguments)
    said = [line.strip() for line in iter(process.stdout.readline, "here\n")]
    assert not [line for line in said if line and not line.startswith("{")], said
    return process


def snapshot(there, name):
    """Return everything that there is of a result."""
    store = project_store(there.service)
    records = store.open(VERSION).records()
    files = {one.name: one.read_bytes() for one in store.result_folder(name).iterdir()}
    estimates = {one: records.estimates(name, one).tobytes() for one in ("error_proba", "zone")}
    objects = there.service.projects.objects
    sent = objects and sorted(objects._fs.find(f"{objects.root}/{store._name}/results"))
    return [one for one in store.results() if one.name == name], files, estimates, sent


@pytest.mark.parametrize("there", ["sqlite and files"], indirect=True)
def test_what_a_killed_worker_left_is_in_nobodys_way(there):
    job = ask(there, "mine")
    with begun(there, job, "entering", "SIGKILL") as killed:
        killed.wait(30)
    store = project_store(there.service)
    assert (store.home / "results" / "mine").is_dir()
    assert store.results() == []
    assert there.service.queue.end(job, "queued", "its worker was killed")
    again = there.service.queue.take("another worker")
    assert (again.id, again.attempt) == (job.id, 2)
    assert do(there, again) == "done"
    assert there.service.queue.find(store._name, job.id).state == "done"
    assert there.service.queue.end(again, "done")  # it says so once more
    listed, files, *_ = snapshot(there, "mine")
    assert len(listed) == 1
    assert "units.parquet" in files
    # what is deleted is nobody's work any more
    submit(there.service, store._name, "mine")
    estimates = there.service.queue.take("a worker")
    waiting = submit(there.service, store._name, "another")
    assert delete(there, f"results/{listed[0].number}").is_success
    assert there.service.queue.find(store._name, estimates.id).cancelled
    assert there.service.queue.find(store._name, waiting.id).state == "queued"
    assert delete(there, f"versions/{there.ids['version_id']}").is_success
    assert there.service.queue.find(store._name, waiting.id).state == "cancelled"


@pytest.mark.parametrize("there", ["sqlite and files"], indirect=True)
def test_a_worker_outlives_what_starts_its_processes(there):
    """It is killed where memory is short, and while it still loads, for seconds."""
    path = f"{there.project}/versions/{there.ids['version_id']}/evaluations"
    made = there.client.post(path, json={"result_name": "mine"}, headers=there.key).json()
    find = partial(there.service.queue.find, project_store(there.service)._name, made["id"])
    with serving.Worker(there.service.settings) as working:
        (pid,) = until(working.family, "the worker")

        def loading():
            commands = ((one, Path(f"/proc/{one}/cmdline").read_text()) for one in working.family())
            return [one for one, command in commands if "forkserver" in command]

        (starter,) = until(loading, "what starts its processes")
        os.kill(starter, signal.SIGKILL)
        until(lambda: find().state == "done", "another one to do the job")
        assert pid in working.family()
    assert (find().attempt, find().failures, find().stalls) == (2, 0, 1)


def delete(there, what):
    return there.client.delete(f"{there.project}/{what}", headers=there.operator)


@pytest.mark.parametrize("there", ["postgres and objects"], indirect=True)
def test_a_worker_that_was_overtaken_changes_nothing(there):
    job = ask(there, "mine")
    with begun(there, job, "entered soon", "SIGSTOP") as frozen:
        os.waitpid(frozen.pid, os.WUNTRACED)
        assert there.service.queue.end(job, "queued", "silent")
        again = there.service.queue.take("another worker")
        assert do(there, again) == "done"
        before = snapshot(there, "mine")
        frozen.send_signal(signal.SIGCONT)
        said, _ = frozen.communicate(timeout=30)
    assert said.split()[-1] == "cancelled", said
    assert snapshot(there, "mine") == before
    assert not there.service.queue.end(job, "failed", "overtaken")
    found = there.service.queue.find(project_store(there.service)._name, job.id)
    assert (found.state, found.attempt) == ("done", 2)
    assert not list((project_store(there.service).home / "results").glob(".*"))


def test_what_was_cancelled_is_not_entered(service):
    submit(service, project(service, "busy"), "a")
    job = service.queue.take("worker")
    service.queue.cancel(job.project_id, job.id)
    with pytest.raises(OvertakenError), service.queue.entering(job.id, job.attempt):
        pytest.fail("it was let in")
    assert service.queue.end(job, "cancelled")


def test_only_deaths_use_up_a_jobs_attempts(service, monkeypatch):
    """One that cannot go on is taken up again for hours: the object store comes back."""
    monkeypatch.setattr(jobs, "MOST_STALLS", 2 * MOST_DEATHS)
    mine = project(service, "busy")
    for name, why, attempts in (
        ("a", "died", MOST_DEATHS),
        ("b", "stalled", 2 * MOST_DEATHS),
        ("c", "stopped", 3 * MOST_DEATHS),
    ):
        submit(service, mine, name)
        for _ in range(attempts):
            job = service.queue.take("worker")
            assert job.result_name == name
            assert service.queue.end(job, "queued", "its process died", why=why)
        ended = service.queue.find(mine, job.id)
        if why == "stopped":
            assert ended.state == "queued"
        else:
            assert ended.state == "failed"
            assert f"given up after {attempts} attempts" in ended.message
            assert service.queue.take("worker") is None


def test_a_job_that_cannot_go_on_keeps_nobody_waiting(tmp_path, recorded, monkeypatch):
    """It is put back, and its worker takes others until it has rested."""
    settings = Settings(data=tmp_path / "service")
    with seeded(settings, recorded) as there:
        version = f"{there.project}/versions/{there.ids['version_id']}"
        for name in "ab":
            there.client.post(
                f"{version}/evaluations", json={"result_name": name}, headers=there.key
            )
        for one in settings.data.rglob("*.seg"):
            one.unlink()
        monkeypatch.setattr(worker, "log_as_json", lambda: None)
        monkeypatch.setattr(worker, "_die_with_parent", lambda _: None)
        one, stop = Worker(there.service, "a worker"), threading.Event()
        one._processes = Here
        for name in "ab":
            one._do(there.service.queue.take("a worker", one._refused()), stop)
            assert len(one._refused()) == "ab".index(name) + 1
        assert there.service.queue.take("a worker", one._refused()) is None
        for job in there.service.queue.listed(there.ids["project_id"], 2):
            assert (job.state, job.failures, job.stalls, job.attempt) == ("queued", 0, 1, 1)


class Here:
    """What a process would do is done in this one: a process takes seconds to start."""

    Pipe = staticmethod(Pipe)

    class Process:
        pid = None

        def __init__(self, target, args, daemon):
            self.start = partial(target, *args)

        def kill(self):
            pass

        def join(self):
            pass


def test_jobs_of_an_earlier_version_are_brought_up_to_date(request, tmp_path):
    for url in (None, request.getfixturevalue("postgres").new_database()):
        settings = Settings(data=tmp_path / f"{url is None}", database=url)
        database = Database(url, settings.data)
        command.upgrade(database._alembic(), "0001")
        with database.writing() as session:
            for statement in EARLIER:
                session.execute(text(statement))
        database.close()
        migrate(settings)
        with Service(settings) as service:
            job = service.queue.take("a worker")
            assert (job.id, job.failures, job.stalls) == ("j", 0, 0)


def test_a_worker_that_is_often_started_anew_tidies_too(service, monkeypatch):
    tidied = threading.Event()
    monkeypatch.setattr(worker, "TIDY_FIRST", 0.0, raising=False)
    monkeypatch.setattr(worker, "tidy", lambda _: tidied.set())
    stop = threading.Event()
    working = threading.Thread(target=Worker(service).run, args=(stop,))
    working.start()
    found = tidied.wait(5)
    stop.set()
    working.join()
    assert found


EARLIER = (
    "INSERT INTO organization (id, name, created_at) VALUES ('o', 'o', 1)",
    "INSERT INTO project (id, organization_id, name, created_at) VALUES ('p', 'o', 'p', 1)",
    "INSERT INTO job (id, project_id, kind, model_name, version_name, result_name, request, state,"
    " cancelled, attempt, beat, worker, progress, message, created_by, created_at) VALUES"
    " ('j', 'p', 'evaluation', 'm', 'v', 'r', '{}', 'queued', false, 0, 0, '', 0, '', '', 1)",
)


def test_a_watch_that_slept_heard_nobody(service, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(jobs.time, "monotonic", lambda: now)
    submit(service, project(service, "busy"), "a")
    service.queue.take("a living worker")
    watch = Watch(service.queue, patience=10.0)
    assert watch.look() == []
    now += 60.0  # stopped, as the machine may be, and the worker with it
    assert watch.look() == []
    for _ in range(2):
        now += 4.0
        assert watch.look() == []
    now += 4.0
    assert [one.result_name for one in watch.look()] == ["a"]
