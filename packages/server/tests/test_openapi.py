import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
import schemathesis
import uvicorn
from fastapi.routing import iter_route_contexts
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import checks as known
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi import checks as conformance
from starlette.testclient import TestClient

from ml_debugger.server.app import create_app
from ml_debugger.server.description import describe
from ml_debugger.server.settings import Settings

from .seeded import PART_TYPE, compressed, evaluated, record, seeded
from .tenants import ANYONE, OPEN, ROUTES

EXAMPLES = int(os.environ.get("MLD_SCHEMATHESIS_EXAMPLES", "4"))  # of each operation
WHERE = ("sqlite", "postgres")
ON = WHERE if os.environ.get("MLD_SCHEMATHESIS_POSTGRES") else WHERE[:1]
UNLIMITED = {"login_rate": "1000000/minute", "key_rate": "1000000/minute"}
HOST = "127.0.0.1"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return record(tmp_path_factory.mktemp("sdk"))


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    return describe(create_app(Settings(data=tmp_path_factory.mktemp("data"))), "")


def settings_of(where, request, folder):
    database = None
    if where == "postgres":
        database = request.getfixturevalue("postgres").new_database()
    return Settings(data=folder, database=database, **UNLIMITED)


def operations(document):
    for path, methods in document["paths"].items():
        for method, one in methods.items():
            yield f"{method.upper()} {path}", one


# What the document says


def test_every_route_is_described(document, tmp_path):
    app = create_app(Settings(data=tmp_path))
    routes = {
        f"{method} {one.path}"
        for one in iter_route_contexts(app.routes)
        for method in one.methods - {"HEAD"}
    }
    assert routes - {name for name, _ in operations(document)} == {"GET /api/v1/openapi.json"}
    assert {name for name, _ in operations(document)} <= routes


def test_every_path_is_versioned(document):
    assert {one for one in document["paths"] if not one.startswith("/api/v1/")} == {
        "/health",
        "/ready",
        "/metrics",
    }


def test_operation_ids_are_unique_and_readable(document):
    names = [one["operationId"] for _, one in operations(document)]
    assert [name for name, count in Counter(names).items() if count > 1] == []
    for name in names:
        assert name.isidentifier()
        assert name.count("_") <= 2, name
    assert all(one["summary"] and one["tags"] for _, one in operations(document))


def test_every_answer_is_typed(document):
    schemas = document["components"]["schemas"]
    for name, one in operations(document):
        good = {status: told for status, told in one["responses"].items() if status < "300"}
        assert len(good) == 1, name
        for status, told in good.items():
            if status == "204":
                assert "content" not in told, name
                continue
            ((kind, said),) = told["content"].items()
            if kind != "application/json":
                assert said["schema"]["type"] == "string", name
                continue
            schema = said["schema"]
            reference = schema["items"]["$ref"] if schema.get("type") == "array" else schema["$ref"]
            assert schemas[reference.rpartition("/")[2]]["properties"], name


def test_no_schema_takes_or_gives_just_anything(document):
    free = {
        f"{name}.{field}"
        for name, one in document["components"]["schemas"].items()
        for field, said in one.get("properties", {}).items()
        if not {"type", "$ref", "anyOf", "const", "enum"} & said.keys()
    }
    assert free == {"FieldIn.default"}  # a value of the type that the field has
    takes = {name for name in document["components"]["schemas"] if name.endswith("In")}
    assert all(
        document["components"]["schemas"][name]["additionalProperties"] is False for name in takes
    )


def test_every_error_is_described(document):
    problem = {"$ref": "#/components/schemas/ProblemOut"}
    wanted = {"400", "401", "403", "404", "409", "413", "422", "429", "500", "503"}
    for name, one in operations(document):
        bad = {status: told for status, told in one["responses"].items() if status >= "400"}
        if name.partition(" ")[2].startswith("/api/"):
            assert wanted <= bad.keys(), name
        for told in bad.values():
            assert told["content"]["application/json"]["schema"] == problem, name
            assert told["description"], name


def test_it_says_how_to_show_who_one_is(document):
    """As the table of all routes has it, which is what they do: `test_access` asks them."""
    schemes = document["components"]["securitySchemes"]
    assert set(schemes) == {"key", "login", "csrf", "metrics"}
    routes = {str(one): one for one in ROUTES}
    for name, one in operations(document):
        route = routes[name]
        login = {"login": [], "csrf": []} if route.unsafe else {"login": []}
        if route.role == OPEN:
            ways = []
        elif route.path == "/metrics":
            ways = [{"metrics": []}, login]
        elif route.role == ANYONE or (route.keys and route.role != "admin"):
            ways = [{"key": []}, login]
        else:
            ways = [login]  # no key is an admin's
        assert one["security"] == ways, name


def test_the_command_prints_it(document, tmp_path):
    command = Path(sys.executable).with_name("ml-debugger")
    said = subprocess.run(
        [command, "service", "openapi"],
        env={**os.environ, "MLD_SERVER_DATA": str(tmp_path / "data")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(said.stdout) == document
    assert not (tmp_path / "data").exists()


# A path before it


@pytest.mark.parametrize("taken_off", [True, False], ids=["taken off", "left on"])
def test_it_works_behind_a_proxy_that_shows_it_under_a_path(taken_off, recorded, tmp_path):
    asked = Settings(data=tmp_path / "data", root_path="/team/mld")
    start = "" if taken_off else "/team/mld"
    with seeded(Settings(data=tmp_path / "data"), recorded) as found:
        login = found.login
    with TestClient(create_app(asked), base_url="https://testserver") as client:
        assert client.get(f"{start}/health").json() == {"status": "ok"}
        who = {"email": login.email, "password": login.password}
        answer = client.post(f"{start}/api/v1/login", json=who)
        assert "Path=/team/mld" in answer.headers["set-cookie"]
        headers = {"Authorization": f"Bearer {login.key}"}
        document = client.get(f"{start}/api/v1/openapi.json", headers=headers).json()
        assert document["servers"] == [{"url": "/team/mld"}]
        me = client.get(f"{start}/api/v1/me", headers=headers).json()
        path = f"{start}/api/v1/projects/{me['projects'][0]['id']}/versions"
        assert len(client.get(path, headers=headers).json()) == 1
        digest, content = recorded.part.pack()
        put = client.put(f"{path}/1/parts/{digest}", content=compressed(content), headers=headers)
        assert put.json() == {"records": 0}
        assert client.get("/elsewhere/api/v1/me", headers=headers).status_code == 404


@pytest.mark.parametrize(
    "wrong", ["team", "/team/", "/", "//evil.example", "/a?b", "/a b", "/api/v1"]
)
def test_a_path_that_is_none_is_refused(wrong):
    with pytest.raises(ValueError, match="root_path"):
        Settings(root_path=wrong)


# Whether it is true


@contextmanager
def listening(app) -> Iterator[str]:
    """Serve an application that is started already on a loopback port, from a thread."""
    config = uvicorn.Config(app, host=HOST, port=0, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://{HOST}:{port}"
    finally:
        server.should_exit = True
        thread.join()


class Asked:
    """A service with something in it, its description, and how often each status was answered."""

    def __init__(self, found, url, part):
        self.found = found
        self.url = url
        self.session = requests.Session()
        document = describe(found.client.app, "")
        self.guarded = schemathesis.openapi.from_dict(document)
        # or credentials are made up, and take the place of those that are given
        bare = json.loads(json.dumps(document))
        del bare["components"]["securitySchemes"]
        for _, one in operations(bare):
            del one["security"]
        self.schema = schemathesis.openapi.from_dict(bare)
        self.statuses = Counter()
        self.kept = dict(found.ids)
        self.part = part

    def ask(self, case, headers, draw):
        """Send a case, mostly with ids that exist, and compare the answer with the description."""
        for name in case.path_parameters or {}:
            if name in self.kept and draw(st.integers(0, 4)):
                case.path_parameters[name] = self.kept[name]
        label = case.operation.label
        if label.startswith("DELETE ") and case.path_parameters == {
            name: self.kept.get(name) for name in case.path_parameters
        }:
            name = list(case.path_parameters)[-1]
            case.path_parameters[name] = "f" * 32 if name.endswith("_id") else "none"
        if isinstance(case.body, dict) and "task" in case.body and draw(st.booleans()):
            case.body["task"] = "classification"
        if "/parts/" in label and draw(st.booleans()):
            case.body = self.part
        if label.startswith("POST /api/v1/logout"):
            headers = {}
        answer = case.call(base_url=self.url, session=self.session, headers=headers)
        self.statuses[label, answer.status_code] += 1
        case.validate_response(answer, checks=CHECKS, headers=headers)
        return answer


CHECKS = [
    known.not_a_server_error,
    conformance.status_code_conformance,
    conformance.content_type_conformance,
    conformance.response_headers_conformance,
    conformance.response_schema_conformance,
]


@schemathesis.serializer(PART_TYPE)
def as_bytes(ctx, value):
    return value if isinstance(value, bytes) else str(value).encode(errors="surrogatepass")


@pytest.fixture(scope="module", params=ON)
def asked(request, recorded, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    with seeded(settings_of(request.param, request, folder), recorded) as found:
        evaluated(found)
        found.ids |= {"name": "units.parquet", "n_epoch": 1, "digest": recorded.part.pack()[0]}
        with listening(found.client.app) as url:
            yield Asked(found, url, compressed(recorded.part.pack()[1]))


# What databases do not take alike


@pytest.fixture(scope="module", params=WHERE)
def awkward(request, recorded, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    with seeded(settings_of(request.param, request, folder), recorded) as found:
        found.ids["result_id"] = 1
        yield found


TEXTS = ["a\0b", "\0", "\ud800", "a\udfffb", "\u202e", "\U0010ffff", "e\u0301", "'; --", "x" * 300]
NUMBERS = [-1, 0, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**30, 10**400]


def sent(document, texts, numbers):
    """Yield a request of each kind for each value, in each place that takes a text or a number."""
    for value in texts:
        yield "POST", "{project}/versions", {**document, "model_name": value}
        yield "POST", "{project}/versions", {**document, "version_name": value}
        yield "POST", "{project}/versions", {**document, "task": value}
        yield "POST", "{project}/versions", {**document, "architecture": [value]}
        yield "POST", "{project}/versions", {**document, "layers": {value: value}}
        field = {"name": value, "type": "str", "default": value}
        yield "POST", "{project}/versions", {**document, "fields": [field]}
        yield "POST", "{project}/versions", {**document, "label_fields": [{**field, value: 1}]}
        yield "POST", "{project}/versions/1/withdrawals", {"origins": [value]}
        yield "POST", "{project}/versions/1/evaluations", {"result_name": value}
        yield "POST", "{project}/versions/1/evaluations", {"method_name": value}
        yield "POST", "{project}/versions/1/evaluations", {"options": {value: value}}
        yield "POST", "{project}/versions/1/evaluations", {"options": {"run": value}}
        yield "POST", "{project}/keys", {"name": value}
        yield "PUT", "{project}", {"name": value}
        yield "POST", "/api/v1/organizations", {"name": value}
        yield "POST", "{organization}/projects", {"name": value}
        yield "POST", "{organization}/members", {"email": f"{value}@x", "role": "viewer"}
        yield "POST", "{organization}/members", {"email": "a@b", "name": value, "role": "viewer"}
        if value in TEXTS[:3]:  # each of these costs an Argon2
            yield "POST", "/api/v1/login", {"email": "a@x", "password": value}
            yield "PUT", "/api/v1/me/password", {"old": value, "new": value}
        yield "POST", "/api/v1/login", {"email": f"{value}@x", "password": ["none"]}
        yield "POST", "/api/v1/login", {value: value}
        if value.isprintable():
            named = f"model_name={value}&version_name={value}"
            yield "GET", "{project}/versions?" + named, None
            yield "GET", "{project}/results?result_name=" + value, None
    for name in ("%00", "a%00b", "%ff", "%ed%a0%80"):
        yield "GET", "{project}/versions?model_name=" + name, None
        yield "GET", "{project}/results?result_name=" + name, None
        yield "GET", "{project}/jobs/" + name, None
        yield "DELETE", "{project}/versions/1/epochs/" + name, None
        yield "DELETE", "{project}/keys/" + name, None
        yield "GET", "/api/v1/organizations/" + name, None
    for number in numbers:
        yield "GET", f"{{project}}/versions/{number}", None
        yield "GET", f"{{project}}/versions/{number}/runs", None
        yield "DELETE", f"{{project}}/versions/1/epochs/{number}", None
        yield "GET", f"{{project}}/results/{number}", None
        yield "GET", f"{{project}}/jobs?limit={number}", None
        yield "GET", f"{{project}}/jobs?offset={number}", None
        yield "POST", "{project}/versions/1/evaluations", {"n_epoch": number}
        yield "POST", "{project}/versions/1/evaluations", {"options": {"seed": number}}
        yield "PUT", "{project}", {"name": "p", "retention_days": number}
        yield "POST", "{project}/keys", {"name": "k", "days": number}
        for quota in ("max_models", "max_records", "max_bytes"):
            yield "PUT", "{organization}/quotas", {quota: number}
    yield "PUT", "{organization}/quotas", {}


def test_awkward_values_are_no_fault_of_ours(awkward, recorded):
    places = {
        "project": awkward.project,
        "organization": f"/api/v1/organizations/{awkward.ids['organization_id']}",
    }
    for method, path, body in sent(recorded.version, TEXTS, NUMBERS):
        content = None if body is None else json.dumps(body)
        address = path.format(**places)
        answer = awkward.client.request(
            method,
            address,
            content=content,
            headers={**awkward.operator, "Content-Type": "application/json"},
        )
        assert answer.status_code < 500, (method, path, body, answer.text)
        assert len(answer.content) < 100_000
    # and nothing that was taken is in the way of reading the rest
    for path in (
        "{project}/versions",
        "{project}/jobs",
        "{project}/keys",
        "{organization}/members",
        "{organization}/projects",
        "{organization}/usage",
        "/api/v1/me",
    ):
        found = awkward.client.get(path.format(**places), headers=awkward.operator)
        assert found.status_code == 200, path


@pytest.mark.parametrize("part", ["bytes=0-3", "bytes=0-1,4-5", "bytes=999999999-", "bytes", "x=1"])
def test_a_file_is_sent_whole_whatever_part_is_asked_for(asked, part):
    """Or there would be answers that are not described."""
    there = asked.found
    path = f"{there.project}/results/{there.ids['result_id']}/files/{there.ids['name']}"
    whole = there.client.get(path, headers=there.key)
    answer = there.client.get(path, headers={**there.key, "Range": part})
    assert answer.status_code == 200
    assert answer.content == whole.content
    assert answer.headers["accept-ranges"] == "none"


def ids_of(document):
    return sorted(name for name, _ in operations(document))


PUBLIC = [str(one) for one in ROUTES if one.role == OPEN]
LABELS = ids_of(describe(create_app(Settings(data=Path("not made"))), ""))


@pytest.mark.parametrize("who", ["operator", "key", "nobody"])
@pytest.mark.parametrize("label", LABELS)
def test_answers_are_as_described(label, who, asked):
    headers = {} if who == "nobody" else getattr(asked.found, who)
    schema = asked.guarded if who == "nobody" else asked.schema
    operation = schema.find_operation_by_label(label)

    @settings(
        max_examples=EXAMPLES,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
        database=None,
    )
    @given(data=st.data())
    def ask(data):
        mode = data.draw(st.sampled_from(list(GenerationMode)))
        case = data.draw(operation.as_strategy(generation_mode=mode))
        answer = asked.ask(case, headers, data.draw)
        if who == "nobody" and label not in PUBLIC:
            assert answer.status_code in (400, 401, 413, 422)

    ask()


def test_the_examples_reached_what_they_are_about(asked):
    """Were all of them refused at the door, the tests above would have looked at nothing else."""
    good = {label for label, status in asked.statuses if status < 300}
    assert len(good) >= min(len(LABELS) // 2, EXAMPLES * 8), sorted(set(LABELS) - good)
