"""Model versions: what is recorded of them, and deleting it."""

from typing import Literal

from fastapi import APIRouter

from ml_debugger.core.errors import TaskNotInstalledError
from ml_debugger.core.records import ModelVersion
from ml_debugger.core.store import VersionInfo
from ml_debugger.core.task import task_named
from ml_debugger.server.access import AsAdmin, AsMember, AsViewer, TheService
from ml_debugger.server.api.models import (
    MOST,
    After,
    DeletedOut,
    Epoch,
    EpochOut,
    ForgottenOut,
    Limit,
    Number,
    RunOut,
    VersionDetailOut,
    VersionIn,
    VersionOut,
    Wanted,
    WithdrawalIn,
)
from ml_debugger.server.problems import Problem
from ml_debugger.server.quotas import counting
from ml_debugger.server.tables import JobRow

router = APIRouter(prefix="/projects/{project_id}/versions", tags=["versions"])


@router.get("")
def list_versions(
    project: AsViewer,
    model_name: Wanted = None,
    version_name: Wanted = None,
    after: After = 0,
    limit: Limit = MOST,
) -> list[VersionOut]:
    """Return the model versions of a project, in the order in which they were registered."""
    found = project.store.page_of_versions(after, limit, model_name, version_name)
    return [_out(one) for one in found]


@router.post("")
def register_version(given: VersionIn, project: AsMember, service: TheService) -> VersionOut:
    """Make a model version, or find it again under the same conditions."""
    try:
        task_named(given.task)
    except TaskNotInstalledError as error:
        raise Problem(422, f"this service cannot take the task {given.task!r}: {error}") from error
    version = ModelVersion(given.model_name, given.version_name)
    with counting(service, project.row.organization_id) as quotas:
        if not project.store.has_records(given.model_name):
            quotas.check(models=1)
        project.store.register(
            version,
            task=given.task,
            architecture=given.architecture,
            layers=given.layers,
            fields=[one.model_dump() for one in given.fields],
            label_fields=[one.model_dump() for one in given.label_fields],
            recreate="unfit",  # what was recorded under an earlier declaration may be withdrawn
        )
    (found,) = project.store.page_of_versions(0, 1, *version)
    return _out(found)


@router.get("/{version_id}")
def get_version(version_id: Number, project: AsViewer) -> VersionDetailOut:
    """Return a model version."""
    found = project.store.version_numbered(version_id)
    if found is None:
        raise Problem(404, "there is no such version")
    latest = project.store.repository(version_id).latest_epoch()
    return VersionDetailOut(**_out(found).model_dump(), latest_epoch=latest)


@router.delete("/{version_id}", status_code=204)
def delete_version(version_id: Number, project: AsAdmin, service: TheService) -> None:
    """Delete all records of a version, and its results; its jobs are cancelled."""
    model_name, version_name = project.store.repository(version_id).version
    service.queue.cancel_all(
        project.row.id, JobRow.model_name == model_name, JobRow.version_name == version_name
    )
    project.store.delete_version(version_id)


@router.get("/{version_id}/epochs")
def list_epochs(version_id: Number, project: AsViewer) -> list[EpochOut]:
    """Return the epochs of a version, the one written last at the end."""
    return [EpochOut.model_validate(one) for one in project.store.repository(version_id).epochs()]


@router.delete("/{version_id}/epochs/{n_epoch}")
def delete_epoch(
    version_id: Number, n_epoch: Epoch | Literal["none"], project: AsAdmin
) -> DeletedOut:
    """Delete the records of an epoch; "none" for those without one."""
    epoch = None if n_epoch == "none" else n_epoch
    return DeletedOut(deleted=project.store.repository(version_id).delete_epoch(epoch))


@router.get("/{version_id}/runs")
def list_runs(version_id: Number, project: AsViewer) -> list[RunOut]:
    """Return the runs that have records, in the order in which they began."""
    return [RunOut.model_validate(one) for one in project.store.repository(version_id).runs()]


@router.post("/{version_id}/withdrawals")
def withdraw_chunks(version_id: Number, given: WithdrawalIn, project: AsMember) -> ForgottenOut:
    """Forget chunks that were deleted where they were recorded."""
    repository = project.store.repository(version_id)
    return ForgottenOut(chunks=repository.forget(given.origins))


def _out(info: VersionInfo) -> VersionOut:
    return VersionOut(
        id=info.number,
        model_name=info.version.model_name,
        version_name=info.version.version_name,
        task=info.task,
        records=info.records,
        bytes=info.bytes,
        epochs=list(info.epochs),
        last_written=info.last_written,
    )
