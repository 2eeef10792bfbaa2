"""Nobody gets in without credentials, and nobody reaches what is another's."""

import time
from itertools import product

import pytest
from fastapi.routing import iter_route_contexts
from itsdangerous import URLSafeSerializer
from sqlalchemy import update
from sqlmodel import col

from ml_debugger.server.tables import KeyRow, SessionRow

from .seeded import record
from .tenants import (
    COOKIE,
    LEVELS,
    NOBODY,
    OPEN,
    OPERATOR,
    PERSON,
    ROUTES,
    Who,
    dump,
    nothing_there,
    town,
)

GUARDED = [one for one in ROUTES if one.role != OPEN]
#: What people who are not in it, keys of other projects, and operators may see of a tenant.
WRONG = [one for one in ROUTES if one.scope]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def place(request, tmp_path_factory):
    """Two organisations, with two projects each."""
    home = tmp_path_factory.mktemp("town")
    database = None
    if request.param == "postgresql":
        database = request.getfixturevalue("postgres").new_database()
    with town(home, database) as found:
        found.settle(record(home / "sdk"))
        yield found


def routes_of(app):
    """Return the methods and paths of all routes."""
    found = set()
    for one in iter_route_contexts(app.routes):
        found |= {(method, one.path) for method in one.methods}
    return found


def told(answer):
    """Return what an answer says, but for the number of the request."""
    body = answer.json()
    body.pop("request_id", None)
    return answer.status_code, body


def test_every_route_is_in_the_table(place):
    there = routes_of(place.client.app)
    assert there == {(one.method, one.path) for one in ROUTES}


def test_only_these_routes_are_open():
    assert [str(one) for one in ROUTES if one.role == OPEN] == [
        "GET /health",
        "GET /ready",
        "POST /api/v1/login",
    ]


@pytest.fixture
def impostors(place):
    """Whoever presents nothing, or something that is not, or no longer, good."""
    red = place.tenants[0]
    admin = red.people["admin"]
    project = red.ids["project_id"]
    key = red.keys["member"].headers["Authorization"]
    changed = key[:-1] + ("A" if key[-1] != "A" else "B")
    number = key.removeprefix("Bearer mldbg_")[:16]

    expired, made = place.new_key(project, admin, days=1)
    revoked, gone = place.new_key(project, admin)
    place.done(admin, "DELETE", f"/projects/{project}/keys/{gone['id']}")
    out = place.new_person(red.ids["organization_id"], "out@red.test", "admin", place.operator)
    place.done(out, "POST", "/logout")
    late = place.new_person(red.ids["organization_id"], "l@red.test", "admin", place.operator)
    database = place.service.database
    with database.writing() as session:
        past = time.time_ns() - 1
        expires = update(KeyRow).where(col(KeyRow.id) == made["id"])
        session.execute(expires.values(expires_at=past))
        digest = place.service.credentials.digest(
            place.service.credentials.token(late.headers["Cookie"].partition("=")[2])
        )
        ended = update(SessionRow).where(col(SessionRow.digest) == digest)
        session.execute(ended.values(expires_at=past))

    cookie = admin.headers["Cookie"].partition("=")[2]
    token, _, signature = cookie.partition(".")
    other = late.headers["Cookie"].partition("=")[2]
    forged = URLSafeSerializer(b"guess", salt="ml-debugger session").dumps("token")
    cookies = {
        "forged cookie": forged,
        "cookie without signature": token,
        "cookie with another's signature": f"{token}.{other.partition('.')[2]}",
        "changed cookie": cookie[:-2] + ("AA" if cookie[-2:] != "AA" else "BB"),
        "changed token": f"{token[:-3]}AAA.{signature}",
        "empty cookie": "",
        "database's digest as cookie": digest,
    }
    csrf = {"X-CSRF-Token": admin.headers["X-CSRF-Token"]}
    return [
        NOBODY,
        Who("wrong secret", {"Authorization": changed}),
        Who("unknown key", {"Authorization": f"Bearer mldbg_{'0' * 16}_{'a' * 43}"}),
        Who("half a key", {"Authorization": f"Bearer mldbg_{number}_"}),
        Who("key's id", {"Authorization": f"Bearer {number}"}),
        Who("another scheme", {"Authorization": key.replace("Bearer", "Basic")}),
        Who("empty", {"Authorization": ""}),
        Who("key as cookie", {"Cookie": f"{COOKIE}={key.removeprefix('Bearer ')}"}),
        Who("cookie as key", {"Authorization": f"Bearer {cookie}"}),
        Who("proxy's header", {"X-User": "admin@localhost", "X-Forwarded-For": "127.0.0.1"}),
        expired,
        revoked,
        out,
        late,
        *(Who(k, {"Cookie": f"{COOKIE}={v}", **csrf}) for k, v in cookies.items()),
    ]


def test_nothing_answers_without_credentials(place, impostors):
    before = dump(place.service)
    real = place.tenants[0].ids
    for number, (who, route) in enumerate(product(impostors, GUARDED)):
        answer = place.at(who, route, real if number % 3 else nothing_there())
        assert answer.status_code == 401, f"{who.name}: {route}: {answer.text}"
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert set(answer.json()) == {"detail", "kind", "request_id"}
    assert dump(place.service) == before


def strangers(place, tenant):
    """Return who may not see a tenant: people of others, keys of others, and operators."""
    yield place.operator
    for other in place.tenants:
        far = other.ids["organization_id"] != tenant.ids["organization_id"]
        if far and other.name.endswith("one"):  # both projects have the same people
            yield from other.people.values()
        if other is not tenant:
            yield from other.keys.values()


@pytest.mark.parametrize("number", [0, 2])
def test_nobody_reaches_another_tenant(place, number):
    tenant = place.tenants[number]
    before = dump(place.service)
    names = {tenant.name, *tenant.ids.values()} - {"1", "2", "result.json"}
    baseline = {}
    for who in strangers(place, tenant):
        for route in WRONG:
            if who is place.operator and (route.operators or route.scope == "organization"):
                continue  # operators manage all of them
            answer = place.at(who, route, tenant.ids)
            key = (who.name, "Authorization" in who.headers, str(route))
            if key not in baseline:
                baseline[key] = told(place.at(who, route, nothing_there()))
            assert told(answer) == baseline[key], f"{who.name}: {route}"
            refused = 403 if route.scope == "organization" and key[1] else 404
            assert answer.status_code == refused, f"{who.name}: {route}: {answer.text}"
            assert not [one for one in names if one in answer.text]
    assert dump(place.service) == before


@pytest.mark.parametrize("number", range(4))
def test_lists_hold_what_is_ones_own(place, number):
    tenant = place.tenants[number]
    others = [one for one in place.tenants if one is not tenant]
    foreign = {one.name for one in others} | {
        value
        for one in others
        for name, value in one.ids.items()
        if name in ("project_id", "key_id", "job_id")
    }
    far = {
        value
        for one in others
        if one.ids["organization_id"] != tenant.ids["organization_id"]
        for name, value in one.ids.items()
        if name in ("organization_id", "user_id")
    }
    for who, route in product([*tenant.people.values(), *tenant.keys.values()], GUARDED):
        if route.method != "GET" or route.role == OPERATOR:
            continue
        text = place.at(who, route, tenant.ids).text
        hidden = foreign | far
        if who in tenant.people.values() and "{project_id}" not in route.path:
            hidden = far  # people see all projects of their organisation
        assert not [one for one in hidden if one in text], f"{who.name}: {route}"


CHILDREN = ("user_id", "key_id", "version_id", "job_id", "result_id")


@pytest.mark.parametrize("child", CHILDREN)
def test_ids_of_another_mean_nothing_on_ones_own_path(place, child):
    red, _, blue, sibling = place.tenants
    before = dump(place.service)
    # numbers are counted in each project: red has a second version and result, blue has not
    assert child not in ("version_id", "result_id") or red.ids[child] == "2"
    theirs = [red] if child in ("user_id", "version_id", "result_id") else [red, sibling]
    for other, route in product(theirs, ROUTES):
        if f"{{{child}}}" not in route.path:
            continue
        who = blue.people["admin"]
        answer = place.at(who, route, {**blue.ids, child: other.ids[child]})
        expected = told(place.at(who, route, {**blue.ids, child: nothing_there()[child]}))
        assert answer.status_code == 404, f"{route}: {answer.text}"
        if child not in ("version_id", "result_id"):
            assert told(answer) == expected
    assert dump(place.service) == before


def test_a_key_is_of_its_project_alone(place):
    red, sibling, *_ = place.tenants
    for role in ("viewer", "member"):
        found = place.done(red.keys[role], "GET", "/me")
        assert [one["id"] for one in found["projects"]] == [red.ids["project_id"]]
        assert found["organizations"] == []
        path = f"/projects/{sibling.ids['project_id']}"
        assert place.ask(red.keys[role], "GET", "/api/v1" + path).status_code == 404


def test_an_operator_reads_no_project(place):
    found = place.done(place.operator, "GET", "/me")
    mine = {one.ids["project_id"] for one in place.tenants}
    assert found["operator"]
    assert not mine & {one["id"] for one in found["projects"]}


def test_a_name_taken_by_another_is_free(place):
    red, _, blue, _ = place.tenants
    taken = place.done(red.people["admin"], "GET", f"/projects/{red.ids['project_id']}")["name"]
    path = f"/organizations/{blue.ids['organization_id']}/projects"
    made = place.done(blue.people["admin"], "POST", path, {"name": taken})
    place.done(blue.people["admin"], "DELETE", f"/projects/{made['id']}")
    found = place.done(red.people["admin"], "GET", f"/projects/{red.ids['project_id']}")
    assert found["name"] == taken


def test_an_admin_cannot_take_over_an_account(place):
    """Nor learn a name: who makes an account knows its first password."""
    red, _, blue, _ = place.tenants
    there = f"/api/v1/organizations/{red.ids['organization_id']}/members"
    before = dump(place.service)
    for email in ("member@blue.test", "MEMBER@BLUE.TEST", "\uff4dember@blue.test"):
        given = {"email": email, "role": "viewer"}
        answer = place.ask(red.people["admin"], "POST", there, given)
        assert answer.status_code == 403
        assert blue.ids["user_id"] not in answer.text
    assert dump(place.service) == before
    given = {"email": "member@blue.test", "role": "viewer"}
    made = place.ask(place.operator, "POST", there, given)
    assert made.status_code == 201
    assert made.json()["password"] is None
    place.done(
        place.operator,
        "DELETE",
        f"/organizations/{red.ids['organization_id']}/members/{made.json()['user_id']}",
    )


def test_what_goes_leaves_the_others(place):
    """A project is deleted with all that is in it, and nothing else."""
    red, _, blue, _ = place.tenants
    admin, path = blue.people["admin"], f"/organizations/{blue.ids['organization_id']}/projects"
    before = dump(place.service)
    made = place.done(admin, "POST", path, {"name": "short"})
    key, _ = place.new_key(made["id"], admin)
    place.done(admin, "DELETE", f"/projects/{made['id']}")
    assert place.ask(key, "GET", "/api/v1/me").status_code == 401
    after = dump(place.service)
    del after[f"unfinished/{made['id']}"]  # by which what was being written is found a day later
    assert after == before
    assert place.done(red.keys["viewer"], "GET", f"/projects/{red.ids['project_id']}/results")


def test_levels_are_the_roles():
    from ml_debugger.server.people import Role

    assert tuple(Role) == LEVELS
    assert {one.role for one in WRONG} <= {*LEVELS, OPERATOR, PERSON}
