"""The catalogue's schema: what is made in an empty database, and what older ones are brought to.

Written for any database that SQLAlchemy knows, so that a catalogue is the same wherever it lies.
"""

import uuid
from collections.abc import Callable

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    inspect,
    text,
)
from sqlmodel import col, delete, insert, select

from ml_debugger.core.errors import SchemaError, StoreError
from ml_debugger.core.store.tables import Base, IdentityRow, SchemaRow

#: Number of the tables in `tables.py`; grows by one with each entry of `MIGRATIONS`.
SCHEMA = 3


def _add_settings(connection: Connection) -> None:
    """Let runs carry the settings they recorded with; what those were before is not known."""
    connection.execute(text("ALTER TABLE run ADD COLUMN settings VARCHAR NOT NULL DEFAULT '{}'"))


def _add_sync(connection: Connection) -> None:
    """Let chunks be known under one name wherever they are, and remember where they were sent."""
    connection.execute(text("ALTER TABLE chunk ADD COLUMN origin VARCHAR"))
    connection.execute(text("CREATE UNIQUE INDEX chunk_origin ON chunk (origin)"))
    tables = MetaData()
    chunk = Table("chunk", tables, Column("id", Integer, primary_key=True))
    new = [
        Table("identity", tables, Column("uuid", String, primary_key=True)),
        Table(
            "upload",
            tables,
            Column("service", String, primary_key=True),
            Column(
                "chunk_id",
                ForeignKey(chunk.c.id, ondelete="CASCADE"),
                primary_key=True,
                index=True,
            ),
            Column("origin", String, nullable=False),
            Column("saved", Boolean, nullable=False),
        ),
        Table(
            "withdrawal",
            tables,
            Column("id", Integer, primary_key=True),
            Column("service", String, nullable=False, index=True),
            Column("model_name", String, nullable=False),
            Column("version_name", String, nullable=False),
            Column("origin", String, nullable=False),
        ),
        Table("forgotten", tables, Column("origin", String, primary_key=True)),
    ]
    tables.create_all(connection, tables=new)
    connection.execute(new[0].insert().values(uuid=uuid.uuid4().hex))


#: What turns a catalogue of schema `n` into one of schema `n + 1`, by `n`. Each says in full what
#: it makes: the tables in `tables.py` are those of the latest schema.
MIGRATIONS: dict[int, Callable[[Connection], None]] = {1: _add_settings, 2: _add_sync}


def number_of(connection: Connection, namespace: str | None = None) -> int | None:
    """Return the schema of a database; None where it is empty.

    Args:
        connection: To the database.
        namespace: Where in it to look, in databases that are divided into several.

    Raises:
        StoreError: It is a database of something else.
    """
    tables = inspect(connection).get_table_names(namespace)
    if not tables:
        return None
    number = None
    if SchemaRow.__tablename__ in tables:
        number = connection.scalar(select(SchemaRow.number))
    if number is None:
        raise StoreError(
            "this is a database of something else; expected an ml-debugger catalogue. Choose "
            "another place with MLD_HOME or home="
        )
    return int(number)


def prepare(connection: Connection, namespace: str | None = None) -> None:
    """Make the tables in an empty database, or bring those of an earlier version up to date.

    Args:
        connection: To the database, in a transaction that looks for names in `namespace` first.
        namespace: As for `number_of`.

    Raises:
        StoreError: It is a database of something else.
        SchemaError: A newer version of ml-debugger wrote it.
    """
    number = number_of(connection, namespace)
    if number is None:
        Base.metadata.create_all(connection)
        connection.execute(insert(SchemaRow).values(number=SCHEMA))
        connection.execute(insert(IdentityRow).values(uuid=uuid.uuid4().hex))
        return
    if number > SCHEMA:
        raise SchemaError(
            f"the catalogue has schema {number}, this ml-debugger reads up to {SCHEMA}; upgrade "
            "ml-debugger, or choose another folder with MLD_HOME or home="
        )
    for step in range(number, SCHEMA):
        MIGRATIONS[step](connection)
    if number != SCHEMA:
        connection.execute(delete(SchemaRow).where(col(SchemaRow.number) == number))
        connection.execute(insert(SchemaRow).values(number=SCHEMA))
