"""A service with something in it, in this process."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from starlette.testclient import TestClient

from ml_debugger.core.records import ModelVersion
from ml_debugger.core.store import Store
from ml_debugger.core.store.parts import Part
from ml_debugger.server import worker
from ml_debugger.server.app import create_app
from ml_debugger.server.database import Database
from ml_debugger.server.people import FirstLogin, first_login
from ml_debugger.server.service import Service
from ml_debugger.server.settings import Settings
from ml_debugger.training import ClassificationTracer

VERSION = ModelVersion("net", "v1")
INPUTS = 120
PART_TYPE = "application/vnd.ml-debugger.part+zstd"


@dataclass(frozen=True, slots=True)
class Recorded:
    """What an SDK has recorded, and would send: its version as JSON, and one part."""

    version: dict[str, Any]
    part: Part


def record(home: Path) -> Recorded:
    """Record a small classifier in a store of its own."""
    torch.manual_seed(0)
    inputs, labels = torch.randn(INPUTS, 8), torch.arange(INPUTS) % 3
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    fields = [{"name": "camera", "type": "str"}, {"name": "at", "type": "datetime"}]
    model.eval()
    with (
        ClassificationTracer(model, *VERSION, home=home, additional_fields=fields) as tracer,
        torch.no_grad(),
    ):
        for at in range(0, INPUTS, 40):
            rows = slice(at, at + 40)
            more: Any = {"camera": ["front"] * 40, "at": [datetime(2026, 1, 2, tzinfo=UTC)] * 40}
            tracer(
                inputs[rows],
                labels[rows],
                input_ids=range(at, at + 40),
                dataset_type="val",
                n_epoch=1,
                **more,
            )
    with Store(home) as store:
        repository = store.open(VERSION)
        found = repository.outbox("there").next_part()
        assert found is not None
        part = Part(found[0].header, [memoryview(bytes(one)) for one in found[0].bodies])
        version = {
            "model_name": VERSION.model_name,
            "version_name": VERSION.version_name,
            "task": repository.task,
            "architecture": list(repository.architecture),
            "layers": dict(repository.layers),
            "fields": [dict(one) for one in repository.fields],
            "label_fields": [],
        }
    return Recorded(version, part)


@dataclass(slots=True)
class Seeded:
    """A running service with a project, a version, a result and a job that is done.

    Attributes:
        client: Asks it; not logged in.
        service: What is behind it.
        login: The operator, and a member's key.
        csrf: What the operator's browser has to present; its cookie is in `cookies`.
        ids: What can stand in paths, by the name that it has there.
    """

    client: TestClient
    service: Service
    login: FirstLogin
    csrf: str
    cookies: dict[str, str]
    ids: dict[str, Any]

    @property
    def operator(self) -> dict[str, str]:
        """The headers of the operator's browser."""
        cookie = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        return {"Cookie": cookie, "X-CSRF-Token": self.csrf}

    @property
    def key(self) -> dict[str, str]:
        """The headers of a program."""
        return {"Authorization": f"Bearer {self.login.key}"}

    @property
    def project(self) -> str:
        """The path of the project."""
        return f"/api/v1/projects/{self.ids['project_id']}"

    def put(self, content: bytes, digest: str, version: int | None = None, **more: Any) -> Any:
        """Send what may be a part, compressed already."""
        path = f"{self.project}/versions/{version or self.ids['version_id']}/parts/{digest}"
        headers = {**self.key, "Content-Type": PART_TYPE, **more}
        return self.client.put(path, content=content, headers=headers)


@contextmanager
def seeded(settings: Settings, recorded: Recorded) -> Iterator[Seeded]:
    """Open a service, and put something in."""
    if settings.database is not None:
        migrate(settings)
    with TestClient(create_app(settings), base_url="https://testserver") as client:
        service: Service = client.app.state.service  # type: ignore[attr-defined]
        login = first_login(service)
        assert login is not None
        who = {"email": login.email, "password": login.password}
        me = client.post("/api/v1/login", json=who).json()
        found = Seeded(client, service, login, me["csrf_token"], dict(client.cookies), {})
        client.cookies.clear()
        project = me["projects"][0]
        found.ids["project_id"], found.ids["organization_id"] = (
            project["id"],
            project["organization_id"],
        )
        answer = client.post(f"{found.project}/versions", json=recorded.version, headers=found.key)
        assert answer.status_code == 200, answer.text
        found.ids["version_id"] = answer.json()["id"]
        digest, content = recorded.part.pack()
        assert found.put(compressed(content), digest).json() == {"records": INPUTS}
        yield found


def compressed(content: bytes) -> bytes:
    """Return a Zstandard frame."""
    return pa.compress(content, "zstd", asbytes=True)


def migrate(settings: Settings) -> list[str]:
    """Do what `ml-debugger service migrate` does."""
    tables = Database(settings.database, settings.data)
    try:
        return tables.migrate()
    finally:
        tables.close()


def evaluated(found: Seeded) -> int:
    """Evaluate the version as a worker's process does, in this one; return the result's number."""
    path = f"{found.project}/versions/{found.ids['version_id']}/evaluations"
    answer = found.client.post(path, json={}, headers=found.key)
    assert answer.status_code == 202, answer.text
    job = found.service.queue.take("this process")
    assert job is not None
    store = found.service.projects.store(job.project_id)
    worker._KINDS[job.kind](store, job.model_dump(), json.loads(job.request))
    assert found.service.queue.end(job, "done")
    found.ids["job_id"] = job.id
    found.ids["result_id"] = store.result(job.result_name).number
    return int(found.ids["result_id"])
