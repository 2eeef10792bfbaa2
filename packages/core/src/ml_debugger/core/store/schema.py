"""The catalogue's schema: what is made in an empty database, and what older ones are brought to.

Written for any database that SQLAlchemy knows, so that a catalogue is the same wherever it lies.
"""

import uuid
from collections.abc import Callable

from sqlalchemy import Connection, inspect, text
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
    new = [Base.metadata.tables[name] for name in ("identity", "upload", "withdrawal", "forgotten")]
    Base.metadata.create_all(connection, tables=new)
    _identify(connection)


#: What turns a catalogue of schema `n` into one of schema `n + 1`, by `n`.
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
        _identify(connection)
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


def _identify(connection: Connection) -> None:
    connection.execute(insert(IdentityRow).values(uuid=uuid.uuid4().hex))
