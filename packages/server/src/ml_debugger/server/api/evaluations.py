"""Evaluations, and the jobs that make them."""

import hashlib
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Header, Query

from ml_debugger.core.epochs import resolve_epoch
from ml_debugger.core.evaluation.method import choose_name, resolve_method
from ml_debugger.core.evaluation.options import EvaluationOptions
from ml_debugger.core.task import task_named
from ml_debugger.server.access import AsMember, AsViewer, Project, TheService
from ml_debugger.server.api.models import EvaluationIn, JobId, JobOut, Number, moment
from ml_debugger.server.credentials import new_id
from ml_debugger.server.problems import Problem
from ml_debugger.server.service import Service
from ml_debugger.server.tables import JobRow

router = APIRouter(prefix="/projects/{project_id}", tags=["evaluations"])


@router.post("/versions/{version_id}/evaluations", status_code=202)
def request_evaluation(
    version_id: Number,
    given: EvaluationIn,
    project: AsMember,
    service: TheService,
    idempotency_key: Annotated[
        str | None, Header(max_length=200, description="Asked again with it, the job is the same.")
    ] = None,
) -> JobOut:
    """Have a worker evaluate a version; what is asked for is checked at once."""
    job_id = new_id()
    if idempotency_key is not None:  # what one project asks is no other's, whatever its key
        text = f"{project.row.id} {idempotency_key}"
        job_id = hashlib.sha256(text.encode()).hexdigest()[: len(job_id)]
    row = service.queue.find(project.row.id, job_id)
    return job_out(row or _submit(version_id, given, project, service, job_id))


def _submit(
    version_id: int, given: EvaluationIn, project: Project, service: Service, job_id: str
) -> JobRow:
    repository = project.store.repository(version_id)
    method = resolve_method(given.method_name, task_named(repository.task))
    EvaluationOptions.read(given.options)
    n_epoch = resolve_epoch(given.n_epoch, repository)
    now = datetime.now(UTC)

    def choose(taken: Collection[str]) -> str:
        if given.result_name is not None and given.result_name in taken:
            return given.result_name  # which is refused, with a better reason than one here
        return choose_name(
            project.store, repository.version, method, given.result_name, now, taken=taken
        )

    return service.queue.submit(
        project.row.id,
        "evaluation",
        model_name=repository.version.model_name,
        version_name=repository.version.version_name,
        result_name=choose,
        request={"method_name": method, "n_epoch": n_epoch, "options": given.options},
        created_by=project.principal.name,
        job_id=job_id,
    )


@router.get("/jobs")
def list_jobs(
    project: AsViewer,
    service: TheService,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, lt=1 << 31)] = 0,
) -> list[JobOut]:
    """Return a project's jobs, the newest first."""
    return [job_out(one) for one in service.queue.listed(project.row.id, limit, offset)]


@router.get("/jobs/{job_id}")
def get_job(job_id: JobId, project: AsViewer, service: TheService) -> JobOut:
    """Return how a job is going."""
    return job_out(_find(service, project, job_id))


@router.post("/jobs/{job_id}/cancel")
def cancel_job(job_id: JobId, project: AsMember, service: TheService) -> JobOut:
    """Stop a job; one that is done stays done."""
    _find(service, project, job_id)
    service.queue.cancel(project.row.id, job_id)
    return job_out(_find(service, project, job_id))


def job_out(row: JobRow) -> JobOut:
    """Return a job as it is shown."""
    return JobOut(
        **row.model_dump(
            include={
                "id",
                "kind",
                "model_name",
                "version_name",
                "result_name",
                "state",
                "progress",
                "message",
                "attempt",
            }
        ),
        created_at=moment(row.created_at),
        started_at=None if row.started_at is None else moment(row.started_at),
        finished_at=None if row.finished_at is None else moment(row.finished_at),
    )


def _find(service: Service, project: Project, job_id: str) -> JobRow:
    row = service.queue.find(project.row.id, job_id)
    if row is None:
        raise Problem(404, "there is no such job")
    return row
