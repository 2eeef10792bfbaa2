"""Who may do what, and how the service finds out who it is."""

import json
import logging
import sqlite3
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from pydantic import ValidationError
from sqlalchemy import delete, event, update
from sqlmodel import col, select
from starlette.testclient import TestClient

from ml_debugger.server.app import create_app
from ml_debugger.server.observe import Lines
from ml_debugger.server.people import SHORTEST_PASSWORD, first_login, reset_password
from ml_debugger.server.settings import Settings
from ml_debugger.server.tables import KeyRow, OrganizationRow, ProjectRow, SessionRow, UserRow

from .tenants import (
    ANYONE,
    BASE,
    COOKIE,
    LEVELS,
    NOBODY,
    OPEN,
    OPERATOR,
    PERSON,
    ROUTES,
    Town,
    Who,
    nothing_there,
    town,
)

UNSAFE = [one for one in ROUTES if one.unsafe and one.role != OPEN]
LOGIN = "/api/v1/login"


class Small:
    """One organisation with an admin, a member and a viewer, and a project."""

    def __init__(self, place):
        self.place = place
        self.organization = place.new_organization("org")
        self.people = {
            role: place.new_person(self.organization, f"{role}@org.test", role, place.operator)
            for role in LEVELS
        }
        self.project = place.new_project(self.organization, self.people["admin"])
        place.leave(self.organization)

    @property
    def ids(self):
        """Ids for paths: the organisation and the project are there, nothing else is."""
        known = {"organization_id": self.organization, "project_id": self.project}
        return {**nothing_there(), **known}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    with town(tmp_path_factory.mktemp("small")) as place:
        yield Small(place)


@pytest.fixture
def place(small):
    return small.place


def from_(place, address):
    """Return the same service, asked from an address."""
    app = place.client.app
    client = TestClient(app, BASE, raise_server_exceptions=False, client=(address, 1234))
    return Town(client, place.service)


def try_login(place, email, password, **more):
    return place.ask(NOBODY, "POST", LOGIN, {"email": email, "password": password}, **more)


class TestRoles:
    @pytest.mark.parametrize("route", [one for one in ROUTES if one.role != OPEN], ids=str)
    def test_each_route_lets_in_whom_it_should(self, small, route):
        place, admin = small.place, small.people["admin"]
        ids = small.ids
        if route.path == "/api/v1/logout":
            return  # `test_logout_ends_the_session`
        if route.scope == "project":
            ids["project_id"] = place.new_project(small.organization, admin, f"for {route}")
        for number, role in enumerate(LEVELS):
            status = place.at(small.people[role], route, ids).status_code
            if route.role in (ANYONE, PERSON):
                assert status in (200, 403)
                assert status == 200 or route.path.endswith("/password")  # the old one is wrong
            elif route.role == OPERATOR or number < LEVELS.index(route.role):
                assert status == 403
            else:
                assert status not in (401, 403)
                assert status < 500
        if route.method == "DELETE" and route.operators:  # the admin has deleted it
            ids["project_id"] = place.new_project(small.organization, admin, f"again, {route}")
        answer = place.at(place.operator, route, ids)
        if route.scope == "project" and not route.operators:
            assert answer.status_code == 404
        elif "{user_id}" not in route.path and "{key_id}" not in route.path:
            assert answer.status_code not in (401, 404), answer.text

    @pytest.mark.parametrize("route", [one for one in ROUTES if one.role != OPEN], ids=str)
    def test_each_route_lets_in_the_keys_it_should(self, small, route):
        place, ids = small.place, small.ids
        for role in ("viewer", "member"):
            key, _ = place.new_key(small.project, small.people["admin"], role=role)
            answer = place.at(key, route, ids)
            status = answer.status_code
            if route.keys and LEVELS.index(role) >= LEVELS.index(route.role):
                assert status not in (401, 403)
                assert status < 500
            elif route.role == ANYONE:
                assert status == 200
            else:
                assert status == 403, answer.text

    def test_a_role_holds_at_once(self, small):
        place, admin = small.place, small.people["admin"]
        path = f"/organizations/{small.organization}/members"
        who = place.new_person(small.organization, "moving@org.test", "viewer", place.operator)
        number = next(
            one["user_id"]
            for one in place.done(admin, "GET", path)
            if one["email"] == "moving@org.test"
        )
        keys = f"/api/v1/projects/{small.project}/keys"
        assert place.ask(who, "GET", keys).status_code == 403
        place.done(admin, "PUT", f"{path}/{number}", {"role": "admin"})
        assert place.ask(who, "GET", keys).status_code == 200
        place.done(admin, "DELETE", f"{path}/{number}")
        assert place.ask(who, "GET", keys).status_code == 404

    def test_an_organisation_keeps_an_admin(self, small):
        place, admin = small.place, small.people["admin"]
        organization = place.new_organization("alone")
        (mine,) = place.done(place.operator, "GET", f"/organizations/{organization}/members")
        path = f"/api/v1/organizations/{organization}/members/{mine['user_id']}"
        for method, body in (("DELETE", None), ("PUT", {"role": "member"})):
            assert place.ask(place.operator, method, path, body).status_code == 409
        (still,) = place.done(place.operator, "GET", f"/organizations/{organization}/members")
        assert still["role"] == "admin"
        assert place.ask(admin, "DELETE", path).status_code == 404

    def test_nobody_becomes_an_operator(self, small):
        """Not by a field that is not asked for, either."""
        place, admin = small.place, small.people["admin"]
        path = f"/api/v1/organizations/{small.organization}/members"
        given = {"email": "rise@org.test", "role": "admin"}
        for more in ({"operator": True}, {"id": "0" * 32}, {"password": "x" * 20}):
            assert place.ask(admin, "POST", path, {**given, **more}).status_code == 422
        for role in ("operator", "Admin", "", None, 3, ["admin"]):
            assert place.ask(admin, "POST", path, {**given, "role": role}).status_code == 422
        key = {"name": "k", "role": "member"}
        keys = f"/api/v1/projects/{small.project}/keys"
        for more in ({"role": "admin"}, {"user_id": "0" * 32}, {"project_id": "0" * 32}):
            assert place.ask(admin, "POST", keys, {**key, **more}).status_code == 422


class TestKeys:
    def test_shown_once(self, small):
        place, admin = small.place, small.people["admin"]
        key, made = place.new_key(small.project, admin, name="once")
        assert made["key"].startswith("mldbg_")
        listed = place.done(admin, "GET", f"/projects/{small.project}/keys")
        assert all(one["key"] is None for one in listed)
        secret = made["key"].rpartition("_")[2]
        for path in (f"/projects/{small.project}/keys", "/me"):
            for who in (key, admin):
                assert secret not in place.ask(who, "GET", "/api/v1" + path).text
        with place.service.database.reading() as session:
            row = session.get_one(KeyRow, made["id"])
            assert secret not in repr(row)
            assert row.digest == place.service.credentials.digest(made["key"])

    def test_expires(self, small):
        place = small.place
        key, made = place.new_key(small.project, small.people["admin"], days=0.5)
        assert place.ask(key, "GET", "/api/v1/me").status_code == 200
        with place.service.database.writing() as session:
            row = update(KeyRow).where(col(KeyRow.id) == made["id"])
            session.execute(row.values(expires_at=time.time_ns()))
        assert place.ask(key, "GET", "/api/v1/me").status_code == 401

    @pytest.mark.parametrize("days", [0, -1, 40000, 1e400, "NaN"])
    def test_days_are_bounded(self, small, days):
        path = f"/api/v1/projects/{small.project}/keys"
        body = f'{{"name": "k", "days": {str(days).replace("inf", "Infinity")}}}'
        answer = small.place.client.post(
            path,
            content=body,
            headers={**small.people["admin"].headers, "Content-Type": "application/json"},
        )
        assert answer.status_code == 422

    def test_revoked_at_once(self, small):
        place, admin = small.place, small.people["admin"]
        key, made = place.new_key(small.project, admin)
        assert place.ask(key, "GET", "/api/v1/me").status_code == 200
        place.done(admin, "DELETE", f"/projects/{small.project}/keys/{made['id']}")
        assert place.ask(key, "GET", "/api/v1/me").status_code == 401
        path = f"/api/v1/projects/{small.project}/keys/{made['id']}"
        assert place.ask(admin, "DELETE", path).status_code == 404

    def test_says_when_it_was_used(self, small):
        place, admin = small.place, small.people["admin"]
        key, made = place.new_key(small.project, admin)
        assert made["last_used_at"] is None
        place.ask(
            key.but(Authorization=key.headers["Authorization"][:-1] + "-"), "GET", "/api/v1/me"
        )

        def used():
            listed = place.done(admin, "GET", f"/projects/{small.project}/keys")
            return next(one["last_used_at"] for one in listed if one["id"] == made["id"])

        assert used() is None  # a guess is no use
        place.done(key, "GET", "/me")
        assert used() is not None

    @pytest.mark.parametrize("where", ["sqlite", "postgres"])
    def test_reads_where_its_use_cannot_be_stored(self, where, request, tmp_path):
        database = None
        if where == "postgres":
            database = request.getfixturevalue("postgres").new_database()

        def only_reads(connection, *_):
            if where == "postgres":
                connection.read_only = True
            else:
                connection.execute("PRAGMA query_only = ON")

        with town(tmp_path, database) as place:
            organization = place.new_organization("org")
            project = place.new_project(organization, place.operator)
            key, made = place.new_key(project, place.operator)
            engine = place.service.database.engine
            event.listen(engine, "checkout", only_reads)
            assert place.ask(key, "GET", "/api/v1/me").status_code == 200
            with place.service.database.reading() as session:
                assert session.get_one(KeyRow, made["id"]).last_used_at is None
            answer = place.ask(place.operator, "POST", "/api/v1/organizations", {"name": "new"})
            assert answer.status_code == 503  # who writes is asked to try again
            event.remove(engine, "checkout", only_reads)
            engine.dispose()

    def test_is_no_stronger_than_who_made_it(self, small):
        place, admin = small.place, small.people["admin"]
        who = place.new_person(small.organization, "maker@org.test", "admin", place.operator)
        key, made = place.new_key(small.project, who)
        path = f"/organizations/{small.organization}/members/{made['user_id']}"
        versions = f"/api/v1/projects/{small.project}/versions"
        assert place.ask(key, "POST", versions, {}).status_code == 422
        place.done(admin, "PUT", path, {"role": "viewer"})
        assert place.ask(key, "POST", versions, {}).status_code == 403
        assert place.ask(key, "GET", versions).status_code == 200
        place.done(admin, "PUT", path, {"role": "admin"})
        assert place.ask(key, "POST", versions, {}).status_code == 422
        place.done(admin, "DELETE", path)
        assert place.ask(key, "GET", versions).status_code == 401


class TestLogin:
    def test_says_the_same_whatever_was_wrong(self, place):
        answers = [
            try_login(place, "viewer@org.test", "wrong" * 4),
            try_login(place, "nobody@org.test", "wrong" * 4),
            try_login(place, "viewer@org.test", ""),
        ]
        for one in answers:
            assert one.status_code == 401
            assert one.json() | {"request_id": ""} == answers[0].json() | {"request_id": ""}
            assert "set-cookie" not in one.headers

    def test_without_a_password_nobody_logs_in(self, small):
        """As those are who come through a reverse proxy."""
        place = small.place
        place.new_person(small.organization, "proxied@org.test", "viewer", place.operator)
        with place.service.database.writing() as session:
            row = update(UserRow).where(col(UserRow.email) == "proxied@org.test")
            session.execute(row.values(password=None))
        for word in ("", "None", "null"):
            assert try_login(place, "proxied@org.test", word).status_code == 401

    def test_one_person_however_the_address_is_typed(self, small):
        place = small.place
        path = f"/organizations/{small.organization}/members"
        made = place.done(
            place.operator, "POST", path, {"email": "JOS\u00c9@Org.test", "role": "viewer"}
        )
        for email in ("jose\u0301@org.test", "jos\u00e9@ORG.TEST", "\uff4aos\u00e9@org.test"):
            assert try_login(place, email, made["password"]).status_code == 200
            again = place.ask(
                place.operator, "POST", "/api/v1" + path, {"email": email, "role": "viewer"}
            )
            assert again.status_code == 422

    @pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
    def test_forms_of_other_sites_are_not_taken(self, place, kind):
        headers = {} if kind is None else {"Content-Type": kind}
        body = b'{"email": "viewer@org.test", "password": "wrong wrong wrong"}'
        answer = place.client.post(LOGIN, content=body, headers=headers)
        assert answer.status_code == 422

    @pytest.mark.parametrize("root", ["", "/ml"])
    @pytest.mark.parametrize("secure", [True, False])
    def test_the_cookie_is_for_the_browser_alone(self, tmp_path, root, secure):
        with town(tmp_path, root_path=root, secure_cookies=secure) as place:
            made = place.service.credentials
            word = "right " * 4
            with place.service.database.writing() as session:
                session.execute(update(UserRow).values(password=made.hash_password(word)))
            answer = try_login(place, "admin@localhost", word)
            parts = [one.strip() for one in answer.headers["set-cookie"].split(";")]
            assert parts[0].startswith(f"{COOKIE}=")
            flags = {one.lower() for one in parts[1:]}
            expected = {"httponly", "samesite=lax", f"path={root or '/'}", "max-age=43200"}
            assert flags == expected | ({"secure"} if secure else set())

    def test_a_cookie_from_before_is_not_taken_up(self, small):
        place = small.place
        mine = place.new_person(small.organization, "fix@org.test", "viewer", place.operator)
        signed = place.service.credentials.cookie("chosen by somebody else")
        old = mine.headers["Cookie"]
        made = place.done(
            small.people["admin"],
            "POST",
            f"/organizations/{small.organization}/members",
            {"email": "victim@org.test", "role": "viewer"},
        )
        for planted in (f"{COOKIE}=abc", f"{COOKIE}={signed}", old):
            answer = try_login(
                place, "victim@org.test", made["password"], headers={"Cookie": planted}
            )
            assert answer.cookies[COOKIE] not in planted
            found = place.ask(Who("", {"Cookie": planted}), "GET", "/api/v1/me")
            if planted == old:
                assert found.json()["email"] == "fix@org.test"
            else:
                assert found.status_code == 401

    def test_logout_ends_the_session(self, small):
        place = small.place
        who = place.new_person(small.organization, "leaving@org.test", "viewer", place.operator)
        answer = place.ask(who, "POST", "/api/v1/logout")
        assert answer.status_code == 204
        assert 'ml_debugger_session=""' in answer.headers["set-cookie"]
        assert place.ask(who, "GET", "/api/v1/me").status_code == 401


class TestPasswords:
    @pytest.fixture
    def somebody(self, small, request):
        email = f"{request.node.name[:40]}@org.test".replace("[", "-").replace("]", "")
        path = f"/organizations/{small.organization}/members"
        given = {"email": email, "role": "viewer"}
        made = small.place.done(small.people["admin"], "POST", path, given)
        return email, made["password"]

    def test_a_change_ends_other_logins(self, place, somebody):
        email, old = somebody
        here, there = place.login(email, old), place.login(email, old)
        new = "correct horse e\u0301 battery"
        body = {"old": old, "new": new}
        assert place.ask(here, "PUT", "/api/v1/me/password", body).status_code == 204
        assert place.ask(here, "GET", "/api/v1/me").status_code == 200
        assert place.ask(there, "GET", "/api/v1/me").status_code == 401
        assert try_login(place, email, old).status_code == 401
        assert try_login(place, email, new).status_code == 200
        # as another keyboard writes the same
        assert try_login(place, email, "correct horse \u00e9 battery").status_code == 200

    @pytest.mark.parametrize("length", [0, SHORTEST_PASSWORD - 1, 257, 1001])
    def test_neither_short_nor_endless(self, place, somebody, length):
        email, old = somebody
        who = place.login(email, old)
        new = "\u00e4" * length
        answer = place.ask(who, "PUT", "/api/v1/me/password", {"old": old, "new": new})
        assert answer.status_code == 422
        assert "\u00e4" not in answer.text
        assert old not in answer.text
        assert try_login(place, email, old).status_code == 200

    def test_the_old_one_is_needed(self, place, somebody):
        email, old = somebody
        who = place.login(email, old)
        body = {"old": "a wrong one, yes", "new": "long enough, this"}
        assert place.ask(who, "PUT", "/api/v1/me/password", body).status_code == 403
        assert try_login(place, email, old).status_code == 200

    @pytest.fixture
    def reset(self, place, somebody, monkeypatch):
        """Reset the password right after the old one is found to be right; the new one is told."""
        told = []
        check = place.service.credentials.is_password

        def meanwhile(*given):
            right = check(*given)
            told.append(reset_password(place.service, somebody[0]))
            return right

        def begin():
            monkeypatch.setattr(place.service.credentials, "is_password", meanwhile)
            return told

        return begin

    def test_a_login_does_not_outlive_a_reset(self, place, somebody, reset):
        email, old = somebody
        wrong = try_login(place, email, "a wrong one, yes")
        reset()
        answer = try_login(place, email, old)
        assert answer.status_code == 401
        assert answer.json() | {"request_id": ""} == wrong.json() | {"request_id": ""}
        assert "set-cookie" not in answer.headers
        with place.service.database.reading() as session:
            user = select(UserRow.id).where(UserRow.email == email).scalar_subquery()
            assert session.exec(select(SessionRow).where(SessionRow.user_id == user)).all() == []

    def test_a_change_does_not_undo_a_reset(self, place, somebody, reset, monkeypatch):
        email, old = somebody
        who = place.login(email, old)
        told = reset()
        body = {"old": old, "new": "long enough, this"}
        assert place.ask(who, "PUT", "/api/v1/me/password", body).status_code == 403
        monkeypatch.undo()
        assert try_login(place, email, body["new"]).status_code == 401
        assert try_login(place, email, told[0]).status_code == 200


class TestOtherSites:
    """What a page of another site can have a browser send: the cookie, and no header."""

    @pytest.mark.parametrize("route", UNSAFE, ids=str)
    def test_the_cookie_alone_changes_nothing(self, small, route):
        place, admin = small.place, small.people["admin"]
        other = small.people["member"].headers["X-CSRF-Token"]
        for shown in (None, "", "x", other, "\u00e9\u00ff", admin.headers["X-CSRF-Token"].upper()):
            who = admin.but(X_CSRF_Token=None if shown is None else shown.encode("latin-1"))
            answer = place.at(who, route, small.ids)
            assert answer.status_code == 403, f"{shown!r}: {answer.text}"
            assert "X-CSRF-Token" in answer.json()["detail"]

    def test_reading_needs_the_cookie_alone(self, small):
        who = small.people["admin"].but(X_CSRF_Token=None)
        assert small.place.ask(who, "GET", "/api/v1/me").status_code == 200

    def test_no_other_site_is_told_anything(self, small):
        """Neither by CORS, nor from a cache, nor as a page."""
        headers = {"Origin": "https://evil.test"}
        answer = small.place.ask(small.people["admin"], "GET", "/api/v1/me", headers=headers)
        assert not [one for one in answer.headers if one.startswith("access-control")]
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        asked = {**headers, "Access-Control-Request-Method": "POST"}
        answer = small.place.client.options("/api/v1/organizations", headers=asked)
        assert answer.status_code == 405
        assert not [one for one in answer.headers if one.startswith("access-control")]

    @pytest.mark.parametrize("error", [RuntimeError, OSError])
    def test_not_even_by_a_fault(self, small, monkeypatch, error):
        def fail(_number):
            raise error("somebody's data")

        monkeypatch.setattr(small.place.service.projects, "store", fail)
        path = f"/api/v1/projects/{small.project}/versions"
        headers = {"X-Request-Id": "mine"}
        answer = small.place.ask(small.people["admin"], "GET", path, headers=headers)
        assert answer.status_code == 500
        assert answer.json()["request_id"] == "mine"
        assert "somebody's" not in answer.text
        told = ("X-Request-Id", "Cache-Control", "X-Content-Type-Options")
        found = [answer.headers.get_list(name) for name in told]  # each once
        assert found == [["mine"], ["no-store"], ["nosniff"]]


class TestMethods:
    @pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "TRACE", "CONNECT", "PATCH", "FOO"])
    def test_others_do_nothing(self, small, method):
        for route in ROUTES:
            if method == "PATCH" and route.method == "PATCH":
                continue
            path = route.path.format(**small.ids)
            answer = small.place.ask(small.people["admin"], method, path, headers={"X-A": "mark"})
            assert answer.status_code == 405, f"{method} {path}"
            assert "mark" not in answer.text

    def test_nobody_is_sent_elsewhere(self, small):
        for route in ROUTES:
            path = route.path.format(**small.ids)
            for one in (f"{path}/", f"/{path}", f"//evil.test{path}"):
                answer = small.place.client.request(
                    route.method,
                    f"{BASE}{one}",
                    headers={"Host": "evil.test"},
                    follow_redirects=False,
                )
                assert answer.status_code in (404, 405), one
                assert "location" not in answer.headers
                assert "evil.test" not in answer.text


class TestRates:
    @pytest.fixture
    def strict(self, tmp_path):
        with town(tmp_path, login_rate="3/minute", key_rate="3/minute") as place:
            yield place

    def test_an_account_is_not_guessed_from_many_addresses(self, strict):
        emails = ["admin@localhost", "ADMIN@localhost", "\uff41dmin@localhost"]
        for number, email in enumerate(emails):
            answer = try_login(from_(strict, f"10.0.0.{number}"), email, "wrong")
            assert answer.status_code == 401
        answer = try_login(from_(strict, "10.0.0.9"), "admin@localhost", strict.password)
        assert answer.status_code == 429
        assert 1 <= int(answer.headers["Retry-After"]) <= 61
        assert try_login(from_(strict, "10.0.0.9"), "other@localhost", "no").status_code == 401

    def test_an_address_does_not_guess_many_accounts(self, strict):
        there = from_(strict, "10.0.0.1")
        for number in range(3):
            assert try_login(there, f"user{number}@localhost", "wrong").status_code == 401
        answer = try_login(there, "admin@localhost", strict.password)
        assert answer.status_code == 429
        assert int(answer.headers["Retry-After"]) >= 1
        assert try_login(from_(strict, "10.0.0.2"), "admin@localhost", strict.password).is_success

    def test_an_ipv6_network_is_one_address(self, strict):
        for number in range(3):
            there = from_(strict, f"2001:db8::{number}:1")
            assert try_login(there, f"user{number}@localhost", "wrong").status_code == 401
        assert try_login(from_(strict, "2001:db8::f"), "x@localhost", "wrong").status_code == 429
        assert try_login(from_(strict, "2001:db8:1::f"), "x@localhost", "w").status_code == 401

    def test_a_burst_is_counted_too(self, strict):
        clients = [from_(strict, "10.0.0.1") for _ in range(24)]
        start = threading.Barrier(len(clients))

        def guess(there):
            start.wait()
            return try_login(there, "admin@localhost", "wrong").status_code

        with ThreadPoolExecutor(len(clients)) as pool:
            found = list(pool.map(guess, clients))
        assert set(found) <= {401, 429, 503}
        assert found.count(401) <= 3

    def test_the_old_password_is_not_guessed(self, strict):
        for _ in range(3):
            body = {"old": "wrong", "new": "long enough, this"}
            answer = strict.ask(strict.operator, "PUT", "/api/v1/me/password", body)
            assert answer.status_code == 403
        body = {"old": strict.password, "new": "long enough, this"}
        answer = strict.ask(strict.operator, "PUT", "/api/v1/me/password", body)
        assert answer.status_code == 429

    def test_keys_are_not_guessed(self, strict):
        there = from_(strict, "10.0.0.1")
        shown = next(one for one in strict.secrets if one.startswith("mldbg_"))
        right = strict.with_key("right", shown)
        wrong = strict.with_key("wrong", shown[:-2] + "__")
        assert there.ask(right, "GET", "/api/v1/me").status_code == 200
        for _ in range(3):
            assert there.ask(wrong, "GET", "/api/v1/me").status_code == 401
        answer = there.ask(wrong, "GET", "/api/v1/me")
        assert answer.status_code == 429
        assert int(answer.headers["Retry-After"]) >= 1
        # who shares the address and has a key is not kept out
        assert there.ask(right, "GET", "/api/v1/me").status_code == 200
        assert from_(strict, "10.0.0.2").ask(wrong, "GET", "/api/v1/me").status_code == 401

    def test_the_metrics_token_is_not_guessed(self, tmp_path):
        token = "a token of some length"
        with town(tmp_path, metrics_token=token, key_rate="3/minute") as place:
            right = place.with_key("right", token)
            assert place.ask(right, "GET", "/metrics").status_code == 200
            for shown in ("", "a token", token + "x"):
                wrong = place.with_key("wrong", shown)
                assert place.ask(wrong, "GET", "/metrics").status_code == 401
            assert place.ask(right, "GET", "/metrics").status_code == 429


@pytest.fixture(scope="module")
def proxied(tmp_path_factory):
    home = tmp_path_factory.mktemp("proxied")
    settings = {"user_header": "X-User", "trusted_proxies": ["10.1.0.0/16", "fd00::/8"]}
    settings["password_login"] = True  # for the operator to make what is needed
    with town(home, key_rate="3/minute", **settings) as place:
        yield place


@pytest.fixture(scope="module")
def team(tmp_path_factory, postgres):
    home = tmp_path_factory.mktemp("team")
    with town(home, postgres.new_database()) as place:
        yield place


class TestProxy:
    """Those that a reverse proxy has authenticated."""

    INSIDE, OUTSIDE = "10.1.0.5", "10.2.0.5"

    def named(self, email, **headers):
        return Who(email, {"X-User": email, **headers})

    @pytest.mark.parametrize("address", [INSIDE, "fd00::1"])
    def test_it_is_believed(self, proxied, address):
        there = from_(proxied, address)
        for more in ({}, {"X-Forwarded-For": "203.0.113.9"}, {"X-Forwarded-For": "10.1.2.3"}):
            answer = there.ask(self.named("Admin@LocalHost", **more), "GET", "/api/v1/me")
            assert answer.status_code == 200, answer.text
            assert answer.json()["email"] == "admin@localhost"

    @pytest.mark.parametrize("address", [OUTSIDE, "testclient", "", "::ffff:10.2.0.5", "127.0.0.1"])
    def test_nobody_else_is(self, proxied, address):
        there = from_(proxied, address)
        for more in ({}, {"X-Forwarded-For": self.INSIDE}, {"Forwarded": f"for={self.INSIDE}"}):
            answer = there.ask(self.named("admin@localhost", **more), "GET", "/api/v1/me")
            assert answer.status_code == 401

    def test_two_names_are_none(self, proxied):
        there = from_(proxied, self.INSIDE)
        named = [("X-User", "admin@localhost"), ("X-User", "somebody@localhost")]
        for headers in (named, named[::-1]):
            assert there.client.get("/api/v1/me", headers=headers).status_code == 401

    def test_strangers_are_told_to_ask(self, proxied):
        there = from_(proxied, self.INSIDE)
        for email in ("new@localhost", "", "a\x00b", "\u00e9@x".encode().decode("latin-1")):
            answer = there.client.get("/api/v1/me", headers=[("X-User", email.encode("latin-1"))])
            assert answer.status_code == 403

    def test_other_sites_are_kept_out_there_too(self, proxied):
        there = from_(proxied, self.INSIDE)
        who = self.named("admin@localhost")
        body = {"name": "made through a proxy"}
        assert there.ask(who, "POST", "/api/v1/organizations", body).status_code == 403
        organization = proxied.new_organization("else")
        proxied.new_person(organization, "else@localhost", "viewer", proxied.operator)
        other = there.done(self.named("else@localhost"), "GET", "/me")["csrf_token"]
        wrong = who.but(X_CSRF_Token=other)
        assert there.ask(wrong, "POST", "/api/v1/organizations", body).status_code == 403
        right = who.but(X_CSRF_Token=there.done(who, "GET", "/me")["csrf_token"])
        assert there.ask(right, "POST", "/api/v1/organizations", body).status_code == 201

    def test_passwords_are_for_those_who_ask_for_them(self, tmp_path):
        """A second way in, past what the proxy asks of people, would be nobody's intention."""
        settings = Settings(data=tmp_path, user_header="X-User")
        with TestClient(create_app(settings), base_url=BASE) as client:
            first = first_login(client.app.state.service)
            answer = client.post(LOGIN, json={"email": first.email, "password": first.password})
        assert answer.status_code == 403
        assert "at the proxy" in answer.json()["detail"]

    def test_an_old_cookie_is_in_nobodys_way(self, proxied):
        there = from_(proxied, self.INSIDE)
        who = self.named("admin@localhost", Cookie=f"{COOKIE}=of.another-time")
        assert there.ask(who, "GET", "/api/v1/me").status_code == 200

    def test_failures_are_counted_by_who_is_behind_it(self, proxied):
        there = from_(proxied, self.INSIDE)

        def guess(town_, forwarded):
            headers = {"Authorization": "Bearer mldbg_no", "X-Forwarded-For": forwarded}
            return town_.ask(Who("", headers), "GET", "/api/v1/me").status_code

        # the last address is the proxy's word, those before it anyone's
        found = [guess(there, f"198.51.100.{number}, 203.0.113.7") for number in range(4)]
        assert found == [401, 401, 401, 429]
        assert guess(there, "203.0.113.8") == 401
        outside = from_(proxied, self.OUTSIDE)
        found = [guess(outside, f"198.51.100.{number}") for number in range(4)]
        assert found == [401, 401, 401, 429]


class TestAtOnce:
    """What two requests do at the same time, where the database lets them."""

    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("PUT", "/organizations/{organization_id}/quotas", {}),
            ("DELETE", "/organizations/{organization_id}", None),
            ("PUT", "/projects/{project_id}", {"name": "renamed"}),
        ],
    )
    def test_what_goes_meanwhile_is_not_found(self, place, monkeypatch, method, path, body):
        organization = place.new_organization(f"going, {method} {path}")
        project = place.new_project(organization, place.operator)
        database = place.service.database
        writing = database.writing

        @contextmanager
        def meanwhile():
            with writing() as session:
                session.execute(delete(ProjectRow).where(col(ProjectRow.id) == project))
                session.execute(
                    delete(OrganizationRow).where(col(OrganizationRow.id) == organization)
                )
            with writing() as session:
                yield session

        monkeypatch.setattr(database, "writing", meanwhile)
        ids = {"organization_id": organization, "project_id": project}
        answer = place.ask(place.operator, method, "/api/v1" + path.format(**ids), body)
        assert answer.status_code == 404, answer.text
        assert "there is no such" in answer.json()["detail"]

    def both(self, *acts):
        start = threading.Barrier(len(acts))

        def one(act):
            start.wait()
            return act()

        with ThreadPoolExecutor(len(acts)) as pool:
            return [found.status_code for found in pool.map(one, acts)]

    def test_admins_do_not_remove_each_other(self, team):
        organization = team.new_organization("two admins")
        path = f"/organizations/{organization}/members"
        admin = team.new_person(organization, "second@x", "admin", team.operator)
        ids = [one["user_id"] for one in team.done(admin, "GET", path)]
        there = [from_(team, "10.0.0.1") for _ in ids]
        for number in range(8):
            statuses = self.both(
                *(
                    lambda ask=one.ask, who=who: ask(
                        team.operator, "PUT", f"/api/v1{path}/{who}", {"role": "member"}
                    )
                    for one, who in zip(there, ids, strict=True)
                )
            )
            assert sorted(statuses) == [200, 409], number
            for who in ids:
                team.done(team.operator, "PUT", f"{path}/{who}", {"role": "admin"})

    def test_a_name_is_taken_once(self, team):
        organization = team.new_organization("names")
        there = [from_(team, "10.0.0.1") for _ in range(4)]
        for number in range(4):
            for path, body in (
                ("/organizations", {"name": f"name {number}"}),
                (f"/organizations/{organization}/projects", {"name": f"name {number}"}),
                (
                    f"/organizations/{organization}/members",
                    {"email": f"{number}@x", "role": "viewer"},
                ),
            ):
                statuses = self.both(
                    *(
                        lambda ask=one.ask, path=path, body=body: ask(
                            team.operator, "POST", "/api/v1" + path, body
                        )
                        for one in there
                    )
                )
                assert statuses.count(201) == 1, (path, statuses)
                assert set(statuses) <= {201, 409, 422}, (path, statuses)

    def test_a_refused_project_leaves_no_schema(self, team):
        organization = team.new_organization("schemas")
        team.new_project(organization, team.operator)

        def schemas():
            with team.service.database.engine.connect() as connection:
                query = "SELECT count(*) FROM pg_namespace WHERE starts_with(nspname, 'project')"
                return connection.exec_driver_sql(query).scalar()

        before = schemas()
        path = f"/api/v1/organizations/{organization}/projects"
        assert team.ask(team.operator, "POST", path, {"name": "p"}).status_code == 422
        assert schemas() == before


class TestSecrets:
    def test_none_is_on_disk_or_in_the_log(self, tmp_path, caplog):
        caplog.set_level(logging.DEBUG)
        with town(tmp_path) as place:
            small = Small(place)
            small.place.new_key(small.project, small.people["admin"])
            try_login(place, "admin@localhost", "a wrong password")
            place.secrets.add("a wrong password")
            place.ask(Who("", {"Authorization": "Bearer mldbg_mistyped"}), "GET", "/api/v1/me")
            place.secrets.add("mldbg_mistyped")
            assert len(place.secrets) > 15
            files = [one for one in (tmp_path / "data").rglob("*") if one.is_file()]
            kept = [one.read_bytes() for one in files if one.name != "secret"]
            key = (tmp_path / "data" / "secret").read_text()
            for secret in [*place.secrets, key]:
                assert not [one for one in kept if secret.encode() in one]
                assert secret not in caplog.text
        assert "/login" in caplog.text or "request" in caplog.text

    @pytest.mark.parametrize("name", ["secret", "metrics_token"])
    @pytest.mark.parametrize("value", ["", "short"])
    def test_an_empty_setting_is_no_secret(self, tmp_path, name, value):
        with pytest.raises(ValidationError, match="at least"):
            Settings(data=tmp_path, **{name: value})

    def test_the_files_are_their_owners(self, tmp_path):
        with town(tmp_path) as place:
            data = place.service.settings.data
            assert data.stat().st_mode & 0o77 == 0
            assert (data / "secret").stat().st_mode & 0o77 == 0

    def test_a_fault_is_logged_without_what_it_says(self):
        """That may repeat what somebody sent; its kind and its frames do not."""
        try:
            try:
                raise ValueError("somebody's")
            except ValueError as error:
                raise RuntimeError("data") from error
        except RuntimeError:
            record = logging.LogRecord("x", logging.ERROR, "", 1, "fault", (), sys.exc_info())
        line = Lines("%(message)s").format(record)
        told = json.loads(line)["exc_info"].splitlines()
        assert "RuntimeError" in told
        assert "ValueError" in told
        assert not [one for one in told if one.startswith(("RuntimeError:", "ValueError:"))]

    def test_names_are_not_told_by_the_database(self, small):
        """An error's text would be in the log."""
        with (
            pytest.raises(Exception, match="UNIQUE") as caught,
            small.place.service.database.writing() as session,
        ):
            session.add(OrganizationRow(id="x" * 32, name="org", created_at=0))
        assert "x" * 32 not in str(caught.value)


def test_what_another_version_has_stored_is_unavailable(tmp_path):
    """The log says which file, and what to do; whoever asks has no use for it."""
    with town(tmp_path) as place:
        organization = place.new_organization("org")
        project = place.new_project(organization, place.operator)
        with sqlite3.connect(place.service.projects.store(project).home / "catalogue.db") as raw:
            raw.execute("UPDATE schema_number SET number = 99")
        raw.close()
        place.service.projects._stores.clear()
        answer = place.ask(place.operator, "GET", f"/api/v1/projects/{project}/versions")
        assert answer.status_code == 503
        assert str(tmp_path) not in answer.text
