"""The queue: who is served when, and how much one project may ask for."""

import pytest
from sqlmodel import select

from ml_debugger.server.people import first_login
from ml_debugger.server.problems import Problem
from ml_debugger.server.service import Service
from ml_debugger.server.settings import Settings
from ml_debugger.server.tables import OrganizationRow


@pytest.fixture(params=["sqlite", "postgres"])
def service(request, tmp_path):
    settings = Settings(data=tmp_path, max_open_jobs=3)
    if request.param == "postgres":
        from .seeded import migrate

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


def submit(service, project_id, name):
    return service.queue.submit(
        project_id,
        "evaluation",
        model_name="net",
        version_name="v1",
        result_name=name,
        request={},
        created_by="somebody",
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
