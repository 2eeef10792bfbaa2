"""What a request is told when it cannot be done."""

from pydantic import BaseModel
from starlette.exceptions import HTTPException

from ml_debugger.core.errors import MLDebuggerError, NothingToEvaluateError


class Problem(HTTPException):
    """A request that cannot be done; becomes a `ProblemOut` with its status."""

    def __init__(self, status: int, detail: str, *, retry_after: int | None = None) -> None:
        headers = None if retry_after is None else {"Retry-After": str(retry_after)}
        super().__init__(status, detail, headers)


class ProblemOut(BaseModel):
    """Why a request was refused."""

    detail: str
    kind: str
    request_id: str


class NoProjectError(NothingToEvaluateError):
    """A project that was there a moment ago is deleted."""

    def __init__(self) -> None:
        super().__init__("there is no such project")


class OvertakenError(MLDebuggerError):
    """A job is not this worker's (any longer), and nothing of it may be entered."""
