"""A service with two organisations, everyone who may see something of them, and all its routes."""

import hashlib
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
from starlette.testclient import TestClient

from ml_debugger.core.evaluation.method import evaluate
from ml_debugger.server.app import create_app
from ml_debugger.server.people import first_login
from ml_debugger.server.service import Service
from ml_debugger.server.settings import Settings

from .seeded import PART_TYPE, VERSION, Recorded

BASE = "https://service.test"
COOKIE = "ml_debugger_session"
MANY = "1000000/minute"

OPEN, ANYONE, PERSON, OPERATOR = "open", "anyone", "person", "operator"
LEVELS = ("viewer", "member", "admin")


@dataclass(frozen=True)
class Route:
    """A route, and the least that is needed for it.

    Attributes:
        role: One of `OPEN`, `ANYONE`, `PERSON`, `OPERATOR`; or a role in the organisation or the
            project that its path names.
        keys: Whether API keys may use it, where the role is one in a project.
        body: What it takes.
        operators: Whether operators may use it of every project.
    """

    method: str
    path: str
    role: str
    keys: bool = False
    body: Any = None
    operators: bool = False

    @property
    def scope(self) -> str:
        """What its path names first: "project", "organization" or nothing."""
        if "{project_id}" in self.path:
            return "project"
        return "organization" if "{organization_id}" in self.path else ""

    @property
    def unsafe(self) -> bool:
        """Whether it may change something."""
        return self.method not in ("GET", "HEAD", "OPTIONS")

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


_V1 = "/api/v1"
_O, _P = f"{_V1}/organizations/{{organization_id}}", f"{_V1}/projects/{{project_id}}"
_VERSION = {
    "model_name": "new",
    "version_name": "v1",
    "task": "classification",
    "architecture": ["Linear"],
    "layers": {"features": "0"},
}
_QUERY = {"n_data": 1, "strategy": "high_error_proba", "dataset_type": "val"}
ROUTES = [
    Route("GET", "/health", OPEN),
    Route("GET", "/ready", OPEN),
    Route("POST", f"{_V1}/login", OPEN, body={"email": "a@b", "password": "no"}),
    Route("GET", "/metrics", OPERATOR),
    Route("GET", f"{_V1}/openapi.json", ANYONE),
    Route("GET", f"{_V1}/me", ANYONE),
    Route("POST", f"{_V1}/logout", PERSON),
    Route("PUT", f"{_V1}/me/password", PERSON, body={"old": "no", "new": "longer than that"}),
    Route("GET", f"{_V1}/organizations", PERSON),
    Route("POST", f"{_V1}/organizations", OPERATOR, body={"name": "default"}),
    Route("GET", _O, "viewer"),
    Route("DELETE", _O, OPERATOR),
    Route("PUT", f"{_O}/quotas", OPERATOR, body={}),
    Route("GET", f"{_O}/usage", "viewer"),
    Route("GET", f"{_O}/members", "viewer"),
    Route("POST", f"{_O}/members", "admin", body={"email": "new@x", "role": "viewer"}),
    Route("PUT", f"{_O}/members/{{user_id}}", "admin", body={"role": "viewer"}),
    Route("DELETE", f"{_O}/members/{{user_id}}", "admin"),
    Route("GET", f"{_O}/projects", "viewer"),
    Route("POST", f"{_O}/projects", "admin", body={"name": "new"}),
    Route("GET", _P, "viewer", keys=True, operators=True),
    Route("PUT", _P, "admin", body={"name": "renamed"}, operators=True),
    Route("DELETE", _P, "admin", operators=True),
    Route("GET", f"{_P}/keys", "admin", operators=True),
    Route("POST", f"{_P}/keys", "admin", body={"name": "new"}),
    Route("DELETE", f"{_P}/keys/{{key_id}}", "admin", operators=True),
    Route("GET", f"{_P}/versions", "viewer", keys=True),
    Route("POST", f"{_P}/versions", "member", keys=True, body=_VERSION),
    Route("GET", f"{_P}/versions/{{version_id}}", "viewer", keys=True),
    Route("DELETE", f"{_P}/versions/{{version_id}}", "admin", keys=True),
    Route("GET", f"{_P}/versions/{{version_id}}/epochs", "viewer", keys=True),
    Route("DELETE", f"{_P}/versions/{{version_id}}/epochs/{{n_epoch}}", "admin", keys=True),
    Route("GET", f"{_P}/versions/{{version_id}}/runs", "viewer", keys=True),
    Route(
        "POST",
        f"{_P}/versions/{{version_id}}/withdrawals",
        "member",
        keys=True,
        body={"origins": [f"{'0' * 32}:1:{'0' * 16}"]},
    ),
    Route("PUT", f"{_P}/versions/{{version_id}}/parts/{{digest}}", "member", keys=True, body=b"x"),
    Route("POST", f"{_P}/versions/{{version_id}}/evaluations", "member", keys=True, body={}),
    Route("GET", f"{_P}/jobs", "viewer", keys=True),
    Route("GET", f"{_P}/jobs/{{job_id}}", "viewer", keys=True),
    Route("POST", f"{_P}/jobs/{{job_id}}/cancel", "member", keys=True),
    Route("GET", f"{_P}/results", "viewer", keys=True),
    Route("GET", f"{_P}/results/{{result_id}}", "viewer", keys=True),
    Route("DELETE", f"{_P}/results/{{result_id}}", "admin", keys=True),
    Route("GET", f"{_P}/results/{{result_id}}/files", "viewer", keys=True),
    Route("GET", f"{_P}/results/{{result_id}}/files/{{name}}", "viewer", keys=True),
    Route("POST", f"{_P}/results/{{result_id}}/query", "viewer", keys=True, body=_QUERY),
]


@dataclass(frozen=True)
class Who:
    """Somebody who asks, by what is sent along."""

    name: str
    headers: dict[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()

    def but(self, **headers: str | None) -> "Who":
        """Return the same with other headers, `_` for `-`; None for none."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        found = {k: v for k, v in {**self.headers, **given}.items() if v is not None}
        return Who(self.name, found)


NOBODY = Who("nobody")


@dataclass(frozen=True)
class Tenant:
    """A project of an organisation: ids for paths, and who may use it, by role.

    Attributes:
        ids: What paths name of it.
        people: The members of its organisation.
        keys: Its API keys.
    """

    name: str
    ids: dict[str, str]
    people: dict[str, Who]
    keys: dict[str, Who]


class Town:
    """A running service, and who asks it.

    Attributes:
        tenants: Two projects of each of two organisations.
        operator: Whoever runs the service, who is in neither of them.
    """

    def __init__(self, client: TestClient, service: Service) -> None:
        self.client = client
        self.service = service
        self.tenants: list[Tenant] = []
        self.operator = NOBODY
        self.password = ""  # the operator's
        self.secrets: set[str] = set()  # all that must be nobody's to see

    def ask(self, who: Who, method: str, path: str, body: Any = None, **more: Any) -> Any:
        """Send a request with what `who` sends, and nothing that the client remembers."""
        self.client.cookies.clear()
        headers = {**who.headers, **more.pop("headers", {})}
        if isinstance(body, bytes):
            headers = {"Content-Type": PART_TYPE, **headers}
            more["content"] = body
        elif body is not None:
            more["json"] = body
        return self.client.request(method, path, headers=headers, **more)

    def at(self, who: Who, route: Route, ids: dict[str, str], **more: Any) -> Any:
        """Send a route's request."""
        return self.ask(who, route.method, route.path.format(**ids), route.body, **more)

    def done(self, who: Who, method: str, path: str, body: Any = None, **more: Any) -> Any:
        """Send a request that succeeds; return what was answered."""
        answer = self.ask(who, method, _V1 + path, body, **more)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def login(self, email: str, password: str) -> Who:
        """Log a person in."""
        answer = self.ask(NOBODY, "POST", f"{_V1}/login", {"email": email, "password": password})
        assert answer.status_code == 200, answer.text
        cookie, csrf = answer.cookies[COOKIE], answer.json()["csrf_token"]
        self.secrets |= {password, cookie, csrf}
        return Who(email, {"Cookie": f"{COOKIE}={cookie}", "X-CSRF-Token": csrf})

    def with_key(self, name: str, shown: str) -> Who:
        """Return whoever presents a key."""
        self.secrets.add(shown)
        return Who(name, {"Authorization": f"Bearer {shown}"})

    def new_person(self, organization: str, email: str, role: str, by: Who) -> Who:
        """Let somebody new into an organisation, and log them in."""
        path = f"/organizations/{organization}/members"
        made = self.done(by, "POST", path, {"email": email, "role": role})
        return self.login(email, made["password"])

    def new_key(self, project: str, by: Who, **given: Any) -> tuple[Who, dict[str, Any]]:
        """Make an API key."""
        made = self.done(by, "POST", f"/projects/{project}/keys", {"name": "a key", **given})
        return self.with_key(f"{given.get('role', 'member')} key", made["key"]), made

    def new_organization(self, name: str) -> str:
        """Make an organisation; return its id."""
        return str(self.done(self.operator, "POST", "/organizations", {"name": name})["id"])

    def new_project(self, organization: str, by: Who, name: str = "p") -> str:
        """Make a project; return its id."""
        path = f"/organizations/{organization}/projects"
        return str(self.done(by, "POST", path, {"name": name})["id"])

    def leave(self, organization: str) -> None:
        """Let the operator, who has made it, be no member of an organisation."""
        path = f"/organizations/{organization}/members"
        email = self.done(self.operator, "GET", "/me")["email"]
        members = self.done(self.operator, "GET", path)
        mine = next(one["user_id"] for one in members if one["email"] == email)
        self.done(self.operator, "DELETE", f"{path}/{mine}")

    def settle(self, recorded: Recorded) -> None:
        """Make both organisations, with everything in them."""
        for number, color in enumerate(("red", "blue")):
            organization = self.new_organization(f"org-{color}")
            people = {
                role: self.new_person(organization, f"{role}@{color}.test", role, self.operator)
                for role in LEVELS
            }
            members = self.done(people["admin"], "GET", f"/organizations/{organization}/members")
            member = next(one["user_id"] for one in members if one["role"] == "member")
            self.leave(organization)
            for place in ("one", "two"):
                name = f"{color}-{place}"
                project = self.new_project(organization, people["admin"], f"project-{name}")
                keys = {}
                for role in ("viewer", "member"):
                    keys[role], made = self.new_key(project, people["admin"], role=role)
                ids = {
                    "organization_id": organization,
                    "user_id": member,
                    "project_id": project,
                    "key_id": made["id"],
                    "n_epoch": "1",
                    "name": "result.json",
                }
                tenant = Tenant(name, ids, people, keys)
                # numbers are a project's own: one tenant has some that another has not
                self._fill(tenant, recorded, versions=2 - number)
                self.tenants.append(tenant)

    def _fill(self, tenant: Tenant, recorded: Recorded, versions: int) -> None:
        who, path = tenant.keys["member"], f"/projects/{tenant.ids['project_id']}"
        for number in range(versions):
            name = VERSION.version_name if number == 0 else f"more-{number}"
            found = self.done(
                who, "POST", f"{path}/versions", {**recorded.version, "version_name": name}
            )
            tenant.ids["version_id"] = str(found["id"])
        version = f"{path}/versions/1"
        digest, sent = packed(recorded)
        self.done(who, "PUT", f"{version}/parts/{digest}", sent)
        tenant.ids["digest"] = digest
        store = self.service.projects.store(tenant.ids["project_id"])
        results = versions if tenant.name.endswith("one") else 0  # they take seconds
        for number in range(results):
            evaluate(store, VERSION, result_name=f"result-{tenant.name}-{number}")
        tenant.ids["result_id"] = str(versions)
        job = self.done(who, "POST", f"{version}/evaluations", {})
        tenant.ids["job_id"] = job["id"]


def packed(recorded: Recorded) -> tuple[str, bytes]:
    """Return what a part is called, and how it is sent."""
    digest, content = recorded.part.pack()
    return digest, pa.Codec("zstd").compress(content, asbytes=True)


@contextmanager
def town(home: Path, database: str | None = None, **settings: Any) -> Iterator[Town]:
    """Run a service in this process, with an operator and nobody else."""
    given = {"login_rate": MANY, "key_rate": MANY, **settings}
    chosen = Settings(data=home / "data", database=database, **given)
    if database is not None:
        from ml_debugger.server.database import Database

        with closing(Database(database, chosen.data)) as tables:
            tables.migrate()
    app = create_app(chosen)
    with TestClient(app, BASE, raise_server_exceptions=False) as client:
        found = Town(client, app.state.service)
        first = first_login(found.service)
        assert first is not None
        found.secrets |= {first.password, first.key}
        found.password = first.password
        found.operator = found.login(first.email, first.password)
        yield found


def nothing_there() -> dict[str, str]:
    """Return ids that look right and are nobody's."""
    return {
        "organization_id": secrets.token_hex(16),
        "user_id": secrets.token_hex(16),
        "project_id": secrets.token_hex(16),
        "key_id": secrets.token_hex(8),
        "version_id": "999",
        "digest": secrets.token_hex(32),
        "n_epoch": "1",
        "job_id": secrets.token_hex(16),
        "result_id": "999",
        "name": "result.json",
    }


def dump(service: Service) -> dict[str, Any]:
    """Return all that a service keeps: rows of all tables, and hashes of all files.

    Without logins, and when a key was used last: who asks changes these.
    """
    found: dict[str, Any] = {}
    data = service.settings.data
    for path in sorted(one for one in data.rglob("*") if one.is_file()):
        name = str(path.relative_to(data))
        if path.suffix == ".db":
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
                tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
                for (table,) in tables.fetchall():
                    found[f"{name}/{table}"] = _rows(connection, table)
        elif not path.name.endswith((".db-wal", ".db-shm")):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    if service.database.postgres:
        url = service.settings.database or ""
        with psycopg.connect(url.replace("+psycopg", "")) as connection:
            tables = connection.execute(
                "SELECT table_schema, table_name FROM information_schema.tables "
                "WHERE table_schema NOT IN ('pg_catalog', 'information_schema')"
            )
            for schema, table in tables.fetchall():
                found[f"{schema}/{table}"] = _rows(connection, f'"{schema}"."{table}"', table)
    return found


def _rows(connection: Any, table: str, name: str | None = None) -> list[str]:
    if (name or table) == "session":
        return []
    cursor = connection.execute(f"SELECT * FROM {table}")
    names = [one[0] for one in cursor.description]
    rows = (dict(zip(names, row, strict=True)) for row in cursor.fetchall())
    return sorted(repr({k: v for k, v in row.items() if k != "last_used_at"}) for row in rows)
