"""Results: their files, and what can be asked with them."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Path
from fastapi.responses import FileResponse, Response
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from ml_debugger.core.errors import InputError, ResultNotFoundError, StoreError
from ml_debugger.core.evaluation import folder as files
from ml_debugger.core.service.client import MOST_BYTES
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


class WholeFile(FileResponse):
    """A file that is sent whole, even to who asks for a part of it, as HTTP allows.

    Parts would be answers of three more kinds, some of them no `ProblemOut`, that nobody needs:
    clients fetch a file whole, and check its hash.
    """

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.headers["Accept-Ranges"] = "none"
        headers = [one for one in scope["headers"] if one[0] != b"range"]
        await super().__call__({**scope, "headers": headers}, receive, send)


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
    response_class=WholeFile,
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
) -> WholeFile:
    """Return a file of a result."""
    with _folder(project, result_id) as folder:
        if name not in FILES or not (folder / name).is_file():
            raise Problem(404, "the result has no such file")
        return WholeFile(
            folder / name,
            media_type="application/octet-stream",
            filename=name,
            stat_result=(folder / name).stat(),
        )


@router.post("/{result_id}/query", response_model=PicksOut)
def query_result(
    result_id: Number, given: QueryIn, project: AsViewer, service: TheService
) -> PicksOut | Response:
    """Pick recorded inputs worth labelling, by what a result says of them.

    Where the result has not seen some of the records yet, a worker estimates them first: `job`
    is set then, and the same query is answered once it is done.
    """
    info = _find(project, result_id)
    with _whole(project, result_id):
        found = pick(project.store, info, given.model_dump())
    if not isinstance(found, Missing):
        picks = [PickOut(**one) for one in found.picks]
        content = PicksOut(picks=picks, inputs=found.inputs).model_dump_json().encode()
        if len(content) > MOST_BYTES:  # ids may be long
            raise InputError(
                f"the answer has {len(content):,} bytes, and clients read {MOST_BYTES:,} at most; "
                "ask for fewer inputs"
            )
        return Response(content, media_type="application/json")
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
    with _whole(project, number):
        yield project.store.result_folder(_find(project, number).name)


@contextmanager
def _whole(project: Project, number: int) -> Iterator[None]:
    """Tell what lacks files: a result that was deleted meanwhile, or the service's disk."""
    try:
        yield
    except (FileNotFoundError, ResultNotFoundError) as error:
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
