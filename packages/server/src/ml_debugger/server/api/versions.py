"""Model versions: what is recorded of them, and deleting it."""

from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Query

from ml_debugger.core.errors import ArchitectureMismatchError, InputError, TaskNotInstalledError
from ml_debugger.core.records import ModelVersion
from ml_debugger.core.store import VersionInfo
from ml_debugger.core.task import task_named
from ml_debugger.server.access import AsAdmin, AsMember, AsViewer, TheService
from ml_debugger.server.api.models import (
    DeletedOut,
    Epoch,
    EpochOut,
    ForgottenOut,
    Number,
    RunOut,
    VersionDetailOut,
    VersionIn,
    VersionOut,
    WithdrawalIn,
)
from ml_debugger.server.problems import Problem
from ml_debugger.server.quotas import check_quota

router = APIRouter(prefix="/projects/{project_id}/versions", tags=["versions"])


@router.get("")
def list_versions(
    project: AsViewer,
    model_name: Annotated[str | None, Query(max_length=200)] = None,
    version_name: Annotated[str | None, Query(max_length=200)] = None,
) -> list[VersionOut]:
    """Return the model versions of a project, in the order in which they were registered."""
    return [
        _out(one)
        for one in project.store.versions()
        if model_name in (None, one.version.model_name)
        and version_name in (None, one.version.version_name)
    ]


@router.post("")
def register_version(given: VersionIn, project: AsMember, service: TheService) -> VersionOut:
    """Make a model version, or find it again under the same conditions."""
    try:
        task_named(given.task)
    except TaskNotInstalledError as error:
        raise Problem(422, f"this service cannot take the task {given.task!r}: {error}") from error
    if not project.store.has_model(given.model_name):
        check_quota(service, project.row.organization_id, models=1)
    version = ModelVersion(given.model_name, given.version_name)
    declare = partial(
        project.store.register,
        version,
        task=given.task,
        architecture=given.architecture,
        layers=given.layers,
        fields=[one.model_dump() for one in given.fields],
        label_fields=[one.model_dump() for one in given.label_fields],
    )
    try:
        declare()
    except (ArchitectureMismatchError, InputError):
        if any(one.version == version and one.records for one in project.store.versions()):
            raise
        declare(recreate=True)  # what was recorded under the earlier declaration was withdrawn
    return next(_out(one) for one in project.store.versions() if one.version == version)


@router.get("/{version_id}")
def get_version(version_id: Number, project: AsViewer) -> VersionDetailOut:
    """Return a model version."""
    for one in project.store.versions():
        if one.number == version_id:
            latest = project.store.repository(version_id).latest_epoch()
            return VersionDetailOut(**_out(one).model_dump(), latest_epoch=latest)
    raise Problem(404, "there is no such version")


@router.delete("/{version_id}", status_code=204)
def delete_version(version_id: Number, project: AsAdmin) -> None:
    """Delete all records of a version, and its results."""
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
