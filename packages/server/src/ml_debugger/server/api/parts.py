"""Taking in what SDKs send."""

import tempfile
from pathlib import Path as FilePath
from typing import IO, Annotated

from fastapi import APIRouter, Path, Request
from fastapi.concurrency import run_in_threadpool

from ml_debugger.server.access import AsMember, Project, TheService
from ml_debugger.server.api.models import Number, PartOut, Wanted
from ml_debugger.server.ingest import take_in
from ml_debugger.server.problems import Problem, ProblemOut
from ml_debugger.server.service import Service

router = APIRouter(prefix="/projects/{project_id}/versions/{version_id}/parts", tags=["parts"])

Digest = Annotated[
    str, Path(pattern="^[0-9a-f]{64}$", description="SHA-256 of the part, unpacked.")
]
MEDIA_TYPE = "application/vnd.ml-debugger.part+zstd"


@router.put(
    "/{digest}",
    responses={415: {"model": ProblemOut, "description": "The body is not declared to be a part."}},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def put_part(
    version_id: Number,
    digest: Digest,
    request: Request,
    project: AsMember,
    service: TheService,
    model_name: Wanted = None,
    version_name: Wanted = None,
) -> PartOut:
    """Add the chunks of a part, all of them or none. Sent again, it changes nothing.

    The body is the part, compressed with Zstandard. Whoever has known the number for long does well
    to name the version: after a backup was restored, another one may have its number.
    """
    declared = request.headers.get("Content-Type", MEDIA_TYPE)
    if declared.partition(";")[0].strip().lower() != MEDIA_TYPE:
        raise Problem(415, f"a part must be sent as {MEDIA_TYPE}")
    folder = await run_in_threadpool(_incoming, service)
    # without a name from the start: nothing is left of it, whatever happens
    with tempfile.TemporaryFile(dir=folder) as file:
        async for piece in request.stream():
            file.write(piece)
        records = await run_in_threadpool(
            _enter, service, project, version_id, (model_name, version_name), digest, file
        )
    return PartOut(records=records)


def _incoming(service: Service) -> FilePath:
    folder = service.settings.data / "incoming"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _enter(
    service: Service,
    project: Project,
    version_id: int,
    names: tuple[str | None, str | None],
    digest: str,
    file: IO[bytes],
) -> int:
    repository = project.store.repository(version_id)
    if any(
        wanted not in (None, one) for wanted, one in zip(names, repository.version, strict=True)
    ):
        raise Problem(404, "the version of this number has another name; register yours again")

    def is_first() -> bool:
        return not project.store.has_records(repository.version.model_name)

    return take_in(service, project.row.organization_id, repository, digest, file, is_first)
