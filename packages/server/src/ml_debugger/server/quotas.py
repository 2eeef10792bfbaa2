"""How much an organisation has recorded, and how much it may."""

from typing import NamedTuple

from sqlmodel import select

from ml_debugger.core.errors import LicenseError
from ml_debugger.server.people import projects_of
from ml_debugger.server.service import Service
from ml_debugger.server.tables import OrganizationRow


class Usage(NamedTuple):
    """What an organisation has recorded: model names, inputs as written, and their bytes."""

    models: int
    records: int
    bytes: int


def usage_of(service: Service, organization_id: str) -> Usage:
    """Return what all projects of an organisation hold together."""
    with service.database.reading() as session:
        projects = projects_of(session, [organization_id])
    models = records = nbytes = 0
    for one in projects:
        used = service.projects.store(one.id).usage()
        models, records, nbytes = models + used[0], records + used[1], nbytes + used[2]
    return Usage(models, records, nbytes)


def check_quota(
    service: Service, organization_id: str, *, models: int = 0, records: int = 0, nbytes: int = 0
) -> None:
    """Refuse what would go beyond a quota.

    Raises:
        LicenseError: It would; the quota is named.
    """
    with service.database.reading() as session:
        row = session.exec(
            select(OrganizationRow).where(OrganizationRow.id == organization_id)
        ).one()
    limits = (row.max_models, row.max_records, row.max_bytes)
    if limits == (None, None, None):
        return
    used = usage_of(service, organization_id)
    for what, limit, has, wants in zip(
        ("models", "records", "bytes"), limits, used, (models, records, nbytes), strict=True
    ):
        if limit is not None and wants and has + wants > limit:
            raise LicenseError(
                f"the organisation may have {limit:,} {what} and has {has:,}; {wants:,} more do "
                "not fit. Delete some, or ask the operator of the service for more"
            )
