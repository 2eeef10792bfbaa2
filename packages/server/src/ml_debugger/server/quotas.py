"""How much an organisation has recorded, and how much it may."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from sqlmodel import Session, select
from sqlmodel.sql.expression import SelectOfScalar

from ml_debugger.core.errors import LicenseError, StoreError
from ml_debugger.core.locks import locked
from ml_debugger.server.people import projects_of
from ml_debugger.server.problems import NoProjectError, Problem
from ml_debugger.server.service import Service
from ml_debugger.server.tables import OrganizationRow

MOST_WAITING = 4  # requests of an organisation, each of which takes a thread of this process
BUSY_SECONDS = 2  # after which another may ask again
TRIES = 5


class Usage(NamedTuple):
    """What an organisation has recorded: models, inputs as written, and their bytes."""

    models: int
    records: int
    bytes: int


def usage_of(service: Service, organization_id: str) -> Usage:
    """Return what all projects of an organisation hold together."""
    for _ in range(TRIES):  # one may be deleted between a look and the next
        with service.database.reading() as session:
            projects = projects_of(session, [organization_id])
        try:
            used = service.database.usage([one.id for one in projects])
        except NoProjectError:
            continue
        return Usage(*map(sum, zip((0, 0, 0), *used, strict=True)))
    raise StoreError("projects of the organisation come and go; try again")


class _Waiting:
    """Counts the requests of each organisation that wait for their turn in this process."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def one(self, organization_id: str) -> Iterator[None]:
        """Count one more, if there is room for it."""
        with self._lock:
            if self._counts[organization_id] >= MOST_WAITING:
                raise Problem(
                    503,
                    "others of the organisation are recording; try again",
                    retry_after=BUSY_SECONDS,
                )
            self._counts[organization_id] += 1
        try:
            yield
        finally:
            with self._lock:
                self._counts[organization_id] -= 1
                if not self._counts[organization_id]:
                    del self._counts[organization_id]


_waiting = _Waiting()


@contextmanager
def counting(service: Service, organization_id: str) -> Iterator["Quotas"]:
    """Give the time to look at quotas and commit what is added; nothing that takes long.

    Of an organisation that has some, one request at a time is let in: two could not pass together
    that only fit one by one.

    Raises:
        Problem: 503; too many wait already.
    """
    found = quotas_of(service, organization_id)
    if not found.any:
        yield found
        return
    with ExitStack() as stack:
        stack.enter_context(_waiting.one(organization_id))
        folder = service.settings.data / "quotas"
        folder.mkdir(mode=0o700, exist_ok=True)
        stack.enter_context(locked(folder / f"{organization_id}.lock"))  # of this machine
        if service.database.postgres:  # and of others
            session = stack.enter_context(service.database.writing())
            # no stronger lock: rows that refer to it may be made meanwhile
            query = _row(organization_id).with_for_update(key_share=True)
            found = _quotas(service, session, query)
        yield found


def quotas_of(service: Service, organization_id: str) -> "Quotas":
    """Return what an organisation may have; others may add something at any time."""
    with service.database.reading() as session:
        return _quotas(service, session, _row(organization_id))


def _row(organization_id: str) -> SelectOfScalar[OrganizationRow]:
    return select(OrganizationRow).where(OrganizationRow.id == organization_id)


def _quotas(service: Service, session: Session, query: SelectOfScalar[OrganizationRow]) -> "Quotas":
    row = session.exec(query).first()
    if row is None:  # nor is there what was asked about: only the empty are deleted
        raise NoProjectError
    return Quotas(service, row)


class Quotas:
    """What an organisation may have."""

    def __init__(self, service: Service, row: OrganizationRow) -> None:
        self._service = service
        self._organization_id = row.id
        self._limits = row.max_models, row.max_records, row.max_bytes
        self.any = self._limits != (None, None, None)

    def check(self, *, models: int = 0, records: int = 0, nbytes: int = 0) -> None:
        """Refuse what would go beyond a quota.

        Raises:
            LicenseError: It would; the quota is named.
        """
        wanted = models, records, nbytes
        if not self.any or not any(wanted):
            return
        used = usage_of(self._service, self._organization_id)
        for what, limit, has, wants in zip(
            ("models", "records", "bytes"), self._limits, used, wanted, strict=True
        ):
            if limit is not None and wants and has + wants > limit:
                raise LicenseError(
                    f"the organisation may have {limit:,} {what} and has {has:,}; {wants:,} more "
                    "do not fit. Delete some, or ask the operator of the service for more"
                )
