"""Logging in and out, and who one is."""

import time

from fastapi import APIRouter, Request, Response
from sqlalchemy import delete
from sqlmodel import Session, col, select

from ml_debugger.server import __version__
from ml_debugger.server.access import (
    COOKIE,
    Limiter,
    Principal,
    ThePerson,
    ThePrincipal,
    TheService,
    address,
    roles_of,
)
from ml_debugger.server.api.models import LoginIn, MembershipOut, MeOut, PasswordIn
from ml_debugger.server.api.projects import project_out
from ml_debugger.server.credentials import account_name
from ml_debugger.server.people import check_password, projects_of
from ml_debugger.server.problems import Problem
from ml_debugger.server.service import Service
from ml_debugger.server.tables import OrganizationRow, ProjectRow, SessionRow, UserRow

router = APIRouter(tags=["login"])

WRONG = "the address or the password is wrong"
WRONG_OLD = "the old password is wrong"


@router.post("/login")
def login(given: LoginIn, request: Request, response: Response, service: TheService) -> MeOut:
    """Log a person in; the answer sets the cookie."""
    if not service.settings.passwords:
        raise Problem(403, "people log in at the proxy before this service, without a password")
    limiter: Limiter = request.app.state.login_limiter
    email = account_name(given.email)
    with service.database.reading() as session:
        user = session.exec(select(UserRow).where(UserRow.email == email)).first()
    hashed = None if user is None else user.password
    with limiter.turn():
        limiter.check("address", address(request))
        limiter.check("account", email)
        if not service.credentials.is_password(hashed, given.password) or user is None:
            limiter.failed("address", address(request))
            limiter.failed("account", email)
            raise Problem(401, WRONG)
    token = service.credentials.new_session()
    seconds = int(service.settings.session_hours * 3600)
    now = time.time_ns()
    with service.database.writing() as session:
        # before other rows: who changes a password locks them in this order too
        if _still(session, user) is None:
            raise Problem(401, WRONG)
        session.execute(delete(SessionRow).where(col(SessionRow.expires_at) < now))
        session.add(
            SessionRow(
                digest=service.credentials.digest(token),
                user_id=user.id,
                expires_at=now + seconds * 10**9,
            )
        )
        roles = roles_of(session, user.id)
    response.set_cookie(
        COOKIE,
        service.credentials.cookie(token),
        max_age=seconds,
        path=request.scope.get("root_path") or "/",
        secure=service.settings.secure_cookies,
        httponly=True,
        samesite="lax",
    )
    found = Principal(user, None, None, roles, service.credentials.csrf(token), token)
    return _me(service, found)


@router.post("/logout", status_code=204)
def logout(found: ThePerson, request: Request, response: Response, service: TheService) -> None:
    """Log a person out; the cookie means nothing from now on."""
    if found.token is not None:
        with service.database.writing() as session:
            digest = service.credentials.digest(found.token)
            session.execute(delete(SessionRow).where(col(SessionRow.digest) == digest))
    response.delete_cookie(COOKIE, path=request.scope.get("root_path") or "/")


@router.put("/me/password", status_code=204)
def change_password(
    given: PasswordIn, found: ThePerson, request: Request, service: TheService
) -> None:
    """Change one's own password; all other logins end."""
    limiter: Limiter = request.app.state.login_limiter
    with limiter.turn():
        limiter.check("account", found.user.email)
        if not service.credentials.is_password(found.user.password, given.old):
            limiter.failed("account", found.user.email)
            raise Problem(403, WRONG_OLD)
    check_password(given.new)
    hashed = service.credentials.hash_password(given.new)  # which takes a while: before the lock
    digest = "" if found.token is None else service.credentials.digest(found.token)
    with service.database.writing() as session:
        user = _still(session, found.user)
        if user is None:
            raise Problem(403, WRONG_OLD)
        user.password = hashed
        session.add(user)
        session.execute(
            delete(SessionRow).where(
                col(SessionRow.user_id) == found.user.id, col(SessionRow.digest) != digest
            )
        )


@router.get("/me")
def me(found: ThePrincipal, service: TheService) -> MeOut:
    """Return who asks, and what there is to work with."""
    return _me(service, found)


def _still(session: Session, checked: UserRow) -> UserRow | None:
    """Return a person whose password is still the one that was checked; the row is locked.

    Checking takes a while. Whoever changes or resets the password in that time ends all logins,
    and what the old one has opened must not come after.
    """
    user = session.get(UserRow, checked.id, with_for_update=True)
    return None if user is None or user.password != checked.password else user


def _me(service: Service, found: Principal) -> MeOut:
    with service.database.reading() as session:
        if found.key is not None:
            organizations = []
            project = session.get(ProjectRow, found.key.project_id)
            projects = [] if project is None else [project]
        else:
            query = select(OrganizationRow).where(col(OrganizationRow.id).in_(found.roles))
            organizations = [
                MembershipOut(id=one.id, name=one.name, role=found.roles[one.id])
                for one in session.exec(query.order_by(col(OrganizationRow.name)))
            ]
            projects = projects_of(session, list(found.roles))
    return MeOut(
        email=found.user.email,
        name=found.user.name,
        operator=found.operator,
        key_id=None if found.key is None else found.key.id,
        organizations=organizations,
        projects=[project_out(one) for one in projects],
        csrf_token=found.csrf,
        service_version=__version__,
        max_part_bytes=service.settings.max_part_bytes,
    )
