"""Results: their files, and what can be asked with them."""

import hashlib
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from fastapi.responses import FileResponse

from ml_debugger.core.evaluation import folder as files
from ml_debugger.core.store import ResultInfo
from ml_debugger.server.access import AsAdmin, AsViewer, Project, TheService
from ml_debugger.server.api.evaluations import job_out
from ml_debugger.server.api.models import (
    FileOut,
    Number,
    PickOut,
    PicksOut,
    QueryIn,
    ResultOut,
)
from ml_debugger.server.picking import Missing, pick
from ml_debugger.server.problems import Problem

router = APIRouter(prefix="/projects/{project_id}/results", tags=["results"])

FILES = (files.MANIFEST, files.ARRAYS, files.UNITS, files.TRUTHS, files.INPUTS)


@router.get("")
def list_results(
    project: AsViewer,
    result_name: Annotated[str | None, Query(max_length=1000)] = None,
    model_name: Annotated[str | None, Query(max_length=200)] = None,
    version_name: Annotated[str | None, Query(max_length=200)] = None,
) -> list[ResultOut]:
    """Return the results of a project, in the order in which they were made."""
    return [
        _out(one)
        for one in project.store.results()
        if result_name in (None, one.name)
        and model_name in (None, one.version.model_name)
        and version_name in (None, one.version.version_name)
    ]


@router.get("/{result_id}")
def get_result(result_id: Number, project: AsViewer) -> ResultOut:
    """Return a result."""
    return _out(_find(project, result_id))


@router.delete("/{result_id}", status_code=204)
def delete_result(result_id: Number, project: AsAdmin) -> None:
    """Delete a result and its files."""
    project.store.delete_result(_find(project, result_id).name)


@router.get("/{result_id}/files")
def list_files(result_id: Number, project: AsViewer) -> list[FileOut]:
    """Return the files of a result, with their hashes."""
    folder = project.store.result_folder(_find(project, result_id).name)
    found = []
    for name in FILES:
        if (folder / name).is_file():
            with (folder / name).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found.append(FileOut(name=name, bytes=(folder / name).stat().st_size, sha256=digest))
    return found


@router.get(
    "/{result_id}/files/{name}",
    response_class=FileResponse,
    responses={
        200: {
            "description": "The file.",
            "content": {
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
            },
        }
    },
)
def get_file(
    result_id: Number, name: Annotated[str, Path(max_length=100)], project: AsViewer
) -> FileResponse:
    """Return a file of a result."""
    folder = project.store.result_folder(_find(project, result_id).name)
    if name not in FILES or not (folder / name).is_file():
        raise Problem(404, "the result has no such file")
    return FileResponse(folder / name, media_type="application/octet-stream", filename=name)


@router.post("/{result_id}/query")
def query_result(
    result_id: Number, given: QueryIn, project: AsViewer, service: TheService
) -> PicksOut:
    """Pick recorded inputs worth labelling, by what a result says of them.

    Where the result has not seen some of the records yet, a worker estimates them first: `job`
    is set then, and the same query is answered once it is done.
    """
    info = _find(project, result_id)
    found = pick(project.store, info, given.model_dump())
    if not isinstance(found, Missing):
        picks = [PickOut(**one) for one in found.picks]
        return PicksOut(picks=picks, inputs=found.inputs)
    request: dict[str, Any] = {
        "dataset_type": given.dataset_type,
        "n_epoch": found.n_epoch,
        "run": given.run,
    }
    job = service.queue.submit_once(
        project.row.id,
        "estimates",
        model_name=info.version.model_name,
        version_name=info.version.version_name,
        result_name=info.name,
        request=request,
        created_by=project.principal.name,
    )
    return PicksOut(picks=None, job=job_out(job), inputs=found.inputs)


def _find(project: Project, number: int) -> ResultInfo:
    found = project.store.result_numbered(number)
    if found is None:
        raise Problem(404, "there is no such result")
    return found


def _out(info: ResultInfo) -> ResultOut:
    return ResultOut(
        id=info.number,
        result_name=info.name,
        model_name=info.version.model_name,
        version_name=info.version.version_name,
        task=info.task,
        method_name=info.method,
        n_epoch=info.n_epoch,
        options=dict(info.options),
        created_at=info.created_at,
        completed_at=info.completed_at,
    )
