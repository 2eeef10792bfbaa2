"""The routes, one module a noun."""

from fastapi import APIRouter

from ml_debugger.server.api import evaluations, login, organizations, parts, projects, results
from ml_debugger.server.api import versions as versions_
from ml_debugger.server.problems import ProblemOut

_TOLD = {
    400: "The request is malformed.",
    401: "An API key or a login is needed.",
    402: "A quota of the organisation is exhausted.",
    403: "The role does not allow this.",
    404: "There is no such thing, or it is not yours to see.",
    409: "It contradicts what is there.",
    413: "The body is too large.",
    422: "The request cannot be done as it is; `detail` says why.",
    429: "Too many failed attempts.",
    500: "The service has a fault; its log says more.",
    503: "The service cannot do this just now; try again.",
}

router = APIRouter(
    prefix="/api/v1",
    responses={
        status: {"model": ProblemOut, "description": text} for status, text in _TOLD.items()
    },
)
for module in (login, organizations, projects, versions_, parts, evaluations, results):
    router.include_router(module.router)
