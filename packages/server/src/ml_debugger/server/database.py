"""The databases of the service: its own, and the catalogues of projects.

By default each is a SQLite file in the service's folder. With PostgreSQL they share one database:
the service's own tables are in the schema `public`, those of a project in a schema of its own, so
that no query of one project can reach another's rows.
"""

import hashlib
import math
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    OperationalError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlmodel import Session

from ml_debugger.core.errors import SchemaError, StoreError
from ml_debugger.core.locks import locked
from ml_debugger.core.store import schema
from ml_debugger.core.store.catalogue import (
    WRITE,
    Catalogue,
    sqlite_engine,
    use_wal,
)
from ml_debugger.core.store.local import CATALOGUE
from ml_debugger.server.problems import NoProjectError

POOL = 20  # connections that one process keeps; twice as many at most
AT_ONCE = 200  # projects that one query asks about
GONE = ("3F000", "42P01")  # PostgreSQL's codes: there is no such schema, no such table
READ_ONLY = "25006"
_MIGRATIONS = Path(__file__).parent / "migrations"


class UnavailableError(StoreError):
    """The database cannot be reached just now; what was committed is intact."""


class Database:
    """The service's own tables, in transactions; safe for several threads and processes."""

    def __init__(self, url: str | None, folder: Path) -> None:
        """Prepare to connect.

        Args:
            url: A PostgreSQL URL; None for a SQLite file.
            folder: Where that file lies.
        """
        self.postgres = url is not None
        self._folder = folder
        self._checked = -math.inf  # when projects' tables were last found to be of this version
        own = folder / "service.db"
        if url is not None:
            if own.exists():
                raise StoreError(
                    f"{folder} holds a service that runs on SQLite, which PostgreSQL would know "
                    "nothing of; choose another folder, or leave the database out"
                )
            if not url.startswith("postgresql"):
                raise StoreError(
                    "the database must be PostgreSQL, as in postgresql+psycopg://user@host/name, "
                    "or be left out for SQLite"
                )
            url = url.replace("postgresql://", "postgresql+psycopg://", 1)
            try:
                self.engine = create_engine(
                    url,
                    pool_size=POOL,
                    max_overflow=POOL,
                    pool_pre_ping=True,
                    hide_parameters=True,  # in errors, which are logged
                )
            except ImportError as error:
                raise StoreError(
                    "PostgreSQL needs its driver: pip install 'ml-debugger-server[postgres]'"
                ) from error
            except (ArgumentError, ValueError) as error:
                raise StoreError(
                    "the database must be a URL such as postgresql+psycopg://user@host/name"
                ) from error
        else:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.engine = sqlite_engine(own)
            with explained(), locked(folder / "service.lock"):  # the switch does not wait itself
                use_wal(self.engine)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A transaction that sees one state throughout."""
        with explained(), Session(_snapshots(self.engine, self.postgres)) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A transaction that is committed when the block ends without an error."""
        engine = self.engine if self.postgres else self.engine.execution_options(**WRITE)
        with explained(), Session(engine, expire_on_commit=False) as session, session.begin():
            yield session

    def usage(self, project_ids: Sequence[str]) -> list[tuple[int, int, int]]:
        """Return of each project how many models have records, how many records, and their bytes.

        No store is opened for it.

        Raises:
            NoProjectError: One of them is deleted.
        """
        if not self.postgres:
            return [_usage_of_file(self._folder / "projects" / one) for one in project_ids]
        found: list[tuple[int, int, int]] = []
        names = [namespace_of(one) for one in project_ids]
        with explained(), _of_projects(), self.engine.connect() as connection:
            for start in range(0, len(names), AT_ONCE):
                some = [f"({_usage(name + '.')})" for name in names[start : start + AT_ONCE]]
                rows = connection.execute(text(" UNION ALL ".join(some)))
                found += [(int(row[0]), int(row[1]), int(row[2])) for row in rows]
        return found

    def catalogue(self, project_id: str) -> Catalogue | None:
        """Return where a project's metadata lie; None for a file in the project's folder."""
        if not self.postgres:
            return None
        return PostgresCatalogue(self.engine, namespace_of(project_id))

    def make_project(self, project_id: str) -> None:
        """Make what a new project needs in the database; again does nothing."""
        if not self.postgres:
            return
        name = namespace_of(project_id)
        with explained(), self.engine.begin() as connection:
            connection.execute(text(f'CREATE SCHEMA IF NOT EXISTS "{name}"'))
            _look_in(connection, name)
            schema.prepare(connection, name)

    def drop_project(self, project_id: str) -> None:
        """Delete all that the database knows of a project's records."""
        if self.postgres:
            with explained(), self.engine.begin() as connection:
                connection.execute(
                    text(f'DROP SCHEMA IF EXISTS "{namespace_of(project_id)}" CASCADE')
                )

    def migrate(self) -> list[str]:
        """Bring all tables to this version; return what was done, in words."""
        done = []
        with explained():
            before = self._revision()
            command.upgrade(self._alembic(), "head")
            if before != (after := self._revision()):
                done.append(f"the service's tables: {before or 'nothing'} to {after}")
        if self.postgres:
            done += self._migrate_projects()
        return done

    def check(self, patience: float = 0.0) -> None:
        """Refuse tables of another version.

        Args:
            patience: For how many seconds projects' tables that were right are not looked at
                again.

        Raises:
            SchemaError: They are older or newer; the message says what to do.
            UnavailableError: The database cannot be reached.
        """
        with explained():
            found = self._revision()
        head, known = self._revisions
        if found != head:
            if found is not None and found not in known:
                raise SchemaError(
                    f"the database has revision {found}, which this version does not know; upgrade "
                    "ml-debugger-server"
                )
            raise SchemaError(
                f"the database is {'empty' if found is None else f'of revision {found}'}; run "
                "`ml-debugger service migrate` once, with the same settings"
            )
        if self.postgres and time.monotonic() - self._checked > patience:
            self._check_projects()
            self._checked = time.monotonic()

    def _check_projects(self) -> None:
        """Refuse projects' tables of another version; those of SQLite files are seen to later."""
        numbers: set[int] = set()
        with explained(), self.engine.connect() as connection:
            names = self.namespaces(connection)
            for start in range(0, len(names), AT_ONCE):
                some = [
                    f'SELECT number FROM "{name}".schema_number'
                    for name in names[start : start + AT_ONCE]
                ]
                with suppress(ProgrammingError), connection.begin_nested():
                    # or one was deleted meanwhile; the next look finds the others
                    numbers.update(connection.execute(text(" UNION ".join(some))).scalars())
        if numbers and max(numbers) > schema.SCHEMA:
            raise SchemaError(
                f"the database has projects of schema {max(numbers)}, which this version does not "
                "know; upgrade ml-debugger-server"
            )
        if numbers and min(numbers) < schema.SCHEMA:
            raise SchemaError(
                f"the database has projects of schema {min(numbers)}, and this version writes "
                f"{schema.SCHEMA}; run `ml-debugger service migrate` once, with the same settings"
            )

    def namespaces(self, connection: Connection) -> list[str]:
        """Return the PostgreSQL schemas of projects."""
        query = text("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'project\\_%' ORDER BY 1")
        return list(connection.execute(query).scalars())

    def listed(self) -> list[str]:
        """Return what there is in a PostgreSQL database: tables, whoever made them."""
        query = text(
            "SELECT schemaname || '.' || tablename FROM pg_tables "
            "WHERE schemaname NOT IN ('pg_catalog', 'information_schema') "
            "ORDER BY (schemaname <> 'public'), 1"
        )
        with explained(), self.engine.connect() as connection:
            return list(connection.execute(query).scalars())

    def ping(self) -> None:
        """Ask the database for nothing.

        Raises:
            UnavailableError: It does not answer.
        """
        with explained(), self.engine.connect() as connection:
            connection.execute(text("SELECT 1"))

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def _revision(self) -> str | None:
        with self.engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()

    @cached_property
    def _revisions(self) -> tuple[str | None, set[str]]:
        """The newest revision, and all that this version knows."""
        script = ScriptDirectory.from_config(self._alembic())
        return script.get_current_head(), {one.revision for one in script.walk_revisions()}

    def _alembic(self) -> Config:
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        config.attributes["engine"] = self.engine
        return config

    def _migrate_projects(self) -> list[str]:
        done = []
        with explained(), self.engine.connect() as connection:
            names = self.namespaces(connection)
        for name in names:
            with explained(), self.engine.begin() as connection:
                _look_in(connection, name)
                before = schema.number_of(connection, name)
                schema.prepare(connection, name)
                if before != schema.SCHEMA:
                    done.append(f"{name}: schema {before} to {schema.SCHEMA}")
        return done


class PostgresCatalogue:
    """A store's catalogue in a schema of a PostgreSQL database."""

    def __init__(self, engine: Engine, namespace: str) -> None:
        self._engine = engine
        self._snapshots = _snapshots(engine, postgres=True)
        self._namespace = namespace
        self._lock = int.from_bytes(hashlib.sha256(namespace.encode()).digest()[:8], signed=True)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A transaction that sees one state of the catalogue throughout."""
        with explained(), _of_projects(), Session(self._snapshots) as session:
            _look_in(session.connection(), self._namespace)
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A transaction that is committed, durably, when the block ends without an error."""
        with (
            explained(),
            _of_projects(),
            Session(self._engine, autoflush=False) as session,
            session.begin(),
        ):
            connection = session.connection()
            _look_in(connection, self._namespace)
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": self._lock})
            yield session

    def check(self) -> list[str]:
        """Return nothing: PostgreSQL checks its own pages."""
        return []

    def close(self) -> None:
        """Do nothing: connections are the database's, and shared."""


def namespace_of(project_id: str) -> str:
    """Return the PostgreSQL schema of a project."""
    if not (project_id.isascii() and project_id.isalnum()):
        raise ValueError(f"{project_id!r} is no project id")
    return f"project_{project_id}"


def _look_in(connection: Connection, namespace: str) -> None:
    connection.execute(text("SELECT set_config('search_path', :name, true)"), {"name": namespace})


def _snapshots(engine: Engine, postgres: bool) -> Engine:
    return engine.execution_options(isolation_level="REPEATABLE READ") if postgres else engine


@contextmanager
def explained() -> Iterator[None]:
    """Turn what a database says into what it means; what it was asked is not repeated."""
    try:
        yield
    except PoolTimeoutError as error:
        raise UnavailableError("all connections to the database are in use; try again") from error
    except (OperationalError, InterfaceError) as error:
        raise UnavailableError(
            f"the database does not answer ({_first_line(error)}); try again"
        ) from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise UnavailableError("the connection to the database was cut; try again") from error
        if getattr(error.orig, "sqlstate", None) == READ_ONLY:  # a standby, before it takes over
            raise UnavailableError("the database takes no changes just now; try again") from error
        raise


@contextmanager
def _of_projects() -> Iterator[None]:
    """Tell what a project lacks that was deleted meanwhile."""
    try:
        yield
    except ProgrammingError as error:
        if getattr(error.orig, "sqlstate", None) in GONE:
            raise NoProjectError from error
        raise


def _usage(place: str = "") -> str:
    """Return the query for what a project holds, in a schema if any."""
    return (
        f"SELECT (SELECT count(*) FROM {place}model AS m WHERE EXISTS (SELECT 1 FROM "
        f"{place}version AS v JOIN {place}chunk AS c ON c.version_id = v.id "
        "WHERE v.model_id = m.id)), coalesce(sum(inputs), 0), coalesce(sum(nbytes), 0) "
        f"FROM {place}chunk"
    )


def _usage_of_file(folder: Path) -> tuple[int, int, int]:
    path = folder / CATALOGUE
    if not path.exists():
        return 0, 0, 0  # nobody has used the project yet, or it is deleted
    try:
        with closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        ) as connection:
            models, records, nbytes = connection.execute(_usage()).fetchone()
    except sqlite3.OperationalError as error:
        if not path.exists():
            return 0, 0, 0
        raise UnavailableError(f"{path} does not answer ({error}); try again") from error
    return int(models), int(records), int(nbytes)


def _first_line(error: DBAPIError) -> str:
    text_: Any = str(error.orig).strip().splitlines()
    return text_[0] if text_ else type(error.orig).__name__
