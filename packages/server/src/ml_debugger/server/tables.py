"""The service's own tables: who there is, what they may do, and what is to be done.

What SDKs send is not here: a project is a store, with a catalogue of its own.
"""

from typing import ClassVar

from sqlalchemy import BigInteger, Index, UniqueConstraint, text
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel


class Base(SQLModel, registry=registry()):
    """Keeps these tables apart from those of stores, and of anyone else's SQLModel classes.

    Ids are random and cannot be guessed; moments are nanoseconds since 1970 (UTC).
    """


class OrganizationRow(Base, table=True):
    """A unit of management: it has members, projects, and quotas."""

    __tablename__: ClassVar[str] = "organization"
    id: str = Field(primary_key=True)
    name: str = Field(unique=True)
    max_models: int | None = Field(default=None, sa_type=BigInteger)
    max_records: int | None = Field(default=None, sa_type=BigInteger)
    max_bytes: int | None = Field(default=None, sa_type=BigInteger)
    created_at: int = Field(sa_type=BigInteger)


class UserRow(Base, table=True):
    """A person. Operators run the service: they make organisations and set quotas."""

    __tablename__: ClassVar[str] = "user_account"
    id: str = Field(primary_key=True)
    email: str = Field(unique=True)  # in lower case
    name: str
    password: str | None  # Argon2
    operator: bool = False
    created_at: int = Field(sa_type=BigInteger)


class MemberRow(Base, table=True):
    """What a person may do in an organisation."""

    __tablename__: ClassVar[str] = "member"
    organization_id: str = Field(
        primary_key=True, foreign_key="organization.id", ondelete="CASCADE"
    )
    user_id: str = Field(
        primary_key=True, foreign_key="user_account.id", ondelete="CASCADE", index=True
    )
    role: str


class ProjectRow(Base, table=True):
    """A store of an organisation."""

    __tablename__: ClassVar[str] = "project"
    __table_args__ = (UniqueConstraint("organization_id", "name"),)
    id: str = Field(primary_key=True)
    organization_id: str = Field(foreign_key="organization.id")
    name: str
    retention_days: int | None = None  # drop epochs that nobody wrote to for longer
    created_at: int = Field(sa_type=BigInteger)


class KeyRow(Base, table=True):
    """An API key: shown once, known here by a keyed hash."""

    __tablename__: ClassVar[str] = "api_key"
    id: str = Field(primary_key=True)
    project_id: str = Field(foreign_key="project.id", ondelete="CASCADE", index=True)
    user_id: str = Field(foreign_key="user_account.id", ondelete="CASCADE")
    name: str
    role: str
    digest: str
    created_at: int = Field(sa_type=BigInteger)
    expires_at: int | None = Field(default=None, sa_type=BigInteger)
    last_used_at: int | None = Field(default=None, sa_type=BigInteger)


class SessionRow(Base, table=True):
    """A login in a browser, known here by a keyed hash."""

    __tablename__: ClassVar[str] = "session"
    digest: str = Field(primary_key=True)
    user_id: str = Field(foreign_key="user_account.id", ondelete="CASCADE", index=True)
    expires_at: int = Field(sa_type=BigInteger)


class JobRow(Base, table=True):
    """Work for a worker process.

    `beat` grows while a worker is at it: who sees it stand still for long may take the job over,
    which needs no two clocks that agree. `attempt` grows with each worker that takes it, and
    only the last may say how it ended. `failures` counts those that took their worker down, and
    `stalls` those that could not go on, for want of the object store for example.
    """

    __tablename__: ClassVar[str] = "job"
    __table_args__ = (
        Index("job_open", "state", "created_at"),
        Index("job_served", "project_id", "started_at"),
        Index(
            "job_result",
            "project_id",
            "result_name",
            unique=True,
            sqlite_where=text("state IN ('queued', 'running')"),
            postgresql_where=text("state IN ('queued', 'running')"),
        ),
    )
    id: str = Field(primary_key=True)
    project_id: str = Field(foreign_key="project.id", ondelete="CASCADE", index=True)
    kind: str
    model_name: str
    version_name: str
    result_name: str
    request: str  # JSON object: the arguments
    state: str
    cancelled: bool = False
    attempt: int = 0
    failures: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    stalls: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    beat: int = Field(default=0, sa_type=BigInteger)
    worker: str = ""
    progress: float = 0.0
    message: str = ""
    created_by: str
    created_at: int = Field(sa_type=BigInteger)
    started_at: int | None = Field(default=None, sa_type=BigInteger)
    finished_at: int | None = Field(default=None, sa_type=BigInteger)
