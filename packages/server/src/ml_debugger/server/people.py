"""Organisations, people and keys: how they come to be."""

import json
import os
import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from ml_debugger.core.errors import InputError
from ml_debugger.core.locks import locked
from ml_debugger.server.credentials import (
    LONGEST_PASSWORD,
    SHORTEST_PASSWORD,
    account_name,
    new_id,
    new_password,
)
from ml_debugger.server.service import Service
from ml_debugger.server.tables import (
    KeyRow,
    MemberRow,
    OrganizationRow,
    ProjectRow,
    SessionRow,
    UserRow,
)

DAY = 24 * 3600 * 10**9


class Role(StrEnum):
    """What somebody may do; each may do what those before it may.

    Viewers read and query, members also upload and evaluate, admins also manage people, projects
    and keys, and delete.
    """

    VIEWER = "viewer"
    MEMBER = "member"
    ADMIN = "admin"

    def covers(self, other: "Role") -> bool:
        """Tell whether this role may do what another may."""
        order = list(Role)
        return order.index(self) >= order.index(other)


class FirstLogin(NamedTuple):
    """What whoever starts a service needs to use it."""

    email: str
    password: str
    key: str


def first_login(
    service: Service, email: str = "admin@localhost", note: Path | None = None
) -> FirstLogin | None:
    """Make an organisation, a project, an operator and a key, in a service that has no one yet.

    Of several processes that start at once, one does. It is all made at once, after it was written
    down: interrupted at any moment, it is begun anew or is there and known.

    Args:
        service: Without anybody, or nothing is done.
        email: The operator's.
        note: The file that tells what was made, for its owner only.
    """
    with locked(service.settings.data / "service.lock"):
        with service.database.reading() as session:
            if session.exec(select(UserRow.id).limit(1)).first() is not None:
                return None
        key = service.credentials.new_key()
        found = FirstLogin(email, new_password(), key.shown)
        if note is not None:
            _write_down(found, note)
        now = time.time_ns()
        project_id = new_id()
        service.database.make_project(project_id)
        try:
            with service.database.writing() as session:
                organization = OrganizationRow(id=new_id(), name="default", created_at=now)
                session.add(organization)
                session.flush()
                user, _ = add_member(
                    session,
                    service,
                    organization.id,
                    email,
                    "",
                    Role.ADMIN,
                    operator=True,
                    password=found.password,
                )
                session.add(
                    ProjectRow(
                        id=project_id,
                        organization_id=organization.id,
                        name="default",
                        created_at=now,
                    )
                )
                session.flush()
                session.add(
                    KeyRow(
                        id=key.id,
                        project_id=project_id,
                        user_id=user.id,
                        name="first key",
                        role=Role.MEMBER,
                        digest=key.digest,
                        created_at=now,
                    )
                )
        except IntegrityError:  # a process of another machine was faster
            service.database.drop_project(project_id)
            if note is not None:
                note.unlink()
            return None
    return found


def _write_down(found: FirstLogin, note: Path) -> None:
    draft = note.with_name(f".{note.name}")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(found._asdict(), file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(note)


def add_member(
    session: Session,
    service: Service,
    organization_id: str,
    email: str,
    name: str,
    role: Role,
    *,
    operator: bool = False,
    password: str | None = None,
) -> tuple[UserRow, str | None]:
    """Let a person into an organisation; return the password if the person is new here.

    Raises:
        InputError: It is a member already.
    """
    email = account_name(email)
    user = session.exec(select(UserRow).where(UserRow.email == email)).first()
    if user is not None:
        password = None
    else:
        user, password = _new_person(service, email, name, password)
        user.operator = operator
        session.add(user)
        session.flush()
    if session.get(MemberRow, (organization_id, user.id)) is not None:
        raise InputError(f"{email} is a member already; change the role instead")
    session.add(MemberRow(organization_id=organization_id, user_id=user.id, role=role))
    return user, password


def _new_person(
    service: Service, email: str, name: str, password: str | None
) -> tuple[UserRow, str]:
    password = password or new_password()
    user = UserRow(
        id=new_id(),
        email=email,
        name=name,
        password=service.credentials.hash_password(password),
        created_at=time.time_ns(),
    )
    return user, password


def check_password(password: str) -> None:
    """Refuse a password that is easily guessed, or that takes long to check.

    Raises:
        InputError: It is too short or too long.
    """
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        raise InputError(
            f"a password must have {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} characters"
        )


def make_key(
    service: Service, project_id: str, user_id: str, name: str, role: Role, days: float | None
) -> tuple[KeyRow, str]:
    """Make an API key of a project; return it with what is shown once."""
    key = service.credentials.new_key()
    now = time.time_ns()
    row = KeyRow(
        id=key.id,
        project_id=project_id,
        user_id=user_id,
        name=name,
        role=role,
        digest=key.digest,
        created_at=now,
        expires_at=None if days is None else now + int(days * DAY),
    )
    with service.database.writing() as session:
        session.add(row)
    return row, key.shown


def admin_key(
    service: Service, organization: str, project: str, name: str, role: str, days: float | None
) -> str:
    """Make a key of a project, by name, in the name of its organisation's first admin.

    Raises:
        InputError: There is no such organisation or project, or the role is not a key's.
    """
    if role not in (Role.VIEWER, Role.MEMBER):
        raise InputError(f"a key is of the role viewer or member, got {role!r}")
    with service.database.reading() as session:
        row = session.exec(
            select(ProjectRow, MemberRow)
            .join(OrganizationRow, col(OrganizationRow.id) == ProjectRow.organization_id)
            .join(MemberRow, col(MemberRow.organization_id) == OrganizationRow.id)
            .join(UserRow, col(UserRow.id) == MemberRow.user_id)
            .where(OrganizationRow.name == organization, ProjectRow.name == project)
            .where(MemberRow.role == Role.ADMIN)
            .order_by(col(UserRow.created_at))
        ).first()
    if row is None:
        raise InputError(f"there is no project {project!r} of an organisation {organization!r}")
    found, member = row
    return make_key(service, found.id, member.user_id, name, Role(role), days)[1]


def reset_password(service: Service, email: str) -> str:
    """Give a person a new password, and end all logins; return the password.

    Raises:
        InputError: There is no such person.
    """
    shown = new_password()
    with service.database.writing() as session:
        user = session.exec(select(UserRow).where(UserRow.email == account_name(email))).first()
        if user is None:
            raise InputError(f"there is nobody of the address {email!r}")
        user.password = service.credentials.hash_password(shown)
        session.add(user)
        session.execute(delete(SessionRow).where(col(SessionRow.user_id) == user.id))
    return shown


def make_operator(service: Service, email: str, organization: str = "default") -> str | None:
    """Make a person an operator, and an admin of an organisation.

    Returns:
        A password, if the person is new here.

    Raises:
        InputError: There is no such organisation.
    """
    email = account_name(email)
    with service.database.writing() as session:
        row = session.exec(
            select(OrganizationRow).where(OrganizationRow.name == organization)
        ).first()
        if row is None:
            raise InputError(f"there is no organisation {organization!r}")
        user = session.exec(select(UserRow).where(UserRow.email == email)).first()
        password = None
        if user is None:
            user, password = _new_person(service, email, "", None)
        user.operator = True
        session.add(user)
        session.flush()
        member = session.get(MemberRow, (row.id, user.id))
        member = member or MemberRow(organization_id=row.id, user_id=user.id, role=Role.ADMIN)
        member.role = Role.ADMIN
        session.add(member)
    return password


def delete_person(service: Service, email: str) -> None:
    """Delete a person, with all logins, memberships and keys; what was recorded stays.

    Raises:
        InputError: There is no such person, or no operator, or an organisation without an admin,
            would be left.
    """
    with service.database.writing() as session:
        operators = select(UserRow.id).where(UserRow.operator).order_by(col(UserRow.id))
        session.exec(operators.with_for_update()).all()  # no other operator may go meanwhile
        user = session.exec(select(UserRow).where(UserRow.email == account_name(email))).first()
        if user is None:
            raise InputError(f"there is nobody of the address {email!r}")
        theirs = (
            select(OrganizationRow)
            .join(MemberRow, col(MemberRow.organization_id) == OrganizationRow.id)
            .where(MemberRow.user_id == user.id)
            .order_by(col(OrganizationRow.id))
            .with_for_update()  # no other admin may go meanwhile
        )
        organizations = list(session.exec(theirs))
        session.delete(user)
        session.flush()
        if session.exec(select(UserRow.id).where(UserRow.operator)).first() is None:
            raise InputError("a service needs an operator; make somebody else one first")
        for one in organizations:
            if not keeps_an_admin(session, one.id):
                raise InputError(
                    f"the organisation {one.name!r} needs an admin; make somebody else one first"
                )


def keeps_an_admin(session: Session, organization_id: str) -> bool:
    """Tell whether an organisation has an admin."""
    query = select(MemberRow).where(
        MemberRow.organization_id == organization_id, MemberRow.role == Role.ADMIN
    )
    return session.exec(query).first() is not None


def projects_of(session: Session, organization_ids: Sequence[str]) -> list[ProjectRow]:
    """Return the projects of organisations."""
    query = select(ProjectRow).where(col(ProjectRow.organization_id).in_(organization_ids))
    return list(session.exec(query.order_by(col(ProjectRow.name))))
