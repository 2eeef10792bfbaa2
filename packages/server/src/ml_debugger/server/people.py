"""Organisations, people and keys: how they come to be."""

import time
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from ml_debugger.core.errors import InputError
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


def first_login(service: Service, email: str = "admin@localhost") -> FirstLogin | None:
    """Make an organisation, a project, an operator and a key, in a service that has no one yet.

    Of several processes that start at once, one does.
    """
    try:
        with service.database.writing() as session:
            if session.exec(select(UserRow.id).limit(1)).first() is not None:
                return None
            organization = OrganizationRow(id=new_id(), name="default", created_at=time.time_ns())
            session.add(organization)
            session.flush()
            user, password = add_member(
                session, service, organization.id, email, "", Role.ADMIN, operator=True
            )
            user_id, organization_id = user.id, organization.id
    except IntegrityError:  # another process was faster
        return None
    project = service.projects.make(organization_id, "default")
    _, shown = make_key(service, project.id, user_id, "first key", Role.MEMBER, None)
    return FirstLogin(email, password or "", shown)


def add_member(
    session: Session,
    service: Service,
    organization_id: str,
    email: str,
    name: str,
    role: Role,
    *,
    operator: bool = False,
) -> tuple[UserRow, str | None]:
    """Let a person into an organisation; return a password if the person is new here.

    Raises:
        InputError: It is a member already.
    """
    email = account_name(email)
    password = None
    user = session.exec(select(UserRow).where(UserRow.email == email)).first()
    if user is None:
        password = new_password()
        user = UserRow(
            id=new_id(),
            email=email,
            name=name,
            password=service.credentials.hash_password(password),
            operator=operator,
            created_at=time.time_ns(),
        )
        session.add(user)
        session.flush()
    if session.get(MemberRow, (organization_id, user.id)) is not None:
        raise InputError(f"{email} is a member already; change the role instead")
    session.add(MemberRow(organization_id=organization_id, user_id=user.id, role=role))
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


def projects_of(session: Session, organization_ids: Sequence[str]) -> list[ProjectRow]:
    """Return the projects of organisations."""
    query = select(ProjectRow).where(col(ProjectRow.organization_id).in_(organization_ids))
    return list(session.exec(query.order_by(col(ProjectRow.name))))
