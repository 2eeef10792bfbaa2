"""What requests and answers hold."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import Path, Query
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from ml_debugger.core.store.parts import ORIGIN
from ml_debugger.server.people import Role

Name = Annotated[
    str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")
]
Email = Annotated[
    str,
    StringConstraints(
        min_length=3, max_length=254, pattern=r"^[^@\s\x00-\x1f\x7f]+@[^@\s\x00-\x1f\x7f]+$"
    ),
]
Text = Annotated[str, StringConstraints(max_length=100_000, pattern=r"^[^\x00]*$")]
Quota = Annotated[int, Field(ge=0, lt=1 << 53)]
Epoch = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]


UserId = Annotated[str, Path(pattern="^[0-9a-f]{32}$")]
KeyId = Annotated[str, Path(pattern="^[0-9a-f]{16}$")]
JobId = Annotated[str, Path(pattern="^[0-9a-f]{32}$")]
Number = Annotated[int, Path(ge=1, lt=1 << 31)]

MOST = 1000  # in one page of a list
After = Annotated[
    int, Query(ge=0, lt=1 << 31, description="The id that the page before ended with.")
]
Limit = Annotated[int, Query(ge=1, le=MOST)]
Wanted = Annotated[str | None, Query(max_length=1000, pattern=r"^[^\x00]*$")]


class In(BaseModel):
    """The body of a request; what is not known is refused."""

    model_config = ConfigDict(extra="forbid")


class Out(BaseModel):
    """An answer."""

    model_config = ConfigDict(from_attributes=True)


def moment(nanoseconds: int) -> datetime:
    """Return a point in time, in UTC."""
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC)


class LoginIn(In):
    """Who logs in."""

    email: Email
    password: Annotated[str, StringConstraints(max_length=1000)]


class PasswordIn(In):
    """A new password, and the old one."""

    old: Annotated[str, StringConstraints(max_length=1000)]
    new: Annotated[str, StringConstraints(max_length=1000)]


class ProjectOut(Out):
    """A project."""

    id: str
    organization_id: str
    name: str
    retention_days: int | None
    created_at: datetime


class MembershipOut(Out):
    """An organisation that one is in."""

    id: str
    name: str
    role: Role


class MeOut(Out):
    """Who asks, and what there is to work with.

    Attributes:
        projects: What may be used; of a key, its own.
        csrf_token: To be sent in `X-CSRF-Token` with every unsafe request of a browser.
    """

    email: str
    name: str
    operator: bool
    key_id: str | None
    organizations: list[MembershipOut]
    projects: list[ProjectOut]
    csrf_token: str | None
    service_version: str
    max_part_bytes: int


class OrganizationOut(Out):
    """An organisation, its quotas (null: none), and what of them is used."""

    id: str
    name: str
    max_models: int | None
    max_records: int | None
    max_bytes: int | None
    created_at: datetime


class UsageOut(Out):
    """What an organisation has recorded."""

    models: int
    records: int
    bytes: int


class OrganizationIn(In):
    """A new organisation; its admin is whoever makes it."""

    name: Name


class QuotasIn(In):
    """What an organisation may record, all of it; null, and what is left out, is no limit."""

    max_models: Quota | None = None
    max_records: Quota | None = None
    max_bytes: Quota | None = None


class MemberIn(In):
    """A person to let in."""

    email: Email
    name: Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")] = ""
    role: Role


class RoleIn(In):
    """A role to give."""

    role: Role


class MemberOut(Out):
    """A member. `password` is there once: when the person is new to the service."""

    user_id: str
    email: str
    name: str
    role: Role
    password: str | None = None


class ProjectIn(In):
    """A project to make."""

    name: Name


class ProjectChange(In):
    """How a project is to be. Epochs that nobody wrote to for `retention_days` are dropped."""

    name: Name
    retention_days: Annotated[int, Field(ge=1, le=36500)] | None = None


class KeyIn(In):
    """An API key to make; `days` is how long it holds, null for ever."""

    name: Name
    role: Role = Role.MEMBER
    days: Annotated[float, Field(gt=0, le=36500)] | None = None


class KeyOut(Out):
    """An API key. `key` is there once: when it is made."""

    id: str
    name: str
    role: Role
    user_id: str
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    key: str | None = None


class FieldIn(In):
    """An additional column."""

    name: Name
    type: Literal["str", "int", "float", "bool", "datetime", "json"]
    nullable: bool = True
    default: Any = None


class VersionIn(In):
    """A model version, as a tracer describes it."""

    model_name: Name
    version_name: Name
    task: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    architecture: Annotated[list[Text], Field(max_length=100_000)]
    layers: Annotated[dict[Name, Text], Field(max_length=1000)]
    fields: Annotated[list[FieldIn], Field(max_length=1000)] = []
    label_fields: Annotated[list[FieldIn], Field(max_length=1000)] = []


class VersionOut(Out):
    """A model version; `records` counts inputs as written."""

    id: int
    model_name: str
    version_name: str
    task: str
    records: int
    bytes: int
    epochs: list[int | None]
    last_written: datetime | None


class VersionDetailOut(VersionOut):
    """A model version, and which of its epochs "latest" is."""

    latest_epoch: int | None


class EpochOut(Out):
    """An epoch of a version; `records` counts inputs by data set."""

    n_epoch: int | None
    last_written: datetime
    runs: list[str]
    records: dict[str, int]


class RunOut(Out):
    """A run that has records."""

    run: str
    purpose: str
    host: str
    world_size: int
    started_at: datetime
    records: int
    settings: dict[str, float | int | None]


class DeletedOut(Out):
    """How many units were deleted, by table."""

    deleted: dict[str, int]


class PartOut(Out):
    """What became of a part: how many inputs were new."""

    records: int


class WithdrawalIn(In):
    """Chunks to forget, by what they are called where they were recorded."""

    origins: Annotated[
        list[Annotated[str, StringConstraints(pattern=ORIGIN)]],
        Field(min_length=1, max_length=1000, fail_fast=True),
    ]


class ForgottenOut(Out):
    """How many chunks were there to forget."""

    chunks: int


class EvaluationIn(In):
    """An evaluation to make; see `Evaluator.request_evaluation`."""

    method_name: Name = "default"
    result_name: Name | None = None
    n_epoch: Epoch | Literal["latest", "all"] | None = "latest"
    options: Annotated[dict[str, Any], Field(max_length=100)] = {}


class JobOut(Out):
    """Work for a worker."""

    id: str
    kind: Literal["evaluation", "estimates"]
    model_name: str
    version_name: str
    result_name: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    progress: Annotated[float, Field(description="Share that is done, in [0, 1].")]
    message: str
    attempt: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class ResultOut(Out):
    """A result."""

    id: int
    result_name: str
    model_name: str
    version_name: str
    task: str
    method_name: str
    n_epoch: int | str | None
    options: dict[str, Any]
    created_at: datetime
    completed_at: datetime


class FileOut(Out):
    """A file of a result."""

    name: str
    bytes: int
    sha256: str


class QueryIn(In):
    """Which inputs to pick; see `DataFilter.query`."""

    n_data: Annotated[int, Field(ge=1, le=10_000_000)]
    strategy: Literal["high_error_proba", "low_error_proba"] | dict[str, Any]
    dataset_type: Name = "pool"
    n_epoch: Epoch | Literal["latest"] | None = "latest"
    run: Name | None = None
    sampling: dict[str, Any] | None = None
    diverse: bool = False
    include_empty: bool = False
    explain: bool = False


class PickOut(Out):
    """An input that was picked; the rest is there where `explain` asked for it."""

    input_id: str
    rank_value: float | None = None
    zone: str | None = None
    estimated_code: str | None = None
    reason: str | None = None


class PicksOut(Out):
    """What was picked, best first; or the job that has to be done before anything can be.

    Attributes:
        picks: The inputs; null while `job` is to be waited for.
        job: Estimates those of the records that the result has not seen yet.
    """

    picks: list[PickOut] | None
    job: JobOut | None = None
    inputs: Annotated[int, Field(description="How many inputs there were to pick from.")]
