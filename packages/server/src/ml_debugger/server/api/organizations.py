"""Organisations, their members and quotas."""

import time

from fastapi import APIRouter
from sqlalchemy import delete
from sqlmodel import Session, col, select

from ml_debugger.core.errors import InputError
from ml_debugger.server.access import (
    OrganizationAdmin,
    OrganizationViewer,
    TheOperator,
    ThePerson,
    TheService,
)
from ml_debugger.server.api.models import (
    MemberIn,
    MemberOut,
    OrganizationIn,
    OrganizationOut,
    QuotasIn,
    RoleIn,
    UsageOut,
    UserId,
    moment,
)
from ml_debugger.server.credentials import new_id
from ml_debugger.server.people import Role, add_member, keeps_an_admin, projects_of
from ml_debugger.server.problems import Problem
from ml_debugger.server.quotas import usage_of
from ml_debugger.server.tables import KeyRow, MemberRow, OrganizationRow, ProjectRow, UserRow

router = APIRouter(prefix="/organizations", tags=["organizations"])


@router.get("")
def list_organizations(found: ThePerson, service: TheService) -> list[OrganizationOut]:
    """Return the organisations that one is in; all of them to an operator."""
    query = select(OrganizationRow).order_by(col(OrganizationRow.name))
    if not found.operator:
        query = query.where(col(OrganizationRow.id).in_(found.roles))
    with service.database.reading() as session:
        return [_out(one) for one in session.exec(query)]


@router.post("", status_code=201)
def make_organization(
    given: OrganizationIn, found: TheOperator, service: TheService
) -> OrganizationOut:
    """Make an organisation; whoever does is its first admin."""
    with service.database.writing() as session:
        same = select(OrganizationRow).where(OrganizationRow.name == given.name)
        if session.exec(same).first() is not None:
            raise InputError(f"there is an organisation {given.name!r} already")
        row = OrganizationRow(id=new_id(), name=given.name, created_at=time.time_ns())
        session.add(row)
        session.flush()
        session.add(MemberRow(organization_id=row.id, user_id=found.user.id, role=Role.ADMIN))
    return _out(row)


@router.get("/{organization_id}")
def get_organization(organization: OrganizationViewer) -> OrganizationOut:
    """Return an organisation and its quotas."""
    return _out(organization)


@router.delete("/{organization_id}", status_code=204)
def delete_organization(
    organization: OrganizationAdmin, _found: TheOperator, service: TheService
) -> None:
    """Delete an organisation that has no projects; operators only. Its members keep accounts."""
    with service.database.writing() as session:
        row = _alone(session, organization.id)
        if projects_of(session, [organization.id]):
            raise Problem(409, "an organisation that has projects stays; delete them first")
        session.delete(row)


@router.put("/{organization_id}/quotas")
def set_quotas(
    given: QuotasIn, organization: OrganizationAdmin, found: TheOperator, service: TheService
) -> OrganizationOut:
    """Set what an organisation may record, in place of all quotas it had; operators only."""
    with service.database.writing() as session:
        row = _alone(session, organization.id)
        row.max_models, row.max_records, row.max_bytes = (
            given.max_models,
            given.max_records,
            given.max_bytes,
        )
        session.add(row)
    return _out(row)


@router.get("/{organization_id}/usage")
def get_usage(organization: OrganizationViewer, service: TheService) -> UsageOut:
    """Return what an organisation has recorded, of what its quotas allow."""
    return UsageOut(**usage_of(service, organization.id)._asdict())


@router.get("/{organization_id}/members")
def list_members(organization: OrganizationViewer, service: TheService) -> list[MemberOut]:
    """Return the members of an organisation."""
    query = (
        select(MemberRow, UserRow)
        .join(UserRow, col(UserRow.id) == MemberRow.user_id)
        .where(MemberRow.organization_id == organization.id)
        .order_by(col(UserRow.email))
    )
    with service.database.reading() as session:
        return [_member(member, user) for member, user in session.exec(query)]


@router.post("/{organization_id}/members", status_code=201, operation_id="add_member")
def add(
    given: MemberIn, organization: OrganizationAdmin, found: ThePerson, service: TheService
) -> MemberOut:
    """Let a person in. The password of a person who is new here is shown once.

    A person who has an account already is let in by operators alone: it may be in the hands of
    the organisation that made it.
    """
    with service.database.writing() as session:
        user, password = add_member(
            session, service, organization.id, given.email, given.name, given.role
        )
        if password is None and not found.operator:
            raise Problem(403, f"{user.email} has an account; an operator can add it")
        member = session.get_one(MemberRow, (organization.id, user.id))
        return _member(member, user, password)


@router.put("/{organization_id}/members/{user_id}")
def change_role(
    user_id: UserId, given: RoleIn, organization: OrganizationAdmin, service: TheService
) -> MemberOut:
    """Give a member another role."""
    with service.database.writing() as session:
        _alone(session, organization.id)
        member = _find(session, organization.id, user_id)
        member.role = given.role
        session.add(member)
        session.flush()
        _keep_an_admin(session, organization.id)
        return _member(member, session.get_one(UserRow, user_id))


@router.delete(
    "/{organization_id}/members/{user_id}", status_code=204, operation_id="remove_member"
)
def remove(
    user_id: UserId, organization: OrganizationViewer, found: ThePerson, service: TheService
) -> None:
    """Let a member go, or leave; that person's keys of this organisation are revoked."""
    admin = found.operator or found.roles[organization.id] is Role.ADMIN
    if user_id != found.user.id and not admin:
        raise Problem(403, "only an admin can let another member go")
    with service.database.writing() as session:
        _alone(session, organization.id)
        session.delete(_find(session, organization.id, user_id))
        session.flush()
        _keep_an_admin(session, organization.id)
        mine = select(ProjectRow.id).where(ProjectRow.organization_id == organization.id)
        session.execute(
            delete(KeyRow).where(col(KeyRow.user_id) == user_id, col(KeyRow.project_id).in_(mine))
        )


def _alone(session: Session, organization_id: str) -> OrganizationRow:
    """Return an organisation that no other transaction changes, nor its members, until this ends.

    SQLite has one at a time anyway.
    """
    row = session.get(OrganizationRow, organization_id, with_for_update=True)
    if row is None:
        raise Problem(404, "there is no such organisation")
    return row


def _find(session: Session, organization_id: str, user_id: str) -> MemberRow:
    found = session.get(MemberRow, (organization_id, user_id))
    if found is None:
        raise Problem(404, "there is no such member")
    return found


def _keep_an_admin(session: Session, organization_id: str) -> None:
    if not keeps_an_admin(session, organization_id):
        raise Problem(409, "an organisation needs an admin; make somebody else one first")


def _out(row: OrganizationRow) -> OrganizationOut:
    values = row.model_dump(exclude={"created_at"})
    return OrganizationOut(**values, created_at=moment(row.created_at))


def _member(member: MemberRow, user: UserRow, password: str | None = None) -> MemberOut:
    return MemberOut(
        user_id=user.id,
        email=user.email,
        name=user.name,
        role=Role(member.role),
        password=password,
    )
