"""The description of the interface, in OpenAPI's form."""

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute, iter_route_contexts

from ml_debugger.server.access import COOKIE, CSRF, InProject, person, principal
from ml_debugger.server.operations import metrics
from ml_debugger.server.people import Role

_SCHEMES = {
    "metrics": {
        "type": "http",
        "scheme": "bearer",
        "description": "The setting `MLD_SERVER_METRICS_TOKEN`.",
    },
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
    guarded = {
        (one.path, method.lower()): _who(one.original_route.dependant)
        for one in iter_route_contexts(app.routes)
        if isinstance(one.original_route, APIRoute)
        for method in one.methods or ()
    }
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            login: dict[str, Any] = {"login": []} if method == "get" else {"login": [], "csrf": []}
            ways = {"login": login, "key": {"key": []}, "metrics": {"metrics": []}}
            operation["security"] = [ways[one] for one in guarded[path, method]]
    return found


def _who(dependant: Dependant) -> tuple[str, ...]:
    """Return how one may show who one is, as the dependencies of a route have it."""
    calls = list(_calls(dependant))
    if metrics in calls:
        return "metrics", "login"
    if principal not in calls:
        return ()
    admin = any(isinstance(one, InProject) and one.role is Role.ADMIN for one in calls)
    return ("login",) if admin or person in calls else ("key", "login")  # no key is an admin's


def _calls(dependant: Dependant) -> Iterator[Any]:
    yield dependant.call
    for one in dependant.dependencies:
        yield from _calls(one)
