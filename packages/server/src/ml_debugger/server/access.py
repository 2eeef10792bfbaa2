"""Who asks, and what they may do: the dependencies that guard every route."""

import ipaddress
import threading
import time
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Path, Request
from limits import parse_many
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from sqlalchemy import and_, update
from sqlmodel import Session, col, select
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from ml_debugger.server.credentials import account_name
from ml_debugger.server.database import UnavailableError
from ml_debugger.server.people import Role
from ml_debugger.server.problems import Problem
from ml_debugger.server.projects import ProjectStore
from ml_debugger.server.service import Service
from ml_debugger.server.tables import (
    KeyRow,
    MemberRow,
    OrganizationRow,
    ProjectRow,
    SessionRow,
    UserRow,
)

COOKIE = "ml_debugger_session"
PEER = "ml_debugger.peer"  # in the scope: the address of whoever is connected
CSRF = "X-CSRF-Token"
SAFE = ("GET", "HEAD", "OPTIONS")
USED_EVERY = 60 * 10**9  # how exactly a key's last use is kept
WAITING = 8  # requests that may wait for a password to be checked: the other threads are for others


class Limiter:
    """Counts what went wrong, by who did it; kept in the memory of this process."""

    def __init__(self, rates: str) -> None:
        """Allow so much, as in `10/minute;50/hour`."""
        self._rates = parse_many(rates)
        self._strategy = MovingWindowRateLimiter(MemoryStorage())
        self._waiting = threading.BoundedSemaphore(WAITING)
        self._one = threading.Lock()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Let one request at a time look, guess and count, so that no burst of guesses passes.

        It also bounds the memory that Argon2 takes.

        Raises:
            Problem: 503; too many are waiting.
        """
        if not self._waiting.acquire(blocking=False):
            raise Problem(503, "too many passwords are being checked just now; try again")
        try:
            with self._one:
                yield
        finally:
            self._waiting.release()

    def check(self, *who: str) -> None:
        """Refuse whoever has gone wrong too often.

        Raises:
            Problem: 429; too many failures.
        """
        for rate in self._rates:
            if not self._strategy.test(rate, *who):
                stats = self._strategy.get_window_stats(rate, *who)
                wait = max(1, int(stats.reset_time - time.time()) + 1)
                raise Problem(429, "too many failed attempts; wait", retry_after=wait)

    def failed(self, *who: str) -> None:
        """Count a failure."""
        for rate in self._rates:
            self._strategy.hit(rate, *who)


class Proxied:
    """ASGI middleware: notes who is connected, then believes a trusted proxy for whom."""

    def __init__(self, app: Any, networks: Sequence[object]) -> None:
        """Wrap an application; `X-Forwarded-For` is believed from addresses in the networks."""
        self._app = ProxyHeadersMiddleware(app, [str(one) for one in networks])

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Handle a request."""
        if scope["type"] == "http":
            scope[PEER] = (scope.get("client") or ("", 0))[0]
        await self._app(scope, receive, send)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks.

    Attributes:
        user: The person, or the one whose key it is.
        key: The key; None for a person.
        opens: With a key: its project, and the role there, which is None if its maker has none.
        roles: The role in each organisation, by its id; none with a key.
        csrf: What unsafe requests have to present, in a browser.
        token: The token of a browser's login.
    """

    user: UserRow
    key: KeyRow | None = None
    opens: tuple[ProjectRow, Role | None] | None = None
    roles: dict[str, Role] = field(default_factory=dict)
    csrf: str | None = None
    token: str | None = None

    @property
    def name(self) -> str:
        """How jobs and logs name it; a person by its id, since an address is nobody's business."""
        return f"user:{self.user.id}" if self.key is None else f"key:{self.key.id}"

    @property
    def operator(self) -> bool:
        """Whether it runs the service; a key never does."""
        return self.key is None and self.user.operator


@dataclass(frozen=True, slots=True)
class Project:
    """A project that the principal may use."""

    row: ProjectRow
    role: Role
    principal: Principal
    store: ProjectStore


def service_of(request: Request) -> Service:
    """Return the running service."""
    service: Service = request.app.state.service
    return service


TheService = Annotated[Service, Depends(service_of)]


def principal(request: Request, service: TheService) -> Principal:
    """Find out who asks: by API key, by cookie, or by what a trusted proxy says.

    Raises:
        Problem: 401 if that cannot be told, 403 if a browser's request may be another site's,
            429 after too many wrong keys.
    """
    authorization = request.headers.get("Authorization")
    if authorization is not None:
        found = _by_key(request, service, authorization)
    else:
        cookie = request.cookies.get(COOKIE)
        found = None if cookie is None else _by_cookie(service, cookie)
        found = found or _by_proxy(request, service)
    if found is None:
        raise Problem(401, "an API key or a login is needed")
    if found.csrf is not None and request.method not in SAFE:
        shown = request.headers.get(CSRF, "")
        if not service.credentials.is_digest(shown, f"csrf {found.token}"):
            raise Problem(403, f"the header {CSRF} is missing or wrong; log in again")
    request.state.principal = found.name
    return found


ThePrincipal = Annotated[Principal, Depends(principal)]


def person(found: ThePrincipal) -> Principal:
    """Let only people in, whatever their role.

    Raises:
        Problem: 403; it is a key.
    """
    if found.key is not None:
        raise Problem(403, "an API key cannot do this; log in")
    return found


ThePerson = Annotated[Principal, Depends(person)]


def operator(found: ThePerson) -> Principal:
    """Let only those in who run the service.

    Raises:
        Problem: 403; it is somebody else.
    """
    if not found.operator:
        raise Problem(403, "only an operator of the service can do this")
    return found


TheOperator = Annotated[Principal, Depends(operator)]

_Id = Annotated[str, Path(pattern="^[0-9a-f]{32}$", description="An id of 32 hex digits.")]


class InOrganization:
    """Lets members of the organisation in the path in; others do not learn that it exists."""

    def __init__(self, role: Role) -> None:
        """Ask for a role."""
        self._role = role

    def __call__(
        self, organization_id: _Id, found: ThePerson, service: TheService
    ) -> OrganizationRow:
        """Return the organisation.

        Raises:
            Problem: 404 to strangers, 403 to members who may not.
        """
        with service.database.reading() as session:
            row = session.get(OrganizationRow, organization_id)
        role = Role.ADMIN if found.operator else found.roles.get(organization_id)
        if row is None or role is None:
            raise Problem(404, "there is no such organisation")
        _check(role, self._role)
        return row


class InProject:
    """Lets those in who may use the project in the path; others do not learn that it exists."""

    def __init__(self, role: Role, *, operators: bool = False) -> None:
        """Ask for a role; operators need none where nothing is seen of what was recorded."""
        self.role = role
        self._operators = operators

    def __call__(self, project_id: _Id, found: ThePrincipal, service: TheService) -> Project:
        """Return the project.

        Raises:
            Problem: 404 to strangers, 403 to those who may not.
        """
        row, role = self._find(project_id, found, service)
        if row is None or role is None:
            raise Problem(404, "there is no such project")
        _check(role, self.role)
        return Project(row, role, found, service.projects.store(row.id))

    def _find(
        self, project_id: str, found: Principal, service: Service
    ) -> tuple[ProjectRow | None, Role | None]:
        if found.opens is not None:
            return found.opens if found.opens[0].id == project_id else (None, None)
        with service.database.reading() as session:
            row = session.get(ProjectRow, project_id)
        if row is None:
            return None, None
        if found.operator and self._operators:
            return row, Role.ADMIN
        return row, found.roles.get(row.organization_id)


AsViewer = Annotated[Project, Depends(InProject(Role.VIEWER))]
AsMember = Annotated[Project, Depends(InProject(Role.MEMBER))]
AsAdmin = Annotated[Project, Depends(InProject(Role.ADMIN))]
#: Of the project alone, and of its keys: operators may too.
ManagesAsViewer = Annotated[Project, Depends(InProject(Role.VIEWER, operators=True))]
ManagesAsAdmin = Annotated[Project, Depends(InProject(Role.ADMIN, operators=True))]
OrganizationViewer = Annotated[OrganizationRow, Depends(InOrganization(Role.VIEWER))]
OrganizationAdmin = Annotated[OrganizationRow, Depends(InOrganization(Role.ADMIN))]


def address(request: Request) -> str:
    """Return where a request comes from, as a trusted proxy says; what failures are counted by.

    Of an IPv6 address the network alone: its last half is anyone's to choose.
    """
    host = request.client.host if request.client is not None else "unknown"
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return host[:100]
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    return str(found.ipv4_mapped or ipaddress.ip_network((int(found), 64), strict=False))


def roles_of(session: Session, user_id: str) -> dict[str, Role]:
    """Return a person's role in each organisation."""
    rows = session.exec(select(MemberRow).where(MemberRow.user_id == user_id))
    return {one.organization_id: Role(one.role) for one in rows}


_RANK = list(Role).index


def _check(has: Role, needs: Role) -> None:
    if not has.covers(needs):
        raise Problem(403, f"this needs the role {needs}, and yours is {has}")


#: All that a request with a key needs to know: the key, its maker, its project, the maker's role.
_OPENED = (
    select(KeyRow, UserRow, ProjectRow, MemberRow.role)
    .join(UserRow, col(UserRow.id) == KeyRow.user_id)
    .join(ProjectRow, col(ProjectRow.id) == KeyRow.project_id)
    .outerjoin(
        MemberRow,
        and_(
            col(MemberRow.user_id) == KeyRow.user_id,
            col(MemberRow.organization_id) == ProjectRow.organization_id,
        ),
    )
)


def _by_key(request: Request, service: Service, authorization: str) -> Principal | None:
    scheme, _, shown = authorization.partition(" ")
    credentials = service.credentials
    now = time.time_ns()
    number = credentials.key_id(shown) if scheme.lower() == "bearer" else None
    found = None
    if number is not None:
        with service.database.reading() as session:
            found = session.exec(_OPENED.where(KeyRow.id == number)).first()
    right = credentials.is_digest("" if found is None else found[0].digest, shown)
    until = None if found is None else found[0].expires_at
    if found is None or not right or (until is not None and until <= now):
        # a right key is let in all the same: no guess comes near one, and a colleague's old key
        # must not keep a whole office out
        limiter: Limiter = request.app.state.key_limiter
        limiter.check("key", address(request))
        limiter.failed("key", address(request))
        raise Problem(401, "the API key is wrong, revoked or expired")
    row, user, project, role = found
    if row.last_used_at is None or abs(now - row.last_used_at) > USED_EVERY:
        # where nothing can be stored just now, the request may still read
        with suppress(UnavailableError), service.database.writing() as session:
            session.execute(update(KeyRow).where(col(KeyRow.id) == row.id).values(last_used_at=now))
    # a key can do what it was made for, and no more than its maker still can
    least = None if role is None else min(Role(role), Role(row.role), key=_RANK)
    return Principal(user, row, (project, least))


def _by_cookie(service: Service, cookie: str) -> Principal | None:
    token = service.credentials.token(cookie)
    if token is None:
        return None
    with service.database.reading() as session:
        row = session.get(SessionRow, service.credentials.digest(token))
        if row is None or row.expires_at < time.time_ns():
            return None
        user = session.get(UserRow, row.user_id)
        if user is None:
            return None
        roles = roles_of(session, user.id)
    return Principal(user, None, None, roles, service.credentials.csrf(token), token)


def _by_proxy(request: Request, service: Service) -> Principal | None:
    """Believe a header, if it comes from a proxy that is trusted to have checked who it is."""
    settings = service.settings
    if settings.user_header is None:
        return None
    named = request.headers.getlist(settings.user_header)
    if len(named) != 1:  # two: one is the proxy's and the other a guess
        return None
    try:
        found = ipaddress.ip_address(request.scope[PEER])
    except ValueError:
        return None
    if not any(found in network for network in settings.trusted_proxies):
        return None
    with service.database.reading() as session:
        email = account_name(named[0].replace("\x00", ""))
        user = session.exec(select(UserRow).where(UserRow.email == email)).first()
        if user is None:
            raise Problem(403, "nobody has let you into an organisation yet; ask an admin")
        roles = roles_of(session, user.id)
    token = f"proxy {user.id}"  # the proxy's own cookie is sent along by any site's pages
    return Principal(user, None, None, roles, service.credentials.csrf(token), token)
