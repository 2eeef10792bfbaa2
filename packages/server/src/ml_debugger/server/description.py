"""The description of the interface, in OpenAPI's form."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from ml_debugger.server.access import COOKIE, CSRF

#: What may be asked without saying who one is.
OPEN = ("/health", "/ready", "/api/v1/login")

_SCHEMES = {
    "key": {"type": "http", "scheme": "bearer", "description": "An API key, `mldbg_...`."},
    "login": {
        "type": "apiKey",
        "in": "cookie",
        "name": COOKIE,
        "description": "Set by logging in.",
    },
    "csrf": {
        "type": "apiKey",
        "in": "header",
        "name": CSRF,
        "description": "With a cookie, in every request but GET: `csrf_token` of `MeOut`.",
    },
}


def name_of(route: APIRoute) -> str:
    """Return what an operation is called: its function's name, for generated clients."""
    return route.name


def describe(app: FastAPI, root_path: str) -> dict[str, Any]:
    """Return the description of an application that is shown under a path."""
    found = get_openapi(
        title=app.title,
        version=app.version,
        openapi_version=app.openapi_version,
        summary=app.summary,
        routes=app.routes,
        servers=[{"url": root_path or "/"}],
    )
    found["components"]["securitySchemes"] = _SCHEMES
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            login: dict[str, Any] = {"login": []} if method == "get" else {"login": [], "csrf": []}
            operation["security"] = [] if path in OPEN else [{"key": []}, login]
    return found
