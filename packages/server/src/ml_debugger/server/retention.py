"""What happens to old records, and to the space of deleted ones."""

import logging
from datetime import UTC, datetime, timedelta

from sqlmodel import select

from ml_debugger.core.errors import MLDebuggerError
from ml_debugger.server.problems import NoProjectError
from ml_debugger.server.service import Service
from ml_debugger.server.tables import ProjectRow

log = logging.getLogger("ml_debugger.server.retention")


def tidy(service: Service, now: datetime | None = None) -> int:
    """Drop the epochs that projects do not keep any longer, and give back space; count epochs.

    Safe beside everything else, and while other processes do it too.
    """
    now = now or datetime.now(UTC)
    with service.database.reading() as session:
        projects = [(one.id, one.retention_days) for one in session.exec(select(ProjectRow))]
    service.projects.sweep()
    service.queue.tidy()
    dropped = 0
    for project_id, days in projects:
        try:
            store = service.projects.store(project_id)
            if days is not None:
                dropped += _drop(service, project_id, now - timedelta(days=days))
            store.compact()
        except NoProjectError:
            continue  # it was deleted meanwhile
        except MLDebuggerError as error:  # of one project; the others are tidied all the same
            log.warning("cannot tidy", extra={"project": project_id, "cause": str(error)})
    return dropped


def _drop(service: Service, project_id: str, before: datetime) -> int:
    store = service.projects.store(project_id)
    dropped = 0
    for version in store.versions():
        repository = store.repository(version.number)
        for epoch in repository.epochs():
            if epoch.last_written < before and store.drop_epoch(
                version.number, epoch.n_epoch, before
            ):
                log.info("epoch dropped", extra={"project": project_id})
                dropped += 1
    return dropped
