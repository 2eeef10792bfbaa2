"""How people come to be, and go."""

import json
import threading
from contextlib import suppress

import pytest
from sqlalchemy import delete
from sqlmodel import Session

from ml_debugger.core.errors import InputError
from ml_debugger.server.database import Database
from ml_debugger.server.people import delete_person, first_login, make_operator
from ml_debugger.server.service import Service
from ml_debugger.server.settings import Settings
from ml_debugger.server.tables import MemberRow

from .seeded import migrate
from .tenants import town


class TestFirstLogin:
    def test_is_written_down_before_anybody_is_there(self, tmp_path, monkeypatch):
        """Killed in between, the next start begins anew, and what is written then is right."""
        settings, note = Settings(data=tmp_path / "data"), tmp_path / "data" / "first_login.json"
        with Service(settings) as service:
            with monkeypatch.context() as patch:
                patch.setattr(Database, "writing", _killed)
                with pytest.raises(KeyboardInterrupt):
                    first_login(service, note=note)
            assert note.exists()
            found = first_login(service, note=note)
            assert json.loads(note.read_text()) == found._asdict()
            assert note.stat().st_mode & 0o77 == 0
            assert first_login(service, note=note) is None
            assert json.loads(note.read_text()) == found._asdict()

    def test_what_many_make_at_once_is_one(self, tmp_path):
        settings, note = Settings(data=tmp_path / "data"), tmp_path / "data" / "first_login.json"
        found = []
        with Service(settings) as service:
            threads = [
                threading.Thread(target=lambda: found.append(first_login(service, note=note)))
                for _ in range(4)
            ]
            for one in threads:
                one.start()
            for one in threads:
                one.join()
        (made,) = [one for one in found if one is not None]
        assert json.loads(note.read_text()) == made._asdict()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with town(tmp_path_factory.mktemp("going")) as found:
        yield found


class TestGoing:
    def test_the_last_operator_and_the_last_admin_stay(self, place):
        first = place.operator.name
        with pytest.raises(InputError, match="a service needs an operator"):
            delete_person(place.service, first)
        other = place.new_organization("of the first alone")
        password = make_operator(place.service, "Second@x.test")
        assert make_operator(place.service, "second@x.test") is None
        second = place.login("second@x.test", password)
        with pytest.raises(InputError, match="'of the first alone' needs an admin"):
            delete_person(place.service, first)
        with pytest.raises(InputError, match="no organisation 'none'"):
            make_operator(place.service, "second@x.test", "none")
        place.done(second, "DELETE", f"/organizations/{other}")
        delete_person(place.service, first)
        assert place.ask(place.operator, "GET", "/api/v1/me").status_code == 401
        with pytest.raises(InputError, match="there is nobody"):
            delete_person(place.service, first)
        place.operator = second

    def test_two_operators_do_not_delete_each_other(self, postgres, tmp_path, monkeypatch):
        settings = Settings(data=tmp_path, database=postgres.new_database())
        migrate(settings)
        with Service(settings) as service:
            first_login(service, "one@x.test")
            make_operator(service, "other@x.test")
            with service.database.writing() as session:  # an organisation would make one wait
                session.execute(delete(MemberRow))
            both, said = threading.Barrier(2), []
            flush = Session.flush

            def together(session, *args):
                flush(session, *args)
                with suppress(threading.BrokenBarrierError):
                    both.wait(2.0)  # where one waits for the other, it is alone here

            def go(email):
                try:
                    delete_person(service, email)
                except InputError as error:
                    said.append(str(error))

            with monkeypatch.context() as patch:
                patch.setattr(Session, "flush", together)
                threads = [
                    threading.Thread(target=go, args=(f"{name}@x.test",))
                    for name in ("one", "other")
                ]
                for one in threads:
                    one.start()
                for one in threads:
                    one.join()
            assert said == ["a service needs an operator; make somebody else one first"]

    def test_a_persons_keys_go_too(self, place):
        organization = place.new_organization("keys")
        admin = place.new_person(organization, "keys@x.test", "admin", place.operator)
        project = place.new_project(organization, admin)
        key, _ = place.new_key(project, admin)
        assert place.ask(key, "GET", "/api/v1/me").status_code == 200
        delete_person(place.service, "keys@x.test")
        assert place.ask(key, "GET", "/api/v1/me").status_code == 401
        assert place.ask(admin, "GET", "/api/v1/me").status_code == 401

    def test_members_leave_and_let_nobody_else_go(self, place):
        organization = place.new_organization("leaving")
        path = f"/organizations/{organization}/members"
        one, other = (
            place.new_person(organization, f"{name}@leaving.test", "viewer", place.operator)
            for name in ("one", "other")
        )
        ids = {who["email"]: who["user_id"] for who in place.done(one, "GET", path)}
        theirs = f"/api/v1{path}/{ids['other@leaving.test']}"
        assert place.ask(one, "DELETE", theirs).status_code == 403
        assert place.ask(other, "DELETE", theirs).status_code == 204
        assert place.ask(other, "GET", f"/api/v1{path}").status_code == 404

    def test_an_organisation_goes_once_it_is_empty(self, place):
        organization = place.new_organization("empty")
        project = place.new_project(organization, place.operator)
        path = f"/organizations/{organization}"
        assert place.ask(place.operator, "DELETE", f"/api/v1{path}").status_code == 409
        place.done(place.operator, "DELETE", f"/projects/{project}")
        place.done(place.operator, "DELETE", path)
        assert place.ask(place.operator, "GET", f"/api/v1{path}").status_code == 404


def _killed(_database):
    raise KeyboardInterrupt
