"""The tables of the catalogue: everything about records that is not their values."""

from typing import ClassVar

from sqlalchemy import BigInteger, Index, LargeBinary, UniqueConstraint
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel


class Base(SQLModel, registry=registry()):
    """Keeps these tables out of the metadata that a user's own SQLModel classes share."""


class SchemaRow(Base, table=True):
    """The schema number of this catalogue; one row."""

    __tablename__: ClassVar[str] = "schema_number"
    number: int = Field(primary_key=True)


class IdentityRow(Base, table=True):
    """What tells this store from all others; one row."""

    __tablename__: ClassVar[str] = "identity"
    uuid: str = Field(primary_key=True)


class ModelRow(Base, table=True):
    """A model name and the architecture it stands for."""

    __tablename__: ClassVar[str] = "model"
    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True)
    architecture: str  # JSON list of strings
    architecture_hash: str


class VersionRow(Base, table=True):
    """A model under one set of training conditions."""

    __tablename__: ClassVar[str] = "version"
    __table_args__ = (UniqueConstraint("model_id", "name"),)
    id: int | None = Field(default=None, primary_key=True)
    model_id: int = Field(foreign_key="model.id")
    name: str
    task: str
    layers: str  # JSON object: module path by alias
    fields: str  # JSON list of field declarations
    label_fields: str


class RunRow(Base, table=True):
    """One process that recorded; the ranks of a distributed run share its uuid."""

    __tablename__: ClassVar[str] = "run"
    __table_args__ = (UniqueConstraint("version_id", "uuid", "rank"),)
    id: int | None = Field(default=None, primary_key=True)
    version_id: int = Field(foreign_key="version.id")
    uuid: str
    purpose: str
    host: str
    pid: int
    rank: int
    world_size: int
    started_at: int = Field(sa_type=BigInteger)  # nanoseconds since 1970, like every time here
    settings: str = Field(default="{}", sa_column_kwargs={"server_default": "{}"})  # JSON object


class LayoutRow(Base, table=True):
    """The columns of a chunk, shared by all chunks that have the same."""

    __tablename__: ClassVar[str] = "layout"
    id: int | None = Field(default=None, primary_key=True)
    columns: str  # not indexed: there are few, and they may be longer than an index takes


class SegmentRow(Base, table=True):
    """A file of arrays in the folder of segments."""

    __tablename__: ClassVar[str] = "segment"
    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True)


class ChunkRow(Base, table=True):
    """The batches of one flush with the same run, epoch, data set and columns.

    Ids grow with time and are never used again, so their order is the order of writing.
    """

    __tablename__: ClassVar[str] = "chunk"
    __table_args__ = (
        Index("chunk_scope", "version_id", "n_epoch", "dataset_type"),
        Index("chunk_segment", "segment_id"),
        Index("chunk_origin", "origin", unique=True),
        {"sqlite_autoincrement": True},
    )
    id: int | None = Field(default=None, primary_key=True)
    version_id: int = Field(foreign_key="version.id")
    run_id: int = Field(foreign_key="run.id")
    layout_id: int = Field(foreign_key="layout.id")
    segment_id: int = Field(foreign_key="segment.id")
    n_epoch: int | None = Field(default=None, sa_type=BigInteger)
    dataset_type: str
    inputs: int
    units: int
    actuals: int | None  # None: recorded without ground truth
    offset: int = Field(sa_type=BigInteger)
    nbytes: int = Field(sa_type=BigInteger)
    buffers: bytes = Field(sa_type=LargeBinary)  # int64 pairs: start within the chunk, length
    crc: int = Field(sa_type=BigInteger)
    written_at: int = Field(sa_type=BigInteger)
    origin: str | None = None  # what it is called where it was recorded, if that is elsewhere


class ResultRow(Base, table=True):
    """A named outcome of an evaluation; what it holds lies in a folder."""

    __tablename__: ClassVar[str] = "result"
    __table_args__ = ({"sqlite_autoincrement": True},)  # who has a number meant this result
    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True)
    version_id: int = Field(foreign_key="version.id", index=True)
    method: str
    n_epoch: str  # JSON: a number, null or "all"
    options: str  # JSON object
    created_at: str
    completed_at: str


class EstimateRow(Base, table=True):
    """One column that a result derived for the predicted units of a chunk."""

    __tablename__: ClassVar[str] = "estimate"
    result: str = Field(primary_key=True)
    chunk_id: int = Field(primary_key=True, foreign_key="chunk.id", ondelete="CASCADE", index=True)
    name: str = Field(primary_key=True)
    dtype: str
    shape: str  # JSON list: the shape of one value
    known: bytes | None = Field(default=None, sa_type=LargeBinary)  # packed bits; None: all units
    data: bytes = Field(sa_type=LargeBinary)


class UploadRow(Base, table=True):
    """A chunk that a service was sent, and whether it has said that it saved it."""

    __tablename__: ClassVar[str] = "upload"
    service: str = Field(primary_key=True)
    chunk_id: int = Field(primary_key=True, foreign_key="chunk.id", ondelete="CASCADE", index=True)
    origin: str
    saved: bool


class WithdrawalRow(Base, table=True):
    """A chunk that a service was sent and that was deleted here since: it is to go there too."""

    __tablename__: ClassVar[str] = "withdrawal"
    id: int | None = Field(default=None, primary_key=True)
    service: str = Field(index=True)
    model_name: str
    version_name: str
    origin: str


class ForgottenRow(Base, table=True):
    """A chunk of another store that was withdrawn: should it arrive late, it is not taken in."""

    __tablename__: ClassVar[str] = "forgotten"
    origin: str = Field(primary_key=True)
