"""What operators see of a running service: structured logs and metrics, and no user's data."""

import json
import logging
import re
import sys
import time
import traceback
import uuid
import warnings
from collections.abc import MutableMapping
from typing import Any, TextIO

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter
from starlette.datastructures import MutableHeaders
from typing_extensions import override

log = logging.getLogger("ml_debugger.server.requests")

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Metrics:
    """The counters of a process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        names = ["method", "route", "status"]
        self.requests = Counter(
            "ml_debugger_requests", "Requests answered", names, registry=self.registry
        )
        self.seconds = Histogram(
            "ml_debugger_request_seconds",
            "Seconds that requests took",
            ["method", "route"],
            registry=self.registry,
        )
        self.running = Gauge(
            "ml_debugger_requests_running", "Requests under way", registry=self.registry
        )
        self.received = Counter(
            "ml_debugger_received_bytes", "Bytes of bodies received", registry=self.registry
        )
        self.jobs = Gauge("ml_debugger_jobs", "Open jobs", ["state"], registry=self.registry)


class Observed:
    """ASGI middleware: gives each request an id, logs it, counts it."""

    def __init__(self, app: Any, metrics: Metrics) -> None:
        """Wrap an application."""
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        start, status, received = time.perf_counter(), 500, 0

        async def counting() -> Any:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def sending(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message.setdefault("headers", [])
                MutableHeaders(scope=message).update(headers_of(request_id))
            await send(message)

        self._metrics.running.inc()
        try:
            await self._app(scope, counting, sending)
        finally:
            self._metrics.running.dec()
            seconds = time.perf_counter() - start
            # the template and not the path, which names what users made
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.requests.labels(method, route, str(status)).inc()
            self._metrics.seconds.labels(method, route).observe(seconds)
            self._metrics.received.inc(received)
            log.info(
                "request",
                extra={
                    "request_id": request_id,
                    "method": method,
                    "route": route,
                    "status": status,
                    "milliseconds": round(seconds * 1e3, 1),
                    "received": received,
                    "principal": scope["state"].get("principal"),
                },
            )


def headers_of(request_id: str) -> dict[str, str]:
    """Return the headers that the answer to any request has."""
    return {
        "X-Request-Id": request_id,
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
    }


class Lines(JsonFormatter):
    """JSON lines. Of an error they have its kind and its frames, and not what it says.

    That may repeat what a user sent, or what the database holds.
    """

    @override
    def formatException(self, ei: Any) -> str:
        told: list[str] = []
        error: BaseException | None = ei[1]
        while error is not None and len(told) < 10:
            told.append("".join(traceback.format_tb(error.__traceback__)) + type(error).__name__)
            error = error.__cause__ or error.__context__
        return "\n".join(told)


_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def log_as_json(level: int = logging.INFO) -> None:
    """Write what this process logs to stderr, a JSON object a line."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = Lines(
        "%(asctime)s %(levelname)s %(name)s %(message)s",
        rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
        json_serializer=json.dumps,
        reserved_attrs=[*RESERVED_ATTRS, "color_message"],  # uvicorn's, for terminals
    )
    formatter.converter = time.gmtime
    formatter.default_time_format, formatter.default_msec_format = "%Y-%m-%dT%H:%M:%S", "%s.%03dZ"
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    warnings.showwarning = _log_warning
    logging.getLogger("ml_debugger").setLevel(level)
    logging.getLogger("uvicorn.error").setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers[:] = []
        logging.getLogger(name).propagate = name != "uvicorn.access"


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Log a warning by its kind and its place: its text may name what users recorded."""
    about = {"kind": category.__name__, "place": f"{filename}:{lineno}"}
    logging.getLogger("py.warnings").warning("warning", extra=about)
