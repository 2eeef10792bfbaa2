"""Projects and their API keys."""

from fastapi import APIRouter
from sqlmodel import col, select

from ml_debugger.core.errors import InputError
from ml_debugger.server.access import (
    AsAdmin,
    ManagesAsAdmin,
    ManagesAsViewer,
    OrganizationAdmin,
    OrganizationViewer,
    ThePerson,
    TheService,
)
from ml_debugger.server.api.models import (
    KeyId,
    KeyIn,
    KeyOut,
    ProjectChange,
    ProjectIn,
    ProjectOut,
    moment,
)
from ml_debugger.server.people import Role, make_key, projects_of
from ml_debugger.server.problems import Problem
from ml_debugger.server.tables import KeyRow, ProjectRow

router = APIRouter(tags=["projects"])


@router.get("/organizations/{organization_id}/projects")
def list_projects(organization: OrganizationViewer, service: TheService) -> list[ProjectOut]:
    """Return the projects of an organisation."""
    with service.database.reading() as session:
        return [project_out(one) for one in projects_of(session, [organization.id])]


@router.post("/organizations/{organization_id}/projects", status_code=201)
def make_project(
    given: ProjectIn, organization: OrganizationAdmin, service: TheService
) -> ProjectOut:
    """Make a project."""
    return project_out(service.projects.make(organization.id, given.name))


@router.get("/projects/{project_id}")
def get_project(project: ManagesAsViewer) -> ProjectOut:
    """Return a project."""
    return project_out(project.row)


@router.put("/projects/{project_id}")
def change_project(
    given: ProjectChange, project: ManagesAsAdmin, _found: ThePerson, service: TheService
) -> ProjectOut:
    """Rename a project, and say for how long it keeps records."""
    with service.database.writing() as session:
        row = session.get(ProjectRow, project.row.id, with_for_update=True)
        if row is None:
            raise Problem(404, "there is no such project")
        same = select(ProjectRow).where(
            ProjectRow.organization_id == row.organization_id,
            ProjectRow.name == given.name,
            ProjectRow.id != row.id,
        )
        if session.exec(same).first() is not None:
            raise InputError(f"there is a project {given.name!r} already; choose another name")
        row.name, row.retention_days = given.name, given.retention_days
        session.add(row)
    return project_out(row)


@router.delete("/projects/{project_id}", status_code=204)
def delete_project(project: ManagesAsAdmin, _found: ThePerson, service: TheService) -> None:
    """Delete a project, and all that was recorded in it."""
    service.projects.delete(project.row.id)


@router.get("/projects/{project_id}/keys")
def list_keys(project: ManagesAsAdmin, _found: ThePerson, service: TheService) -> list[KeyOut]:
    """Return a project's API keys; nothing that could be used as one."""
    query = select(KeyRow).where(KeyRow.project_id == project.row.id)
    with service.database.reading() as session:
        return [_key(one) for one in session.exec(query.order_by(col(KeyRow.created_at)))]


@router.post("/projects/{project_id}/keys", status_code=201)
def new_key(given: KeyIn, project: AsAdmin, found: ThePerson, service: TheService) -> KeyOut:
    """Make an API key. It is in this answer, and nowhere else."""
    if given.role is Role.ADMIN:
        raise InputError("a key is for programs, which are viewers or members; admins log in")
    row, shown = make_key(
        service, project.row.id, found.user.id, given.name, given.role, given.days
    )
    return _key(row, shown)


@router.delete("/projects/{project_id}/keys/{key_id}", status_code=204)
def revoke_key(
    key_id: KeyId, project: ManagesAsAdmin, _found: ThePerson, service: TheService
) -> None:
    """Revoke an API key, at once."""
    with service.database.writing() as session:
        row = session.get(KeyRow, key_id)
        if row is None or row.project_id != project.row.id:
            raise Problem(404, "there is no such key")
        session.delete(row)


def project_out(row: ProjectRow) -> ProjectOut:
    """Return a project as it is shown."""
    return ProjectOut(
        id=row.id,
        organization_id=row.organization_id,
        name=row.name,
        retention_days=row.retention_days,
        created_at=moment(row.created_at),
    )


def _key(row: KeyRow, shown: str | None = None) -> KeyOut:
    return KeyOut(
        id=row.id,
        name=row.name,
        role=Role(row.role),
        user_id=row.user_id,
        created_at=moment(row.created_at),
        expires_at=None if row.expires_at is None else moment(row.expires_at),
        last_used_at=None if row.last_used_at is None else moment(row.last_used_at),
        key=shown,
    )
