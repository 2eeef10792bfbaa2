"""Routes for whoever runs the service."""

import hmac

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from sqlalchemy import func
from sqlmodel import col, select

from ml_debugger.core.errors import SchemaError, StoreError
from ml_debugger.server.access import Limiter, TheService, address, operator, person, principal
from ml_debugger.server.jobs import OPEN
from ml_debugger.server.observe import Metrics
from ml_debugger.server.problems import Problem, ProblemOut
from ml_debugger.server.tables import JobRow

router = APIRouter(tags=["operations"])

CHECK_SECONDS = 10.0  # in which all projects' tables are looked at once: anybody may ask


class Health(BaseModel):
    """Whether something works."""

    status: str


@router.get("/health")
def health() -> Health:
    """Tell that the process answers; asks nothing of anything else."""
    return Health(status="ok")


@router.get("/ready", responses={503: {"model": ProblemOut, "description": "Not ready."}})
def ready(service: TheService) -> Health:
    """Tell whether the database and the object store answer, and have this version's tables."""
    try:
        service.database.check(CHECK_SECONDS)
        if service.projects.objects is not None:
            service.projects.objects.ping()
    except SchemaError as error:
        raise Problem(503, str(error)) from error
    except StoreError as error:
        raise Problem(503, "the database or the object store does not answer") from error
    return Health(status="ready")


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {
            "description": "Prometheus' text format.",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        },
        401: {"model": ProblemOut, "description": "The metrics token or a login is needed."},
        403: {"model": ProblemOut, "description": "Only operators may."},
        429: {"model": ProblemOut, "description": "Too many failed attempts."},
        503: {"model": ProblemOut, "description": "The database does not answer."},
    },
)
def metrics(request: Request, service: TheService) -> Response:
    """Return the metrics of this process, to whoever has the metrics token, and to operators."""
    token = service.settings.metrics_token
    shown = request.headers.get("Authorization", "").removeprefix("Bearer ")
    limiter: Limiter = request.app.state.key_limiter
    limiter.check("key", address(request))  # the token is a person's choice, and may be guessed
    if token is None or not hmac.compare_digest(shown.encode(), token.get_secret_value().encode()):
        operator(person(principal(request, service)))
    found: Metrics = request.app.state.metrics
    query = select(JobRow.state, func.count()).where(col(JobRow.state).in_(OPEN))
    with service.database.reading() as session:
        counts = dict(session.execute(query.group_by(col(JobRow.state))).all())
    for state in OPEN:
        found.jobs.labels(state).set(counts.get(state, 0))
    return Response(generate_latest(found.registry), media_type=CONTENT_TYPE_LATEST)
