"""Results: their files, and what can be asked with them."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Path
from fastapi.responses import FileResponse

from ml_debugger.core.errors import StoreError
from ml_debugger.core.evaluation import folder as files
from ml_debugger.core.store import ResultInfo
from ml_debugger.server.access import AsAdmin, AsViewer, Project, TheService
from ml_debugger.server.api.evaluations import job_out
from ml_debugger.server.api.models import (
    MOST,
    After,
    FileOut,
    Limit,
    Number,
    PickOut,
    PicksOut,
    QueryIn,
    ResultOut,
    Wanted,
)
from ml_debugger.server.picking import Missing, pick
from ml_debugger.server.problems import Problem
from ml_debugger.server.tables import JobRow

router = APIRouter(prefix="/projects/{project_id}/results", tags=["results"])

FILES = (files.MANIFEST, files.ARRAYS, files.UNITS, files.TRUTHS, files.INPUTS)


@router.get("")
def list_results(
    project: AsViewer,
    result_name: Wanted = None,
    model_name: Wanted = None,
    version_name: Wanted = None,
    after: After = 0,
    limit: Limit = MOST,
) -> list[ResultOut]:
    """Return the results of a project, in the order in which they were made."""
    found = project.store.page_of_results(after, limit, result_name, model_name, version_name)
    return [_out(one) for one in found]


@router.get("/{result_id}")
def get_result(result_id: Number, project: AsViewer) -> ResultOut:
    """Return a result."""
    return _out(_find(project, result_id))


@router.delete("/{result_id}", status_code=204)
def delete_result(result_id: Number, project: AsAdmin, service: TheService) -> None:
    """Delete a result and its files, and cancel what is at work for it."""
    name = _find(project, result_id).name
    service.queue.cancel_all(project.row.id, JobRow.result_name == name)
    project.store.delete_result(name)


@router.get("/{result_id}/files")
def list_files(result_id: Number, project: AsViewer) -> list[FileOut]:
    """Return the files of a result, with their hashes."""
    found = []
    with _folder(project, result_id) as folder:
        for name in FILES:
            if (folder / name).is_file():
                about = (folder / name).stat()
                digest = _sha256(folder / name, about.st_ino, about.st_mtime_ns, about.st_size)
                found.append(FileOut(name=name, bytes=about.st_size, sha256=digest))
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
    with _folder(project, result_id) as folder:
        if name not in FILES or not (folder / name).is_file():
            raise Problem(404, "the result has no such file")
        return FileResponse(
            folder / name,
            media_type="application/octet-stream",
            filename=name,
            stat_result=(folder / name).stat(),
        )


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
    job = service.queue.submit(
        project.row.id,
        "estimates",
        model_name=info.version.model_name,
        version_name=info.version.version_name,
        result_name=info.name,
        request=request,
        created_by=project.principal.name,
        shared=True,
    )
    return PicksOut(picks=None, job=job_out(job), inputs=found.inputs)


@contextmanager
def _folder(project: Project, number: int) -> Iterator[FilePath]:
    """Give the folder of a result, which may be deleted meanwhile."""
    try:
        yield project.store.result_folder(_find(project, number).name)
    except FileNotFoundError as error:
        _find(project, number)
        raise StoreError("the files of a result are gone, and the result is not") from error


@lru_cache(1000)
def _sha256(path: FilePath, *_what: int) -> str:
    """Return the hash of a file; the file of a result that took its place differs in the rest."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
