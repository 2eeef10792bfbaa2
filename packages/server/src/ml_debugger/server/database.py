"""The databases of the service: its own, and the catalogues of projects.

By default each is a SQLite file in the service's folder. With PostgreSQL they share one database:
the service's own tables are in the schema `public`, those of a project in a schema of its own, so
that no query of one project can reach another's rows.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlmodel import Session

from ml_debugger.core.errors import SchemaError, StoreError
from ml_debugger.core.store import schema
from ml_debugger.core.store.catalogue import (
    WRITE,
    Catalogue,
    locked,
    sqlite_engine,
    use_wal,
)

POOL = 20  # connections that one process keeps; twice as many at most
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
        if url is not None:
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
            self.engine = sqlite_engine(folder / "service.db")
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

    def check(self) -> None:
        """Refuse tables of another version.

        Raises:
            SchemaError: They are older or newer; the message says what to do.
            UnavailableError: The database cannot be reached.
        """
        with explained():
            found = self._revision()
        script = ScriptDirectory.from_config(self._alembic())
        if found == script.get_current_head():
            return
        if found is not None and found not in {one.revision for one in script.walk_revisions()}:
            raise SchemaError(
                f"the database has revision {found}, which this version does not know; upgrade "
                "ml-debugger-server"
            )
        raise SchemaError(
            f"the database is {'empty' if found is None else f'of revision {found}'}; run "
            "`ml-debugger service migrate` once, with the same settings"
        )

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

    def _alembic(self) -> Config:
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        config.attributes["engine"] = self.engine
        return config

    def _migrate_projects(self) -> list[str]:
        done = []
        with explained(), self.engine.connect() as connection:
            query = text("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'project\\_%'")
            names = connection.execute(query).scalars().all()
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
        with explained(), Session(self._snapshots) as session:
            _look_in(session.connection(), self._namespace)
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A transaction that is committed, durably, when the block ends without an error."""
        with explained(), Session(self._engine, autoflush=False) as session, session.begin():
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
        raise


def _first_line(error: DBAPIError) -> str:
    text_: Any = str(error.orig).strip().splitlines()
    return text_[0] if text_ else type(error.orig).__name__
