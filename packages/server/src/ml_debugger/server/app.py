"""The web application: routes, what guards them, and what their errors become."""

import errno
import logging
import re
import threading
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import IntegrityError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ml_debugger.core.errors import (
    ArchitectureMismatchError,
    EpochError,
    InputError,
    LicenseError,
    MLDebuggerError,
    NothingToEvaluateError,
    ResultNotFoundError,
    SchemaError,
    StoreError,
)
from ml_debugger.server import __version__, operations
from ml_debugger.server.access import Limiter, Proxied, principal
from ml_debugger.server.api import router
from ml_debugger.server.description import describe, name_of
from ml_debugger.server.observe import Metrics, Observed, headers_of
from ml_debugger.server.problems import Problem, ProblemOut
from ml_debugger.server.service import Service
from ml_debugger.server.settings import Settings

log = logging.getLogger("ml_debugger.server")

RETRY_AFTER = 2  # seconds, of what is only unavailable
SWEEP_EVERY = 3600.0  # seconds
LONGEST_DETAIL = 2000  # characters; it may repeat what was sent
PART = re.compile(r".*/api/v1/projects/[^/]+/versions/[^/]+/parts/[^/]+", re.DOTALL)


def create_app(settings: Settings) -> FastAPI:
    """Return the application of a service; it is opened when the application starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with Service(settings) as service:
            app.state.service = service
            stop = threading.Event()
            sweeping = threading.Thread(target=_sweep, args=(service, stop))
            sweeping.start()
            try:
                yield
            finally:
                stop.set()
                sweeping.join()

    app = FastAPI(
        title="ml-debugger",
        version=__version__,
        summary="Find where a PyTorch model fails, why, and which data would help.",
        generate_unique_id_function=name_of,
        lifespan=lifespan,
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,  # to a host that whoever asks can name
    )
    app.state.metrics = Metrics()
    app.state.login_limiter = Limiter(settings.login_rate)
    app.state.key_limiter = Limiter(settings.key_rate)
    app.include_router(operations.router)
    app.include_router(router)

    @app.get("/api/v1/openapi.json", dependencies=[Depends(principal)], include_in_schema=False)
    def openapi() -> JSONResponse:
        """Return the description of this interface."""
        return JSONResponse(describe(app, settings.root_path))

    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(MLDebuggerError, _refused)
    app.add_exception_handler(IntegrityError, _overtaken)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(OSError, _disk)
    app.add_exception_handler(Exception, _fault)
    app.add_middleware(Bounded, settings=settings)
    app.add_middleware(Observed, metrics=app.state.metrics)
    app.add_middleware(Proxied, networks=settings.trusted_proxies)
    if settings.root_path:
        app.add_middleware(Shown, root_path=settings.root_path)
    return app


def _sweep(service: Service, stop: threading.Event) -> None:
    """Tidy this machine's copies, which the workers of other machines do not see."""
    while not stop.wait(SWEEP_EVERY):
        try:
            service.projects.sweep()
        except MLDebuggerError as error:
            log.warning("cannot tidy", extra={"cause": str(error)})
        except Exception:
            log.exception("cannot tidy")


class Shown:
    """ASGI middleware: the service is under a path, whether or not its proxy takes that off."""

    def __init__(self, app: Any, root_path: str) -> None:
        """Wrap an application."""
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Handle a request."""
        if scope["type"] == "http":
            path = scope["path"]
            if not path.startswith(self._root_path + "/"):
                path = self._root_path + path
            scope = {**scope, "root_path": self._root_path, "path": path}
        await self._app(scope, receive, send)


class Bounded:
    """ASGI middleware: no body is read further than it may be long."""

    def __init__(self, app: Any, settings: Settings) -> None:
        """Wrap an application."""
        self._app = app
        self._settings = settings

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        part = scope["method"] == "PUT" and PART.fullmatch(scope["path"])
        limit = self._settings.max_part_bytes if part else self._settings.max_body_bytes
        told = dict(scope["headers"]).get(b"content-length", b"0")
        size = int(told) if told.isdigit() else 0
        received = 0

        async def bounded() -> Any:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise Problem(413, f"a body may have {limit:,} bytes here")
            return message

        if size > limit:
            request = Request(scope)
            response = _answer(request, 413, f"a body may have {limit:,} bytes here", "Problem")
            await response(scope, receive, send)
            return
        await self._app(scope, bounded, send)


_STATUS: tuple[tuple[type[MLDebuggerError], int], ...] = (
    (LicenseError, 402),
    (NothingToEvaluateError, 404),
    (ResultNotFoundError, 404),
    (ArchitectureMismatchError, 409),
    (InputError, 422),
    (EpochError, 422),
    (SchemaError, 503),  # of what is stored here: it names a place, and asks for an upgrade
    (StoreError, 503),
)


def _answer(request: Request, status: int, detail: str, kind: str) -> JSONResponse:
    request_id = getattr(request.state, "request_id", "")
    # what it repeats may hold half a character, which JSON can name and UTF-8 cannot
    detail = detail[:LONGEST_DETAIL].encode(errors="replace").decode()
    body = ProblemOut(detail=detail, kind=kind, request_id=request_id)
    response = JSONResponse(body.model_dump(), status)
    if status == 503:
        response.headers["Retry-After"] = str(RETRY_AFTER)
    if status == 413:
        response.headers["Connection"] = "close"  # the rest of the body is not wanted
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    response = _answer(request, error.status_code, str(error.detail), "Problem")
    response.headers.update(error.headers or {})
    return response


def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(one) for one in first["loc"])
    return _answer(request, 422, f"{where}: {first['msg']}", "InputError")


def _refused(request: Request, error: Exception) -> JSONResponse:
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 422)
    if status == 503:
        level = logging.ERROR if isinstance(error, SchemaError) else logging.WARNING
        log.log(level, "unavailable", extra={"cause": str(error)})
        return _answer(request, 503, "the service cannot do this just now; try again", "StoreError")
    return _answer(request, status, str(error), type(error).__name__)


def _gone(request: Request, error: Exception) -> JSONResponse:
    return _answer(request, 400, "the body did not arrive", "Problem")  # for the log and metrics


def _overtaken(request: Request, error: Exception) -> JSONResponse:
    return _answer(request, 409, "somebody else has just changed the same; look again", "Problem")


def _disk(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, OSError)
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE):
        return _fault(request, error)
    log.error("the disk refused", extra={"cause": errno.errorcode.get(error.errno or 0, "?")})
    return _answer(request, 503, "the service cannot store anything just now", "StoreError")


def _fault(request: Request, error: Exception) -> JSONResponse:
    log.error("fault", exc_info=error, extra={"request_id": request.state.request_id})
    response = _answer(request, 500, "the service has a fault; its log says more", "Fault")
    # what nobody has caught is answered outside of `Observed`, which sets them otherwise
    response.headers.update(headers_of(request.state.request_id))
    return response
